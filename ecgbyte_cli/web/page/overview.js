// The strip below the sheet of a long recording: its heart rate over time, and where the sheet is; a click moves there.

import { getJson } from "./api.js";
import { element, state, svgElement } from "./state.js";

const LEAST_SECONDS = 120; // of a recording that gets a strip
const [WIDTH, HEIGHT, TOP, BOTTOM] = [1000, 60, 4, 46]; // units of the drawing
const ASK_AGAIN_MS = 1000;
const TICKS = [30, 60, 300, 600, 1800, 3600, 2 * 3600, 6 * 3600, 24 * 3600]; // s

// Create the strip of an ECG, or null where the recording is short; `move` is called with the second to show.
export function createOverview(ecg, move) {
  if (ecg.about.seconds < LEAST_SECONDS) return null;
  const { seconds } = ecg.about;
  // the slider beside it does the same by keys
  const strip = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  for (const [key, value] of Object.entries({ class: "overview", viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
    preserveAspectRatio: "none", "aria-hidden": "true" })) strip.setAttribute(key, value);
  const words = element("p", { className: "rates" }, "Measuring the heart rate …");
  const labels = element("div", { className: "hours", ariaHidden: "true" });
  const at = svgElement(strip, "rect", { class: "at", y: 0, height: HEIGHT });
  const line = svgElement(strip, "path", { class: "rate" });
  const step = TICKS.find((every) => seconds / every <= 9) ?? TICKS.at(-1);
  for (let second = step; second < seconds; second += step) {
    const x = WIDTH * second / seconds;
    svgElement(strip, "path", { class: "tick", d: `M${x} 0V${HEIGHT}` });
    const label = element("span", {}, clock(second));
    label.style.left = `${100 * second / seconds}%`;
    labels.append(label);
  }
  strip.onpointerdown = (event) => {
    const box = strip.getBoundingClientRect();
    move(seconds * (event.clientX - box.left) / box.width - ecg.shown() / 2);
  };
  ecg.showPlace = () => {
    at.setAttribute("x", WIDTH * ecg.start / seconds);
    at.setAttribute("width", Math.max(WIDTH * ecg.shown() / seconds, 2));
  };
  load(ecg, line, words, move);
  return element("div", { className: "timeline" }, strip, labels, words);
}

// Return a second of a recording as h:mm, or m:ss in one of less than an hour.
const clock = (second) => {
  const [hours, minutes, rest] = [Math.floor(second / 3600), Math.floor(second / 60) % 60, Math.floor(second % 60)];
  return hours || !rest ? `${hours}:${String(minutes).padStart(2, "0")} h` : `${minutes}:${String(rest).padStart(2, "0")} min`;
};

// Ask for the rates until all are measured, as long as the ECG is open.
async function load(ecg, line, words, move) {
  const rates = [];
  for (;;) {
    let reply;
    try {
      reply = await getJson(`api/records/${ecg.id}/overview?first=${rates.length}`);
    } catch (error) {
      words.textContent = error.message;
      return;
    }
    rates.push(...reply.rates);
    const done = rates.length >= reply.steps;
    draw(line, rates, reply);
    describe(words, rates, reply, done, move);
    if (done) return;
    await new Promise((resolve) => { setTimeout(resolve, ASK_AGAIN_MS); });
    if (!state.ecgs.includes(ecg)) return;
  }
}

function draw(line, rates, { step, steps }) {
  const known = rates.filter((rate) => rate !== null);
  if (!known.length) return;
  const [low, high] = [Math.min(...known) - 5, Math.max(...known) + 5];
  let pen = "M"; // a gap breaks the line
  const points = rates.map((rate, i) => {
    if (rate === null) { pen = "M"; return ""; }
    const y = BOTTOM - (BOTTOM - TOP) * (rate - low) / (high - low);
    const point = `${pen}${(WIDTH * i / steps).toFixed(2)} ${y.toFixed(1)}H${(WIDTH * (i + 1) / steps).toFixed(2)}`;
    pen = "L";
    return point;
  });
  line.setAttribute("d", points.join(""));
}

function describe(words, rates, { step, steps, measured }, done, move) {
  const known = rates.map((rate, i) => [rate, i * step]).filter(([rate]) => rate !== null).sort(([a], [b]) => a - b);
  const progress = done ? "" : ` (${Math.floor(100 * rates.length / steps)} % of the recording is measured)`;
  if (!known.length) {
    words.textContent = done ? "No heart rate can be measured." : `Measuring the heart rate …${progress}`;
    return;
  }
  const jump = ([rate, second]) => element("button", { type: "button", onclick: () => move(second) }, `${rate.toFixed(0)} at ${clock(second)}`);
  const middle = known[Math.floor(known.length / 2)][0];
  words.replaceChildren(`Heart rate a minute${measured < step ? `, of ${measured} s every ${step} s` : ""}: slowest `, jump(known[0]), `, median ${middle.toFixed(0)}, fastest `,
    jump(known.at(-1)), progress);
}
