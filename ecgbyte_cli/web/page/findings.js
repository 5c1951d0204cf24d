// What the model answers about all findings of the open ECGs: bars, rhythm, conflicts and measured values.

import { postJson } from "./api.js";
import { ask, showAttribution, updateButtons } from "./ask.js";
import { $, element, state } from "./state.js";

const LIKELY = 6; // bars that are shown at once

export function forgetFindings() {
  $("findings").replaceChildren();
  $("findings").hidden = true;
  state.findings = [];
}

// Ask for the findings of the open ECGs, and show them.
export async function loadFindings() {
  const { conversation, changes } = state;
  forgetFindings();
  if (!state.about.model?.findings.length) return;
  $("findings").hidden = false;
  $("findings").replaceChildren(element("p", { className: "note" }, "Reading the findings …"));
  let reply;
  try {
    reply = await postJson("api/findings", { conversation });
  } catch (error) {
    if (changes === state.changes) $("findings").replaceChildren(element("p", { className: "bad" }, error.message));
    return;
  }
  if (changes !== state.changes) return; // other ECGs were opened meanwhile
  state.findings = reply.ecgs;
  $("findings").replaceChildren(...reply.ecgs.map(createCard));
  updateButtons();
  performance.mark("findings");
}

function createCard(ecg) {
  const open = state.ecgs.find((one) => one.id === ecg.record);
  const ranked = [...ecg.findings].sort((a, b) => b.probability - a.probability);
  const measured = Object.entries(ecg.measured).filter(([name]) => name !== "patient");
  return element("section", { className: "card", "aria-label": `Findings of ${open?.about.name}` },
    ...(state.ecgs.length > 1 ? [element("p", { className: "record" }, open?.about.name)] : []),
    ...(ecg.rhythms.length ? [element("h3", {}, "Rhythm"), bars(ecg.rhythms.slice(0, 2))] : []),
    element("h3", {}, "Findings"), bars(ranked.slice(0, LIKELY)),
    ...(ranked.length > LIKELY ? [element("details", {},
      element("summary", {}, `${ranked.length - LIKELY} less likely findings`), bars(ranked.slice(LIKELY)))] : []),
    ...(ecg.calibrated_on ? [element("p", { className: "note" }, `Probabilities are calibrated on ${ecg.calibrated_on}.`)] : []),
    ...ecg.conflicts.map((conflict) => element("p", { className: "bad" }, conflict.text)),
    element("h3", {}, "Measured"),
    element("dl", { className: "values" }, ...measured.flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, text)])));
}

function bars(findings) {
  return element("ul", { className: "bars" }, ...findings.map(({ words, probability, present, question, shown }) => {
    const bar = element("i");
    bar.style.width = `${(100 * probability).toFixed(1)}%`;
    const button = element("button", {
      type: "button", className: present ? "likely" : "", title: `Ask “${question}”, and show what the answer draws on`,
      onclick: () => askAndShow(question),
    }, element("span", { className: "words" }, words), element("span", { className: "percent" }, shown), bar);
    return element("li", {}, button);
  }));
}

async function askAndShow(question) {
  if (state.answering || !state.conversation) return;
  if (await ask(question)) await showAttribution();
}

// ---- example questions

export function showChips(examples) {
  $("chips").replaceChildren(...examples.map((question) => element("button", {
    type: "button", onclick: () => { if (state.conversation && !state.answering) ask(question); },
  }, question)));
}
