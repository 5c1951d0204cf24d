// The page of `ecgbyte serve`: it connects the controls and starts.

import { getJson, guarded, showError } from "./api.js";
import { ask, converse, showAttribution, stopAnswer } from "./ask.js";
import { listRecordings, loadThumbnails, openRecording, setAbout, upload } from "./list.js";
import { clearAttribution, toggle } from "./overlay.js";
import { listLayouts, redrawAll, zoomBy } from "./sheet.js";
import { $, element, state } from "./state.js";

function listenToSheets() {
  for (const id of ["layout", "speed", "gain", "seconds"]) $(id).onchange = redrawAll;
  $("in").onclick = () => zoomBy(1);
  $("out").onclick = () => zoomBy(-1);
  $("fit").onclick = () => zoomBy(0);
  $("tokens").onclick = () => toggle("tokens");
  $("calipers").onclick = () => toggle("calipers");
  $("print").onclick = () => print();
}

function listenToList() {
  $("more").onclick = guarded(() => listRecordings({ more: true }));
  let timer = 0;
  $("find").oninput = () => {
    clearTimeout(timer);
    timer = setTimeout(guarded(() => listRecordings()), 150);
  };
  $("path-form").onsubmit = guarded(async (event) => {
    event.preventDefault();
    const path = $("find").value.trim();
    if (!path) return listRecordings({ rescan: true });
    const { id } = await getJson(`api/records?path=${encodeURIComponent(path)}`);
    await openRecording(id);
  });
  $("files").onchange = guarded(async () => {
    await upload([...$("files").files]);
    $("files").value = "";
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
    await ask(question);
  });
  $("question").onkeydown = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $("ask").requestSubmit();
  };
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") stopAnswer(); });
  $("stop").onclick = stopAnswer;
  $("looked").onclick = guarded(showAttribution);
  $("clear").onclick = guarded(async () => {
    stopAnswer();
    if (state.ecgs.length > 1) return openRecording(state.ecgs.at(-1).id);
    $("log").replaceChildren();
    clearAttribution();
    await converse({ do: "clear", conversation: state.conversation });
  });
  $("save").onclick = () => { location.href = `api/save?conversation=${state.conversation}`; };
}

function showAbout({ notice, model, tokens, methods }) {
  $("notice").textContent = notice;
  $("model").textContent = model ? `${model.folder}, from ${model.base}` : "No model is open: the page shows ECGs only.";
  if (!model) $("state").textContent = "There is no model to ask: start `ecgbyte serve --model FOLDER`.";
  $("tokens").disabled = !tokens;
  $("method").replaceChildren(...Object.keys(methods).map((name) => element("option", {}, name)));
}

async function start() {
  listenToSheets();
  listenToList();
  listenToConversation();
  listLayouts();
  // The address names the open recordings; otherwise the first of the list is opened.
  const ids = location.hash.slice(1).split("+").filter(Boolean);
  const [about, listed] = [getJson("api"), ids.length ? null : listRecordings().catch(showError)];
  const shown = (async () => {
    if (!ids.length) {
      await listed;
      const open = document.querySelector("#records .open");
      if (open) ids.push(open.dataset.id);
    }
    for (const [i, id] of ids.entries()) await openRecording(id, i > 0);
  })();
  shown.catch(showError);
  setAbout(await about);
  showAbout(state.about);
  await shown.catch(() => {});
  state.started = true;
  if (listed) loadThumbnails();
  else await listRecordings();
}

start().catch(showError);
