// Layers on a sheet: the part that the model reads, tokens, attribution and calipers.

import { getJson, showError } from "./api.js";
import { $, state, svgElement } from "./state.js";

export function drawOverlay(ecg) {
  for (const old of ecg.svg.querySelectorAll(".over")) old.remove();
  if (ecg.segment) drawSegment(ecg);
  if (ecg.attribution) drawAttribution(ecg);
  if (state.showTokens) drawTokens(ecg).catch(showError);
  if (state.showCalipers) drawCalipers(ecg);
}

export function toggle(name) {
  const key = name === "tokens" ? "showTokens" : "showCalipers";
  state[key] = !state[key];
  $(name).setAttribute("aria-pressed", String(state[key]));
  $(name === "tokens" ? "token" : "measure").hidden = !state[key];
  clearPointed();
  state.ecgs.forEach(drawOverlay);
}

// Clear what was told about a token and between the calipers; the calipers are measured again where they are drawn.
export function clearPointed() {
  $("token").textContent = state.showTokens ? "Point at a token, or press ] on the sheet." : "";
  $("measure").textContent = "";
}

export function clearAttribution() {
  $("drew").hidden = true;
  for (const ecg of state.ecgs) {
    if (ecg.attribution) { ecg.attribution = null; drawOverlay(ecg); }
  }
}

// The lead that the model reads a drawn one as: the modified lead II of Holter recorders stands for II.
const readAs = (ecg, lead) => (lead === "MLII" && !ecg.about.drawn.includes("II") ? "II" : lead);

// Return the strips of the sheet, one per lead, that lie between two times in seconds.
function strips(ecg, begin, end) {
  const speed = Number(ecg.svg.dataset.speed);
  return [...ecg.svg.querySelectorAll("g.lead")].flatMap((group) => {
    const data = group.dataset;
    const start = Number(data.start);
    const from = Math.max(start, begin);
    const to = Math.min(start + Number(data.seconds), end);
    const x = (t) => +(Number(data.x) + (t - start) * speed).toFixed(3);
    return from < to ? [{ lead: data.lead, x, from, to, top: Number(data.top), bottom: Number(data.bottom) }] : [];
  });
}

function drawSegment(ecg) {
  const layer = svgElement(ecg.svg, "g", { class: "over" });
  const { start, seconds, leads } = ecg.segment;
  for (const { lead, x, top, from, to } of strips(ecg, start, start + seconds)) {
    if (!leads.includes(readAs(ecg, lead))) continue;
    const bar = svgElement(layer, "path", { class: "reads", fill: "none", d: `M${x(from)} ${top + 0.6}H${x(to)}` });
    svgElement(bar, "title", {}, `The model reads this part of ${lead}.`);
  }
}

// ---- tokens

async function drawTokens(ecg) {
  if (!state.about.tokens) throw new Error("There is no tokenizer: start the server with a model, or in a work folder.");
  const length = state.about.tokens.segment_seconds;
  const sheet = ecg.svg;
  const first = Math.floor(ecg.start / length + 1e-9);
  const last = Math.min(Math.ceil((ecg.start + Number(sheet.dataset.seconds)) / length - 1e-9), ecg.about.segments);
  for (let i = first; i < last; i++) {
    if (!ecg.tokens.has(i)) ecg.tokens.set(i, getJson(`api/records/${ecg.id}/tokens?segment=${i + 1}`));
    let segment;
    try { segment = await ecg.tokens.get(i); } catch (error) { ecg.tokens.delete(i); throw error; }
    if (ecg.svg !== sheet || !state.showTokens) return; // the sheet was redrawn while the tokens loaded
    drawBands(ecg, segment);
  }
}

function drawBands(ecg, segment) {
  const layer = svgElement(ecg.svg, "g", { class: "over tokens" });
  for (const { lead, x, from, to, top, bottom } of strips(ecg, segment.start, segment.start + segment.seconds)) {
    if (!segment.read.includes(readAs(ecg, lead))) continue; // flat
    const row = segment.leads.indexOf(readAs(ecg, lead));
    for (const [id, spanRow, start, stop, low, high] of segment.spans) {
      const a = segment.start + start / segment.fs;
      const b = segment.start + stop / segment.fs;
      if (spanRow !== row || b <= from || a >= to) continue;
      const left = x(Math.max(a, from));
      const band = svgElement(layer, "rect", {
        class: `band c${id % 6}`, x: left, y: top, width: +(x(Math.min(b, to)) - left).toFixed(3), height: bottom - top,
      });
      band.dataset.token = id;
      band.description = `token ${id} on ${lead}: ${segment.letters[id]}, ${+(1000 * (b - a)).toFixed(1)} ms `
        + `(${a.toFixed(3)} to ${b.toFixed(3)} s), ${low.toFixed(2)} to ${high.toFixed(2)} mV`;
    }
  }
  // Traces and calipers stay on top; the pointer reaches the bands through the traces.
  for (const group of ecg.svg.querySelectorAll("g.lead, .calipers")) ecg.svg.append(group);
  for (const group of ecg.svg.querySelectorAll("g.lead")) group.style.pointerEvents = "none";
}

