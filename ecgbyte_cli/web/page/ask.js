// The conversation: questions, streamed answers, and what an answer drew on.

import { writeAddress } from "./address.js";
import { getJson, post, postJson, showError } from "./api.js";
import { copyText } from "./export.js";
import { loadFindings } from "./findings.js";
import { clearAttribution, drawOverlay } from "./overlay.js";
import { addFact, scrollTo } from "./sheet.js";
import { $, element, state } from "./state.js";

const MOST_SEGMENTS = 400; // to choose from; of more the sheet shows the one to read

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
    enter(reply);
    reply.unlike.forEach((line) => addNote(line, "bad unlike"));
  } catch (error) {
    if (change === state.changes) $("state").textContent = error.message;
  }
  updateButtons();
}

// Go on with a conversation that the server still has, about the ECGs that are open; false if it has not.
export async function resume(conversation) {
  let reply;
  try {
    reply = await getJson(`api/conversation?conversation=${encodeURIComponent(conversation)}`);
  } catch (error) {
    if (error.status === 404) return false;
    throw error;
  }
  const open = state.ecgs.map((ecg) => ecg.id).join();
  if (reply.ecgs.map((ecg) => ecg.record).join() !== open) return false;
  leaveConversation();
  enter(reply);
  $("log").replaceChildren();
  reply.unlike.forEach((line) => addNote(line, "bad unlike"));
  for (const turn of reply.turns) {
    const box = addQuestion(turn.question);
    showTurn(box, turn);
  }
  updateButtons();
  return true;
}

function enter(reply) {
  state.conversation = reply.conversation;
  reply.ecgs.forEach((segment, i) => showSegment(segment, i === reply.ecgs.length - 1));
  $("state").textContent = describeConversation(reply.ecgs);
  $("chips").hidden = false;
  loadFindings();
}

// Show the segment that the model reads; only that of the last ECG can be changed, as in chat.
function showSegment(segment, last) {
  const ecg = state.ecgs.find((open) => open.id === segment.record);
  if (!ecg) return;
  ecg.segment = segment;
  const many = segment.segments > MOST_SEGMENTS;
  const numbers = many ? [segment.segment - 1] : [...Array(segment.segments).keys()];
  ecg.segmentSelect.replaceChildren(...numbers.map((i) => {
    const from = i * segment.seconds;
    return element("option", { value: i + 1 }, `${+from.toFixed(2)} to ${+(from + segment.seconds).toFixed(2)} s`);
  }));
  ecg.segmentSelect.value = segment.segment;
  ecg.segmentSelect.hidden = ecg.segmentLabel.hidden = false;
  ecg.segmentSelect.disabled = many || !last;
  ecg.readHere.hidden = !many || !last;
  ecg.legend.hidden = false;
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
  const { most_ecgs: most, keeps_context: keeps } = state.about.model;
  if (segments.length > most) return "The model reads one ECG at a time: each is asked about separately.";
  return (segments.length > 1 ? "Questions are about both ECGs, in this order. " : "")
    + (segments.length < state.ecgs.length ? `Questions are about ${segments[0].name} alone. ` : "")
    + (keeps ? "" : "The model was trained on single questions: it does not remember earlier ones.");
}

export async function readSegment(ecg) {
  stopAnswer();
  clearAttribution();
  document.querySelectorAll("#log .unlike").forEach((line) => line.remove()); // the new part gets its own
  const { seconds, segments } = ecg.segment;
  const number = segments > MOST_SEGMENTS ? Math.min(Math.round(ecg.start / seconds) + 1, segments) : Number(ecg.segmentSelect.value);
  await converse({ do: "segment", conversation: state.conversation, number });
  addNote("The model reads another part; earlier turns are forgotten.");
  state.turns = [];
  writeAddress();
  scrollTo(ecg, ecg.segment.start);
}

// The last answer, if it is one that can be attributed.
const attributable = () => (state.answering ? undefined : state.turns.at(-1)?.attributable && state.turns.at(-1));

