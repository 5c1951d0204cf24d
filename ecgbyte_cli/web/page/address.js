// The address of the page: open recordings, display, conversation and questions, so that Back, Forward, reload and a
// pasted link show the same again: #ID+ID&gain=10&layout=3x4&…&c=CONVERSATION&q=QUESTION&q=…

import { $, chosenIds, state } from "./state.js";

const DISPLAY = { layout: "3x4", speed: "25", gain: "10", seconds: "10" };
const MOST_QUESTIONS = 20;

export function readAddress() {
  const [first, ...rest] = location.hash.slice(1).split("&");
  const values = new URLSearchParams(rest.join("&"));
  return {
    ids: first.split("+").filter(Boolean),
    start: Number(values.get("start")) || 0,
    display: Object.fromEntries(Object.entries(DISPLAY).map(([name, usual]) => [name, values.get(name) ?? usual])),
    conversation: values.get("c"),
    questions: values.getAll("q").slice(-MOST_QUESTIONS),
  };
}

// Write what is shown to the address; `push` makes an entry that Back returns from.
export function writeAddress({ push = false } = {}) {
  if (state.restoring) return;
  const values = new URLSearchParams();
  for (const [name, usual] of Object.entries(DISPLAY)) {
    if ($(name).value && $(name).value !== usual) values.set(name, $(name).value);
  }
  if (state.ecgs[0]?.start) values.set("start", state.ecgs[0].start);
  if (state.conversation && state.turns.length) values.set("c", state.conversation);
  for (const turn of state.turns.slice(-MOST_QUESTIONS)) values.append("q", turn.question);
  const query = values.toString();
  const hash = `#${chosenIds().join("+")}${query && "&" + query}`;
  if (hash === (location.hash || "#")) return;
  history[push ? "pushState" : "replaceState"](null, "", hash);
}

// Set the controls of the display to those of the address; the layout of a single lead may not be listed yet.
export function applyDisplay(display) {
  for (const [name, value] of Object.entries(display)) {
    const control = $(name);
    if (![...control.options].some((option) => option.value === value)) {
      if (name !== "layout" || !value.startsWith("lead ")) continue;
      control.append(new Option(value, value));
    }
    control.value = value;
  }
}
