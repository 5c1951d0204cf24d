// The state of the page, and helpers to find and create elements.

export const state = {
  about: {}, // what GET api returns
  ecgs: [], // open ECGs: {id, about, start, tokens, attribution, svg, box, …}
  unreadable: null, // id of the recording that was chosen last, where it cannot be read: no ECG is open then
  opened: 0, // number of times a recording was opened
  conversation: null, // id of the conversation that questions go to
  changes: 0, // number of times the conversation was changed
  answering: null, // id of the conversation whose answer is being written
  turns: [], // answers shown, in order, as the server describes them
  asked: [], // questions, the latest last, for the keys up and down
  list: { total: 0, pages: new Map(), asked: 0 }, // recordings that match, by page
  restores: 0, // number of times an address was restored
  started: false, // whether the first sheet is drawn
  zoom: matchMedia("(max-width: 600px)").matches ? 2 : 1, // in widths of the frame
  showTokens: false,
  showCalipers: false,
};

export const narrow = matchMedia("(max-width: 1250px)"); // the list lies above the sheet
export const phone = matchMedia("(max-width: 600px)");

export const $ = (id) => document.getElementById(id);

// The recordings that were chosen: the list marks them, and the address names them.
export const chosenIds = () => (state.unreadable ? [state.unreadable] : state.ecgs.map((ecg) => ecg.id));

// Text from files, headers and the model enters the page only here, as text.
export function element(name, attributes = {}, ...children) {
  const created = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) created.addEventListener(key.slice(2), value);
    else if (key in created && key !== "list") created[key] = value;
    else created.setAttribute(key, value);
  }
  created.append(...children);
  return created;
}

// Append an SVG element to its parent.
export function svgElement(parent, name, attributes, ...children) {
  const created = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) created.setAttribute(key, value);
  created.append(...children);
  parent.append(created);
  return created;
}
