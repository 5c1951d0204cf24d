// Opening, comparing and closing recordings, restoring what an address names, and uploads.

import { applyDisplay, readAddress, writeAddress } from "./address.js";
import { getJson, request } from "./api.js";
import { ask, converse, leaveConversation, readSegment, resume, stopAnswer } from "./ask.js";
import { forgetFindings } from "./findings.js";
import { listRecordings, markOpen } from "./list.js";
import { clearAttribution, clearPointed } from "./overlay.js";
import { createPanel, fetchSheet, listLayouts, placeSheet } from "./sheet.js";
import { $, element, narrow, state } from "./state.js";

const NO_RECORDING = "is no recording that can be read: WFDB (the header .hea and its signal files together), EDF, BDF, DICOM, "
  + "CSV, TSV, NumPy, HDF5, and the XML and SCP-ECG files of hospital systems are.";

let resolveAbout;
export const aboutLoaded = new Promise((resolve) => { resolveAbout = resolve; });

export function setAbout(about) {
  state.about = about;
  resolveAbout();
}

// Open a recording in place of the others, or beside the one that is open. `restore` is an address to show again.
export async function openRecording(id, { beside = false, restore = null, push = true } = {}) {
  if (beside && state.ecgs.length > 1) throw new Error("Two ECGs are open: close one first.");
  if (beside && state.ecgs.some((ecg) => ecg.id === id)) throw new Error("This ECG is open already.");
  const ecg = { id, about: null, start: restore?.start ?? 0, tokens: new Map(), attribution: null };
  const number = ++state.opened;
  let about, svg;
  try {
    [about, svg] = await Promise.all([getJson(`api/records/${id}`), fetchSheet(ecg)]);
  } catch (error) {
    if (beside && state.ecgs.length) throw error;
    if (number === state.opened) showUnreadable(id, error.message, push);
    return;
  }
  if (number !== state.opened) return; // another one was opened meanwhile
  ecg.about = about;
  state.unreadable = null;
  const conversation = beside ? state.conversation : null;
  leaveConversation();
  if (!beside) {
    state.ecgs = [];
    state.turns = [];
    stopAnswer();
    $("log").replaceChildren();
  }
  forgetFindings();
  clearAttribution();
  clearPointed();
  state.ecgs.push(ecg);
  listLayouts();
  showPanels();
  placeSheet(ecg, svg);
  if (state.ecgs.length > 1) placeSheet(state.ecgs[0]); // it is narrower now
  writeAddress({ push });
  if (narrow.matches) $("list").open = false;
  document.title = `${state.ecgs.map((open) => open.about.name).join(", ")} · ecgbyte`;
  await aboutLoaded;
  if (!state.about.model) return;
  if (restore?.conversation && await resume(restore.conversation)) return;
  await converse({ do: "open", record: id, conversation });
}

function showPanels() {
  $("ecgs").replaceChildren(...state.ecgs.map((open) => open.box || createPanel(open, readSegment, closeRecording)));
  markOpen();
}

export async function closeRecording(ecg) {
  const others = state.ecgs.filter((open) => open !== ecg);
  if (others.length) return openRecording(others[0].id);
  closeAll();
  writeAddress({ push: true });
}

// Show why a recording cannot be opened, in place of the sheet: nothing of the one before stays on the page.
function showUnreadable(id, reason, push) {
  closeAll();
  state.unreadable = id;
  $("ecgs").replaceChildren(element("p", { className: "bad", role: "alert" }, reason));
  markOpen();
  writeAddress({ push });
  if (narrow.matches) $("list").open = false;
}

function closeAll() {
  state.opened += 1; // a recording on its way comes too late
  state.unreadable = null;
  state.ecgs = [];
  state.turns = [];
  leaveConversation();
  stopAnswer();
  forgetFindings();
  $("state").textContent = "";
  $("ecgs").replaceChildren(element("p", { className: "empty" }, "Choose a recording, or drop a file on the page."));
  $("log").replaceChildren();
  document.title = "ecgbyte";
  clearAttribution();
  clearPointed();
  markOpen();
}

// Show what the address names; false where it names no recording.
export async function restoreAddress() {
  const address = readAddress();
  applyDisplay(address.display);
  if (!address.ids.length) {
    closeAll();
    return false;
  }
  state.restoring = true;
  const number = ++state.restores;
  try {
    for (const [i, id] of address.ids.entries()) {
      const last = i === address.ids.length - 1;
      const restore = { ...address, conversation: last ? address.conversation : null };
      await openRecording(id, { beside: i > 0, restore, push: false });
      if (state.unreadable) break;
    }
    // the server has forgotten the conversation, or the link comes from another one: ask again
    const missing = state.turns.length ? [] : address.questions;
    if (state.conversation) for (const question of missing) await ask(question);
  } finally {
    if (number === state.restores) state.restoring = false;
  }
  if (number === state.restores) writeAddress(); // not where another address was chosen meanwhile
  return true;
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
  // what cannot be read leaves the list, with a reason
  const { read, failed } = await (await request(`api/upload/${into}/check`, { method: "POST" })).json();
  await listRecordings();
  if (!read.length) throw new Error(failed[0] || `${files[0].name} ${NO_RECORDING}`);
  $("find").value = "";
  await listRecordings();
  await openRecording(read[0].id);
  if (failed.length) throw new Error(failed.join(" "));
}
