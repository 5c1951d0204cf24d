// The conversation: questions, streamed answers, and what an answer drew on.

import { post, postJson, showError } from "./api.js";
import { clearAttribution, drawOverlay } from "./overlay.js";
import { addFact, scrollTo } from "./sheet.js";
import { $, element, state } from "./state.js";

// ---- the conversation

// Leave the conversation: nothing can be asked until the ECGs shown are those of the next one.
export function leaveConversation() {
  state.changes += 1;
  state.conversation = null;
  updateButtons();
}

// Open, change or clear the conversation, and show what the model reads.
export async function converse(body) {
  leaveConversation();
  const change = state.changes;
  $("state").textContent = "The model reads the ECG …";
  try {
    const reply = await postJson("api/conversation", body);
    if (change !== state.changes) return; // another change was made meanwhile
    state.conversation = reply.conversation;
    reply.ecgs.forEach((segment, i) => showSegment(segment, i === reply.ecgs.length - 1));
    reply.unlike.forEach((line) => addNote(line, "bad"));
    $("state").textContent = describeConversation(reply.ecgs);
  } catch (error) {
    if (change === state.changes) $("state").textContent = error.message;
  }
  updateButtons();
}

// Show the segment that the model reads; only that of the last ECG can be changed, as in chat.
function showSegment(segment, last) {
  const ecg = state.ecgs.find((open) => open.id === segment.record);
  if (!ecg) return;
  ecg.segment = segment;
  ecg.segmentSelect.replaceChildren(...Array.from({ length: segment.segments }, (_, i) => {
    const from = i * segment.seconds;
    return element("option", { value: i + 1 }, `${+from.toFixed(2)} to ${+(from + segment.seconds).toFixed(2)} s`);
  }));
  ecg.segmentSelect.value = segment.segment;
  ecg.segmentSelect.hidden = ecg.segmentLabel.hidden = false;
  ecg.segmentSelect.disabled = !last;
  for (const name of ["heart rate", "intervals", "axis", "remarks", "patient", "read"]) {
    for (const term of [...ecg.facts.children].filter((child) => child.textContent === name)) {
      term.nextSibling.remove();
      term.remove();
    }
    if (segment.facts[name]) addFact(ecg, name, segment.facts[name]);
  }
  drawOverlay(ecg);
}

function describeConversation(segments) {
  const tooMany = segments.length > state.about.model.most_ecgs;
  return (segments.length > 1 ? "Questions are about both ECGs, in this order. " : "")
    + (segments.length < state.ecgs.length ? `Questions are about ${segments[0].name} alone. ` : "")
    + (tooMany ? "The model was not trained on questions about so many." : "")
    + (state.about.model.keeps_context || tooMany ? "" : "The model was trained on single questions: it does not remember earlier ones.");
}

export async function readSegment(ecg) {
  stopAnswer();
  clearAttribution();
  await converse({ do: "segment", conversation: state.conversation, number: Number(ecg.segmentSelect.value) });
  addNote("The model reads another part; what was said before is forgotten.");
  scrollTo(ecg, ecg.segment.start);
}

export function updateButtons() {
  const { conversation, answering } = state;
  for (const id of ["question", "clear", "save"]) $(id).disabled = !conversation;
  $("send").disabled = !conversation || Boolean(answering);
  $("stop").hidden = !answering;
  const answered = conversation && !answering && $("log").querySelector(".a:not(.empty)");
  $("looked").disabled = $("method").disabled = !answered;
}

function addNote(text, kind = "note") {
  $("log").append(element("p", { className: kind }, text));
  $("log").scrollTop = $("log").scrollHeight;
}

// ---- an answer

export async function ask(question) {
  const answer = element("p", { className: "a" }, "…");
  $("log").append(element("p", { className: "q" }, question), answer);
  clearAttribution();
  state.answering = state.conversation;
  updateButtons();
  let text = "";
  let turn = null;
  try {
    for await (const event of answerEvents(question)) {
      if (event.piece !== undefined) answer.textContent = text += event.piece;
      if (event.error) throw new Error(event.error);
      if (event.done) {
        turn = event.done;
        showTurn(answer, turn);
      }
    }
    if (!turn) throw new Error("The server has stopped in the middle of this answer: it is incomplete. Start `ecgbyte serve` again.");
  } catch (error) {
    const open = answer.isConnected; // false once another ECG was opened
    if (!text) answer.remove();
    if (open) addNote(error.message, "bad");
  }
  state.answering = null;
  updateButtons();
  $("log").scrollTop = $("log").scrollHeight;
}

// Yield the server-sent events of an answer; they end early where the connection is lost.
async function* answerEvents(question) {
  const response = await post("api/ask", { conversation: state.conversation, question, stream: true });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let chunk;
    try { chunk = await reader.read(); } catch { return; }
    if (chunk.done) return;
    const lines = (rest + chunk.value).split("\n\n");
    rest = lines.pop();
    for (const line of lines) yield JSON.parse(line.slice("data: ".length));
  }
}

function showTurn(answer, turn) {
  answer.textContent = turn.answer || "(no answer)";
  answer.classList.toggle("empty", !turn.answer);
  const details = [
    ...(turn.stopped ? ["stopped"] : []),
    ...(turn.certainty ? [turn.certainty] : typeof turn.probability === "number"
      ? [`probability of this answer ${(100 * turn.probability).toFixed(0)} %`] : []),
    `${turn.seconds.toFixed(2)} s`,
    ...(turn.conflicts ?? []).map((conflict) => conflict.text),
  ];
  if (answer.isConnected) addNote(details.join(" · "));
}

export function stopAnswer() {
  if (state.answering) postJson("api/stop", { conversation: state.answering }).catch(showError);
}

// ---- attribution

export async function showAttribution() {
  $("drew").replaceChildren(element("p", {}, "Computing what the answer drew on …"));
  $("drew").hidden = false;
  let attribution;
  try {
    attribution = await postJson("api/attribution", { conversation: state.conversation, method: $("method").value });
  } catch (error) {
    $("drew").hidden = true;
    throw error;
  }
  const ecg = state.ecgs.findLast((open) => open.id === attribution.record);
  if (ecg) { ecg.attribution = attribution; drawOverlay(ecg); }
  const most = Math.max(...attribution.words.map(([, value]) => value), 1e-9);
  const words = attribution.words.map(([word, value]) => {
    const bar = element("i");
    bar.style.height = `${(28 * value / most).toFixed(1)}px`;
    return element("span", { className: "word", title: `${(100 * value).toFixed(1)} %` }, bar, word.replaceAll(" ", "\u00a0"));
  });
  const share = attribution.on_text;
  $("drew").replaceChildren(
    element("p", {}, element("b", {}, `What “${attribution.answer}” drew on (${attribution.method})`)),
    element("p", {}, attribution.verdict),
    ...(share === null ? [] : [element("p", {}, `${(100 * share).toFixed(0)} % of it is on the question:`)]),
    element("div", { className: "words" }, ...words));
}
