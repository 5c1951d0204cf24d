// The list of recordings: filters, and rows that are created only where they are in view.

import { getJson, guarded, showError } from "./api.js";
import { openRecording } from "./recordings.js";
import { $, chosenIds, element, state } from "./state.js";

const ROW = 86; // px; .row in page.css
const PAGE = 100; // recordings in a request
const AHEAD = 6; // rows before and behind those in view
const LOOK_AGAIN_MS = 2000; // while findings are being read

function query(offset, more = {}) {
  const values = { find: $("find").value.trim(), folder: $("folder").value, finding: $("finding").value,
    rhythm: $("rhythm").value, offset, limit: PAGE, ...more };
  return `api/records?${new URLSearchParams(Object.entries(values).filter(([, value]) => value !== ""))}`;
}

let again = 0;

// List the recordings that the filters leave; `rescan` looks for new files first, `keep` stays where the list is.
export async function listRecordings({ rescan = false, keep = false } = {}) {
  const { list } = state;
  const number = ++list.asked;
  clearTimeout(again);
  const reply = await getJson(query(0, rescan ? { look: 1 } : {}));
  if (number !== list.asked) return; // other filters were chosen meanwhile
  list.total = reply.total;
  list.pages = new Map([[0, reply.records]]);
  listFolders(reply.folders);
  $("total").textContent = `(${reply.total.toLocaleString("en")})`;
  const reading = reply.of !== undefined && reply.read < reply.of;
  $("nothing").hidden = reply.total > 0;
  $("nothing").textContent = reading ? "Nothing found so far." : "Nothing found.";
  $("reading").hidden = !reading;
  if (reading) {
    $("reading").textContent = `Findings of ${reply.read} of ${reply.of} recordings are read.`;
    again = setTimeout(() => listRecordings({ keep: true }).catch(showError), LOOK_AGAIN_MS);
  }
  if (!keep) $("scroller").scrollTop = 0;
  showRows(true);
}

function listFolders(folders) {
  const chosen = $("folder").value;
  $("folder-label").hidden = !folders.length;
  $("folder").replaceChildren(element("option", { value: "" }, "all folders"),
    ...folders.map(({ name, records }) => element("option", { value: name }, `${name} (${records})`)));
  $("folder").value = chosen;
}

// Create the rows in view; those out of view go.
export function showRows(fresh = false) {
  const { list } = state;
  const box = $("records");
  box.style.height = `${list.total * ROW}px`;
  const first = Math.max(0, Math.floor($("scroller").scrollTop / ROW) - AHEAD);
  const last = Math.min(list.total, Math.ceil(($("scroller").scrollTop + $("scroller").clientHeight) / ROW) + AHEAD);
  const rows = new Map(fresh ? [] : [...box.children].map((row) => [Number(row.dataset.at), row]));
  if (fresh) box.replaceChildren();
  for (const [at, row] of rows) if (at < first || at >= last) row.remove();
  for (let at = first; at < last; at++) {
    const record = list.pages.get(Math.floor(at / PAGE))?.[at % PAGE];
    if (!record) fetchPage(Math.floor(at / PAGE));
    else if (!rows.has(at)) box.append(createRow(record, at));
  }
  markOpen();
  if (state.started) loadThumbnails();
}

function fetchPage(page) {
  const { list } = state;
  if (list.pages.has(page)) return; // it is on its way
  const { pages } = list;
  pages.set(page, null);
  getJson(query(page * PAGE)).then(({ records }) => {
    pages.set(page, records);
    if (pages === list.pages) showRows();
  }, (error) => { pages.delete(page); showError(error); });
}

function createRow({ id, name }, at) {
  const hide = () => { image.hidden = true; }; // a recording that cannot be read has no thumbnail
  const image = element("img", { loading: "lazy", alt: "", width: 150, height: 34, onerror: hide });
  image.dataset.src = `api/records/${id}/thumbnail.svg`;
  const cut = name.lastIndexOf("/") + 1;
  const open = element("button", { type: "button", className: "open", title: name, onclick: guarded(() => openRecording(id)) },
    image, ...(cut ? [element("span", { className: "place" }, name.slice(0, cut))] : []),
    element("span", { className: "name" }, name.slice(cut)));
  open.dataset.id = id;
  const compare = element("button", {
    type: "button", className: "beside", title: "Open beside the current ECG, to compare", "aria-label": `Compare with ${name}`,
    onclick: guarded(() => openRecording(id, { beside: true })),
  }, "+");
  const row = element("li", { className: "row", "aria-posinset": at + 1, "aria-setsize": state.list.total }, open, compare);
  row.dataset.at = at;
  row.style.top = `${at * ROW}px`;
  return row;
}

// Load the thumbnails; the first sheet goes before them.
export function loadThumbnails() {
  for (const image of document.querySelectorAll("#records img:not([src])")) image.src = image.dataset.src;
}

export function markOpen() {
  for (const open of document.querySelectorAll("#records .open")) {
    open.setAttribute("aria-current", String(chosenIds().includes(open.dataset.id)));
  }
}

// Open the recording some rows on from the one that is open or in focus.
export async function stepRecording(by) {
  const { list } = state;
  const focused = document.activeElement.closest?.(".row");
  const known = [...list.pages].flatMap(([page, records]) => (records ?? []).map((record, i) => [page * PAGE + i, record.id]));
  const open = known.find(([, id]) => id === chosenIds()[0]);
  const from = focused ? Number(focused.dataset.at) : open ? open[0] : -1;
  const at = Math.min(Math.max(from + by, 0), list.total - 1);
  if (at < 0) return;
  const page = Math.floor(at / PAGE);
  if (!list.pages.get(page)) list.pages.set(page, (await getJson(query(page * PAGE))).records);
  const scroller = $("scroller");
  if (at * ROW < scroller.scrollTop) scroller.scrollTop = at * ROW;
  else if ((at + 1) * ROW > scroller.scrollTop + scroller.clientHeight) scroller.scrollTop = (at + 1) * ROW - scroller.clientHeight;
  showRows();
  if (focused) document.querySelector(`.row[data-at="${at}"] .open`)?.focus();
  await openRecording(list.pages.get(page)[at % PAGE].id);
}
