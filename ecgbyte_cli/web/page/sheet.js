// The sheet of an open ECG: its panel, drawing, scrolling and zoom.

import { guarded, request } from "./api.js";
import { createBeatPanel } from "./beat.js";
import { writeAddress } from "./address.js";
import { saveSheet } from "./export.js";
import { stepRecording } from "./list.js";
import { describeToken, drawOverlay, stepToken } from "./overlay.js";
import { createOverview } from "./overview.js";
import { $, element, narrow, phone, state } from "./state.js";

const LONG = 3600; // s, of a recording whose times are shown as h:mm:ss
const ZOOMS = [1, 1.5, 2, 3, 4, 6, 8];

// ---- the panel

// Create the panel of an ECG; `onSegment` and `onClose` are called with the ECG.
export function createPanel(ecg, onSegment, onClose) {
  const { name, leads, fs, seconds, start, comments } = ecg.about;
  ecg.scroll = element("div", { className: "scroll", tabIndex: 0, role: "group", "aria-label": `Sheet of ${name}` });
  ecg.slider = element("input", {
    type: "range", min: 0, step: "any", "aria-label": "Second that the sheet begins with",
    oninput: () => scrollTo(ecg, Number(ecg.slider.value)),
  });
  ecg.position = element("span");
  ecg.shown = () => Math.min(Number($("seconds").value), seconds);
  ecg.segmentSelect = element("select", { hidden: true, onchange: guarded(() => onSegment(ecg)) });
  ecg.segmentLabel = element("label", { hidden: true }, "The model reads ", ecg.segmentSelect);
  ecg.readHere = element("button", { type: "button", className: "here", hidden: true, title: "Let the model read the part that the sheet begins with",
    onclick: guarded(() => onSegment(ecg)) }, "Read this part");
  const step = (by) => () => scrollTo(ecg, ecg.start + by * Number($("seconds").value));
  ecg.moves = element("div", { className: "moves" },
    element("button", { type: "button", "aria-label": "Earlier", onclick: step(-1) }, "‹"), ecg.slider,
    element("button", { type: "button", "aria-label": "Later", onclick: step(1) }, "›"), ecg.position);
  ecg.legend = element("span", { className: "legend", hidden: true, title: "The blue bars above the leads" },
    element("i"), "blue bar: what the model reads");
  ecg.facts = element("dl");
  addFact(ecg, "recorded", `${leads.length} leads (${leads.join(", ")}), ${+fs.toFixed(3)} Hz, `
    + `${+seconds.toFixed(3)} s${start ? ", " + start.replace("T", " ") : ""}`);
  if (comments.length) addFact(ecg, "header (not shown to the model)", comments.join("\n"));
  ecg.box = element("article", { className: "ecg", "aria-label": name },
    element("div", { className: "head" }, element("h2", {}, name), ecg.segmentLabel, ecg.readHere, ecg.legend, createMenu(ecg),
      element("button", { type: "button", className: "close", onclick: guarded(() => onClose(ecg)) }, "Close")),
    ecg.scroll, ecg.moves, ...[createOverview(ecg, (second) => scrollTo(ecg, second))].filter(Boolean), element("details", { className: "facts", open: !narrow.matches },
      element("summary", {}, "About this recording"), ecg.facts), createBeatPanel(ecg));
  listen(ecg);
  return ecg.box;
}

function createMenu(ecg) {
  const save = (format) => element("button", { type: "button", onclick: guarded(() => saveSheet(ecg, format)) }, format.toUpperCase());
  return element("span", { className: "group", role: "group", "aria-label": `Save the sheet of ${ecg.about.name}` },
    "Save as", save("png"), save("svg"), save("pdf"));
}

export function addFact(ecg, name, text) {
  // a long one scrolls, and has to be reached by keys
  ecg.facts.append(element("dt", {}, name), element("dd", text.split("\n").length > 6 ? { tabIndex: 0 } : {}, text));
}