export function updateButtons() {
  const { conversation, answering } = state;
  for (const id of ["question", "clear", "save"]) $(id).disabled = !conversation;
  $("send").disabled = !conversation || Boolean(answering);
  $("stop").hidden = !answering;
  const turn = conversation && attributable();
  $("looked").disabled = $("method").disabled = !turn;
  $("table").disabled = !conversation || !state.findings?.length;
  $("looked").title = turn ? `Show what the answer to “${turn.question}” drew on` : "The last answer has nothing to attribute";
}

function addNote(text, kind = "note") {
  $("log").append(element("p", { className: kind }, text));
}

// ---- an answer

function addQuestion(question) {
  const answer = element("p", { className: "a" }, "…");
  $("log").append(element("p", { className: "q" }, question), answer);
  return answer;
}

// Ask, and show the answer as it is written; return whether it was answered.
export async function ask(question) {
  if (state.asked.at(-1) !== question) state.asked.push(question);
  const answer = addQuestion(question);
  const shown = answer.previousSibling; // until another ECG is opened
  clearAttribution();
  state.answering = state.conversation;
  updateButtons();
  let text = "";
  let turn = null;
  try {
    for await (const event of answerEvents(question)) {
      if (event.piece !== undefined) answer.textContent = text += event.piece;
      if (event.error) throw new Error(event.error);
      if (event.done) turn = event.done;
    }
    if (!turn) throw new Error("The server has stopped in the middle of this answer: it is incomplete. Start `ecgbyte serve` again.");
    if (shown.isConnected) showTurn(answer, turn);
  } catch (error) {
    if (!text) answer.remove();
    if (shown.isConnected) addNote(error.message, "bad");
  }
  state.answering = null;
  updateButtons();
  writeAddress();
  if (shown.isConnected) $("log").lastChild.scrollIntoView({ block: "nearest" });
  return Boolean(turn);
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
  state.turns.push(turn);
  answer.classList.toggle("empty", !turn.answer);
  if (turn.separate) answer.replaceChildren(...turn.separate.map(createColumn));
  else answer.textContent = turn.answer || "(no answer)";
  answer.classList.toggle("columns", Boolean(turn.separate));
  const details = [
    ...(turn.stopped ? ["stopped"] : []),
    ...(turn.certainty ? [turn.certainty] : typeof turn.probability === "number"
      ? [`probability of this answer ${(100 * turn.probability).toFixed(0)} %`] : []),
    ...(turn.without_ecg ? [turn.without_ecg] : []),
    `${turn.seconds.toFixed(2)} s`,
  ];
  addNote(details.join(" · "));
  $("log").lastChild.append(" ", copyButton(turn));
  for (const line of turn.notes) addNote(line, "bad");
}

// The answer about one of several ECGs, side by side with the others.
function createColumn(part) {
  return element("span", { className: "column" }, element("b", {}, part.record),
    element("span", {}, part.answer || "(no answer)"), element("small", {}, part.certainty));
}

function copyButton(turn) {
  const text = `${turn.question}\n${turn.answer}${turn.certainty ? ` (${turn.certainty})` : ""}`;
  return element("button", {
    type: "button", className: "copy", title: "Copy question and answer", "aria-label": `Copy the answer to ${turn.question}`,
    onclick: (event) => copyText(text, event.target),
  }, "Copy");
}

export function stopAnswer() {
  if (state.answering) postJson("api/stop", { conversation: state.answering }).catch(showError);
}

// ---- attribution

export async function showAttribution() {
  const turn = attributable();
  if (!turn) return;
  $("drew").replaceChildren(element("p", {}, `Computing what the answer to “${turn.question}” drew on …`));
  $("drew").hidden = false;
  let attribution;
  try {
    attribution = await postJson("api/attribution", { conversation: state.conversation, method: $("method").value });
  } catch (error) {
    $("drew").hidden = true;
    throw error;
  }
  if (turn !== attributable()) return; // another question was asked meanwhile
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
    element("p", {}, element("b", {}, `What “${attribution.answer}” to “${attribution.question}” drew on`), ` (${attribution.method})`),
    element("p", {}, "The orange bands on the sheet are the parts of the ECG that it drew on."),
    element("p", {}, attribution.verdict),
    ...(share === null ? [] : [element("p", {}, `${(100 * share).toFixed(0)} % of it is on the question and not on the ECG${words.length ? ":" : "."}`)]),
    element("div", { className: "words" }, ...words));
}