export function describeToken(band) {
  for (const other of document.querySelectorAll(".band.chosen")) other.classList.remove("chosen");
  band.classList.add("chosen");
  $("token").textContent = band.description;
}

export function stepToken(ecg, by) {
  const bands = [...ecg.svg.querySelectorAll(".band")];
  if (!bands.length) return;
  const current = bands.findIndex((band) => band.classList.contains("chosen"));
  const band = bands[(current + by + bands.length) % bands.length];
  describeToken(band);
  band.scrollIntoView({ block: "nearest", inline: "nearest" });
}

// ---- attribution

function drawAttribution(ecg) {
  const { start, cell_seconds: cell, shares, leads } = ecg.attribution;
  const most = Math.max(...shares.flat()) || 1;
  const layer = svgElement(ecg.svg, "g", { class: "over looked" });
  for (const { lead, x, from, to, top, bottom } of strips(ecg, start, start + cell * shares[0].length)) {
    const row = shares[leads.indexOf(readAs(ecg, lead))];
    if (!row) continue;
    row.forEach((share, i) => {
      const a = start + i * cell;
      const b = a + cell;
      if (share < 0.01 * most || b <= from || a >= to) return;
      const left = x(Math.max(a, from));
      svgElement(layer, "rect", {
        class: "share", x: left, y: top, width: x(Math.min(b, to)) - left, height: bottom - top,
        "fill-opacity": (0.85 * share / most).toFixed(3),
      });
    });
  }
  for (const group of ecg.svg.querySelectorAll("g.lead")) ecg.svg.append(group);
}

// ---- calipers

function drawCalipers(ecg) {
  const box = ecg.svg.viewBox.baseVal;
  ecg.calipers ||= [0, 25].map((offset) => [Math.round(0.3 * box.width) + offset, Math.round(0.35 * box.height)]);
  const layer = svgElement(ecg.svg, "g", { class: "over calipers" });
  ecg.calipers.forEach((at, i) => {
    at[0] = Math.min(at[0], box.width);
    at[1] = Math.min(at[1], box.height);
    const caliper = svgElement(layer, "g", { class: "caliper", tabindex: 0, role: "slider", "aria-label": `Caliper ${i + 1}` });
    svgElement(caliper, "rect", { x: -2.5, y: -box.height, width: 5, height: 2 * box.height });
    svgElement(caliper, "line", { x1: 0, x2: 0, y1: -box.height, y2: box.height });
    svgElement(caliper, "line", { x1: -6, x2: 6, y1: 0, y2: 0 });
    svgElement(caliper, "text", { x: 1, y: -1, "font-size": 4 }, String(i + 1));
    moveCaliper(ecg, caliper, at);
  });
}

function moveCaliper(ecg, caliper, at) {
  const box = ecg.svg.viewBox.baseVal;
  const move = (x, y) => {
    at[0] = Math.min(Math.max(x, 0), box.width);
    at[1] = Math.min(Math.max(y, 0), box.height);
    caliper.setAttribute("transform", `translate(${at[0]} ${at[1]})`);
    showDistance(ecg, caliper);
  };
  caliper.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    event.stopPropagation();
    caliper.focus();
    caliper.setPointerCapture(event.pointerId);
    const scale = box.width / ecg.svg.getBoundingClientRect().width;
    const from = [at[0] - event.clientX * scale, at[1] - event.clientY * scale];
    caliper.onpointermove = (to) => move(from[0] + to.clientX * scale, from[1] + to.clientY * scale);
    caliper.onpointerup = () => { caliper.onpointermove = null; };
  });
  caliper.addEventListener("keydown", (event) => {
    const by = event.shiftKey ? 0.05 : 0.5;
    const step = { ArrowLeft: [-by, 0], ArrowRight: [by, 0], ArrowUp: [0, -by], ArrowDown: [0, by] }[event.key];
    if (!step) return;
    event.preventDefault();
    move(at[0] + step[0], at[1] + step[1]);
  });
  move(...at);
}

function showDistance(ecg, caliper) {
  const [[x, y], [u, v]] = ecg.calipers;
  const ms = 1000 * Math.abs(x - u) / Number(ecg.svg.dataset.speed);
  const rate = ms >= 1 ? `, ${Math.round(60000 / ms)} a minute` : "";
  const text = `${Math.round(ms)} ms${rate}, ${(Math.abs(y - v) / Number(ecg.svg.dataset.gain)).toFixed(2)} mV`;
  $("measure").textContent = `Calipers: ${text}`;
  caliper.setAttribute("aria-valuetext", text);
  caliper.setAttribute("aria-valuenow", Math.round(ms));
}
