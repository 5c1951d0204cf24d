// The page of `ecgbyte serve`: it connects the controls and starts.

import { applyDisplay, readAddress } from "./address.js";
import { getJson, guarded, hideError, showError } from "./api.js";
import { ask, converse, showAttribution, stopAnswer } from "./ask.js";
import { saveFindings } from "./export.js";
import { showChips } from "./findings.js";
import { listRecordings, loadThumbnails, showRows, stepRecording } from "./list.js";
import { clearAttribution, toggle } from "./overlay.js";
import { openRecording, restoreAddress, setAbout, upload } from "./recordings.js";
import { listLayouts, redrawAll, zoomBy } from "./sheet.js";
import { $, element, narrow, state } from "./state.js";

function listenToSheets() {
  for (const id of ["layout", "speed", "gain", "seconds"]) $(id).onchange = redrawAll;
  $("in").onclick = () => zoomBy(1);
  $("out").onclick = () => zoomBy(-1);
  $("fit").onclick = () => zoomBy(0);
  $("tokens").onclick = () => toggle("tokens");
  $("calipers").onclick = () => toggle("calipers");
  $("print").onclick = () => print();
  window.addEventListener("resize", () => { zoomBy(null); showRows(); });
}

function listenToList() {
  let timer = 0;
  $("find").oninput = () => {
    clearTimeout(timer);
    timer = setTimeout(guarded(() => listRecordings()), 150);
  };
  for (const id of ["folder", "finding", "rhythm"]) $(id).onchange = guarded(() => listRecordings());
  $("scroller").onscroll = () => showRows();
  $("list").ontoggle = () => showRows();
  $("scroller").onkeydown = guarded(async (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    await stepRecording(by);
  });
  $("path-form").onsubmit = guarded(async (event) => {
    event.preventDefault();
    const path = $("find").value.trim();
    if (!path) return listRecordings({ rescan: true });
    const { id } = await getJson(`api/records?path=${encodeURIComponent(path)}`);
    await openRecording(id);
  });
  $("files").onchange = guarded(async () => {
    const files = [...$("files").files];
    $("files").value = "";
    await upload(files);
  });
  let depth = 0; // of elements that a dragged file has entered
  document.addEventListener("dragenter", () => { depth += 1; document.body.classList.add("over"); });
  document.addEventListener("dragleave", () => { if (--depth <= 0) document.body.classList.remove("over"); });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", guarded(async (event) => {
    event.preventDefault();
    depth = 0;
    document.body.classList.remove("over");
    await upload([...event.dataTransfer.files]);
  }));
}

function listenToConversation() {
  $("ask").onsubmit = guarded(async (event) => {
    event.preventDefault();
    const question = $("question").value.trim();
    if (!question || state.answering || !state.conversation) return;
    $("question").value = "";
    // without an answer the question stays, unless another one is being typed
    if (!await ask(question) && !$("question").value) $("question").value = question;
  });
  $("question").onkeydown = pressKey;
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") stopAnswer(); });
  $("stop").onclick = stopAnswer;
  $("looked").onclick = guarded(showAttribution);
  $("clear").onclick = guarded(async () => {
    stopAnswer();
    if (state.ecgs.length > 1) return openRecording(state.ecgs.at(-1).id);
    $("log").replaceChildren();
    state.turns = [];
    clearAttribution();
    await converse({ do: "clear", conversation: state.conversation });
  });
  $("save").onclick = () => { location.href = `api/save?conversation=${state.conversation}`; };
  $("table").onclick = saveFindings;
}

// Enter asks; up and down go through earlier questions, from an empty box or from one of them.
function pressKey(event) {
  const box = event.target;
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
    return;
  }
  const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (!by || event.shiftKey) return;
  const at = box.value ? state.asked.lastIndexOf(box.value, box.at ?? Infinity) : state.asked.length;
  if (at < 0) return;
  const next = Math.min(Math.max(at + by, 0), state.asked.length);
  event.preventDefault();
  box.at = next;
  box.value = state.asked[next] ?? "";
}

function showAbout({ notice, model, tokens, methods }) {
  $("notice").textContent = notice;
  $("model").textContent = model ? model.origin : "No model is open: the page shows ECGs only.";
  if (!model) $("state").textContent = "There is no model to ask: start `ecgbyte serve --model FOLDER`.";
  $("tokens").disabled = !tokens;
  $("method").replaceChildren(...Object.keys(methods).map((name) => element("option", {}, name)));
  showChips(model?.examples ?? []);
  for (const [id, words] of [["finding", model?.findings], ["rhythm", model?.rhythms]]) {
    $(`${id}-label`).hidden = !words?.length;
    $(id).replaceChildren(element("option", { value: "" }, "any"), ...(words ?? []).map((text) => element("option", {}, text)));
  }
}

// Skip links move the focus; the address belongs to what is shown.
function listenToSkips() {
  for (const link of document.querySelectorAll(".skip")) {
    link.onclick = (event) => {
      event.preventDefault();
      if (link.dataset.skip === "find") $("list").open = true;
      const target = link.dataset.skip === "ecgs" ? document.querySelector(".scroll") ?? $("ecgs") : $(link.dataset.skip);
      target.focus();
    };
  }
}

async function start() {
  listenToSheets();
  listenToList();
  listenToConversation();
  listenToSkips();
  $("error-close").onclick = hideError;
  if (narrow.matches && readAddress().ids.length) $("list").open = false;
  listLayouts();
  // The address names the open recordings; otherwise the first of the list is opened.
  const address = readAddress();
  applyDisplay(address.display);
  const about = getJson("api");
  const listed = address.ids.length ? null : listRecordings().catch(showError);
  const shown = (async () => {
    if (address.ids.length) return restoreAddress();
    await listed;
    const first = state.list.pages.get(0)?.[0];
    if (first) await openRecording(first.id, { push: false });
  })();
  shown.catch(showError);
  window.addEventListener("popstate", guarded(restoreAddress));
  setAbout(await about);
  showAbout(state.about);
  await shown.catch(() => {});
  state.started = true;
  if (listed) loadThumbnails();
  else await listRecordings();
}

start().catch(showError);
