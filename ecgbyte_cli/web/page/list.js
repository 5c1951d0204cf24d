// The list of recordings, opening and closing them, and uploads.

import { getJson, guarded, request } from "./api.js";
import { converse, leaveConversation, readSegment, stopAnswer } from "./ask.js";
import { clearAttribution } from "./overlay.js";
import { createPanel, fetchSheet, listLayouts, placeSheet } from "./sheet.js";
import { $, element, narrow, state } from "./state.js";

let resolveAbout;
export const aboutLoaded = new Promise((resolve) => { resolveAbout = resolve; });

export function setAbout(about) {
  state.about = about;
  resolveAbout();
}

// ---- the list

// List the recordings that match the search; `more` appends, `rescan` looks for new files first.
export async function listRecordings({ more = false, rescan = false } = {}) {
  const offset = more ? state.listed : 0;
  const find = encodeURIComponent($("find").value.trim());
  const { total, records } = await getJson(`api/records?find=${find}&offset=${offset}&limit=60${rescan ? "&look=1" : ""}`);
  if (!more) $("records").replaceChildren();
  state.listed = offset + records.length;
  $("total").textContent = `(${total})`;
  $("more").hidden = state.listed >= total;
  $("records").append(...records.map(createEntry));
  markOpen();
  if (state.started) loadThumbnails();
}

// Load the thumbnails; the first sheet goes before them.
export function loadThumbnails() {
  for (const image of document.querySelectorAll("#records img:not([src])")) image.src = image.dataset.src;
}

function createEntry({ id, name }) {
  const image = element("img", { loading: "lazy", alt: "", width: 150, height: 34 });
  image.dataset.src = `api/records/${id}/thumbnail.svg`;
  const open = element("button", { type: "button", className: "open", title: name, onclick: guarded(() => openRecording(id)) },
    image, element("span", {}, name));
  open.dataset.id = id;
  const compare = element("button", {
    type: "button", title: "Open beside the current ECG, to compare", "aria-label": `Compare with ${name}`,
    onclick: guarded(() => openRecording(id, true)),
  }, "+");
  return element("li", {}, open, compare);
}

function markOpen() {
  for (const open of document.querySelectorAll("#records .open")) {
    open.setAttribute("aria-current", String(state.ecgs.some((ecg) => ecg.id === open.dataset.id)));
  }
}

// ---- opening and closing

// Open a recording in place of the others, or beside the one that is open.
export async function openRecording(id, beside = false) {
  if (beside && state.ecgs.length > 1) throw new Error("Two ECGs are open: close one first.");
  if (beside && state.ecgs.some((ecg) => ecg.id === id)) throw new Error("This ECG is open already.");
  const ecg = { id, about: null, start: 0, tokens: new Map(), attribution: null };
  const number = ++state.opened;
  const [about, svg] = await Promise.all([getJson(`api/records/${id}`), fetchSheet(ecg)]);
  if (number !== state.opened) return; // another one was opened meanwhile
  ecg.about = about;
  const conversation = beside ? state.conversation : null;
  leaveConversation();
  if (!beside) {
    state.ecgs = [];
    stopAnswer();
    $("log").replaceChildren();
  }
  clearAttribution();
  state.ecgs.push(ecg);
  location.replace("#" + state.ecgs.map((open) => open.id).join("+"));
  listLayouts();
  $("ecgs").replaceChildren(...state.ecgs.map((open) => open.box || createPanel(open, readSegment, closeRecording)));
  placeSheet(ecg, svg);
  if (state.ecgs.length > 1) placeSheet(state.ecgs[0]); // it is narrower now
  markOpen();
  if (narrow.matches) $("list").open = false;
  document.title = `${state.ecgs.map((open) => open.about.name).join(", ")} · ecgbyte`;
  await aboutLoaded;
  if (state.about.model) await converse({ do: "open", record: id, conversation });
}

async function closeRecording(ecg) {
  const others = state.ecgs.filter((open) => open !== ecg);
  if (others.length) return openRecording(others[0].id);
  state.ecgs = [];
  leaveConversation();
  stopAnswer();
  location.replace("#");
  $("ecgs").replaceChildren(element("p", { className: "empty" }, "Choose a recording, or drop a file on the page."));
  $("log").replaceChildren();
  clearAttribution();
  markOpen();
}

// ---- uploads

// Upload files that belong together, and open the first recording in them.
export async function upload(files) {
  let into = "";
  let records = [];
  if (!files.length) return;
  const limit = state.about.upload_bytes;
  for (const file of files) {
    if (file.size > limit) throw new Error(`${file.name} is too large: ${limit >> 20} MB at most.`);
  }
  for (const file of files) {
    const path = `api/upload/${encodeURIComponent(file.name)}${into && "?into=" + into}`;
    ({ into, records } = await (await request(path, { method: "PUT", body: file })).json());
  }
  if (!records.length) throw new Error("That is no recording: a WFDB record needs its header (.hea) and its signal files together.");
  $("find").value = "";
  await listRecordings();
  await openRecording(records[0].id);
}