function listen(ecg) {
  dragToPan(ecg.scroll);
  ecg.scroll.addEventListener("scroll", () => keepNames(ecg), { passive: true });
  ecg.scroll.addEventListener("keydown", (event) => pressKey(ecg, event));
  ecg.scroll.addEventListener("pointerover", (event) => {
    if (event.target.classList.contains("band")) describeToken(event.target);
  });
  ecg.scroll.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    zoomBy(event.deltaY < 0 ? 1 : -1);
  }, { passive: false });
}

function dragToPan(box) {
  box.addEventListener("pointerdown", (event) => {
    if (event.pointerType !== "mouse" || event.button || event.target.closest(".caliper")) return;
    const from = [event.clientX + box.scrollLeft, event.clientY + box.scrollTop];
    const move = (next) => box.scrollTo(from[0] - next.clientX, from[1] - next.clientY);
    window.addEventListener("pointermove", move);
    window.addEventListener("pointerup", () => window.removeEventListener("pointermove", move), { once: true });
  });
}

function pressKey(ecg, event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest(".caliper")) return;
  const actions = {
    "+": () => zoomBy(1), "=": () => zoomBy(1), "-": () => zoomBy(-1), 0: () => zoomBy(0),
    t: () => $("tokens").click(), c: () => $("calipers").click(),
    "[": () => stepToken(ecg, -1), "]": () => stepToken(ecg, 1),
  };
  if (!ecg.moves.hidden && state.zoom === 1) {
    actions.ArrowLeft = () => scrollTo(ecg, ecg.start - 1);
    actions.ArrowRight = () => scrollTo(ecg, ecg.start + 1);
  }
  if (state.zoom === 1) {
    actions.ArrowUp = guarded(() => stepRecording(-1));
    actions.ArrowDown = guarded(() => stepRecording(1));
  }
  const action = actions[event.key] || actions[event.key.toLowerCase()];
  if (!action) return;
  event.preventDefault();
  action();
}

// ---- drawing

export function listLayouts() {
  const leads = [...new Set(state.ecgs.flatMap((ecg) => ecg.about.drawn))];
  const chosen = $("layout").value || "3x4";
  const layouts = [["3x4", "3 × 4 and rhythm"], ["6x2", "6 × 2"], ["12x1", "12 × 1"]];
  const single = leads.map((name) => ["lead " + name, "lead " + name]);
  $("layout").replaceChildren(...[...layouts, ...single].map(([value, text]) => element("option", { value }, text)));
  $("layout").value = chosen;
  if (!$("layout").value) $("layout").value = "3x4";
}

// Return the parameters of the sheet of an ECG in the chosen layout.
export function sheetQuery(ecg) {
  const layout = $("layout").value || "3x4";
  const lead = layout.startsWith("lead ") ? layout.slice(5) : "";
  const hasLead = !lead || !ecg.about || ecg.about.drawn.includes(lead);
  return new URLSearchParams({
    start: ecg.start, seconds: $("seconds").value, speed: $("speed").value, gain: $("gain").value,
    ...(lead && hasLead ? { leads: lead } : { layout: lead ? "12x1" : layout }),
  });
}

// Fetch the sheet of an ECG in the chosen layout.
export async function fetchSheet(ecg) {
  const text = await (await request(`api/records/${ecg.id}/sheet.svg?${sheetQuery(ecg)}`)).text();
  const svg = new DOMParser().parseFromString(text, "image/svg+xml").documentElement;
  if (svg.nodeName !== "svg") throw new Error("The sheet cannot be shown.");
  svg.setAttribute("role", "group"); // it holds calipers that can be moved
  return document.adoptNode(svg);
}

export function placeSheet(ecg, svg = ecg.svg) {
  ecg.svg = svg;
  ecg.scroll.replaceChildren(svg);
  ecg.scroll.classList.remove("busy");
  svg.style.setProperty("--mm", svg.getAttribute("width"));
  const seconds = Number($("seconds").value);
  const whole = ecg.about.seconds;
  ecg.slider.max = Math.max(0, whole - Math.min(seconds, whole));
  ecg.slider.value = ecg.start;
  ecg.moves.hidden = whole <= seconds * 1.001;
  const end = Math.min(ecg.start + seconds, whole);
  ecg.showPlace?.();
  ecg.position.textContent = whole < LONG ? `${+ecg.start.toFixed(2)} to ${+end.toFixed(2)} of ${+whole.toFixed(2)} s`
    : `${clock(ecg.start)} to ${clock(end)} of ${clock(whole)}`;
  applyZoom(ecg);
  drawOverlay(ecg);
  keepNames(ecg);
  performance.mark("sheet");
}

function clock(second) {
  const two = (number) => String(number).padStart(2, "0");
  return `${Math.floor(second / 3600)}:${two(Math.floor(second / 60) % 60)}:${two(Math.floor(second % 60))}`;
}

let redrawTimer = 0;

export function scrollTo(ecg, start) {
  const last = Math.max(0, ecg.about.seconds - Number($("seconds").value));
  ecg.start = Math.round(1000 * Math.min(Math.max(start, 0), last)) / 1000;
  ecg.slider.value = ecg.start;
  ecg.showPlace?.();
  ecg.scroll.classList.add("busy");
  clearTimeout(redrawTimer);
  redrawTimer = setTimeout(guarded(() => redraw(ecg)), 60);
}

async function redraw(ecg) {
  const number = (ecg.redraws = (ecg.redraws || 0) + 1);
  const svg = await fetchSheet(ecg);
  if (number !== ecg.redraws) return; // an older sheet may arrive after a newer one
  placeSheet(ecg, svg);
  writeAddress();
}

// Redraw the sheets after a change of the display, which Back undoes.
export const redrawAll = guarded(() => {
  writeAddress({ push: true });
  return Promise.all(state.ecgs.map((ecg) => {
    ecg.start = Math.min(ecg.start, Math.max(0, ecg.about.seconds - Number($("seconds").value)));
    return redraw(ecg);
  }));
});

// ---- zoom

// Leads one under another fit the height too, in a window that is high enough to read them.
function applyZoom(ecg) {
  const { width, height } = ecg.svg.viewBox.baseVal;
  const high = ecg.svg.dataset.layout === "12x1" && !phone.matches && innerHeight > 500;
  const fits = high ? Math.min(1, (0.76 * innerHeight * width) / (height * ecg.scroll.clientWidth)) : 1;
  ecg.svg.style.setProperty("--px", `${100 * fits * state.zoom}%`);
}

// Keep the names of the leads and the calibration pulses in view where a zoomed sheet is scrolled.
function keepNames(ecg) {
  const sheet = ecg.svg;
  const scale = sheet.viewBox.baseVal.width / (sheet.getBoundingClientRect().width || 1);
  const left = ecg.scroll.scrollLeft * scale; // mm
  for (const pulse of sheet.querySelectorAll(".pulse")) pulse.setAttribute("transform", `translate(${left} 0)`);
  for (const group of sheet.querySelectorAll("g.lead")) {
    const { x, seconds } = group.dataset;
    const room = Number(seconds) * Number(sheet.dataset.speed) - 12;
    const beside = left ? left + 13 - Number(x) : 0; // behind the pulse
    group.querySelector(".name")?.setAttribute("transform", `translate(${Math.min(Math.max(beside, 0), Math.max(room, 0))} 0)`);
  }
}

// Zoom in or out by some steps, around the middle of the frame; 0 fits the width, null keeps the zoom in a new window.
export function zoomBy(steps) {
  const at = ZOOMS.indexOf(state.zoom);
  if (steps !== null) state.zoom = steps === 0 ? 1 : ZOOMS[Math.min(Math.max(at + steps, 0), ZOOMS.length - 1)];
  for (const ecg of state.ecgs) {
    const box = ecg.scroll;
    const [x, y] = [(box.scrollLeft + box.clientWidth / 2) / box.scrollWidth,
      (box.scrollTop + box.clientHeight / 2) / box.scrollHeight];
    applyZoom(ecg);
    box.scrollLeft = x * box.scrollWidth - box.clientWidth / 2;
    box.scrollTop = y * box.scrollHeight - box.clientHeight / 2;
    keepNames(ecg);
  }
}
