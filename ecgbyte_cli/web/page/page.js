// The page of `ecgbyte serve`: shows ECGs, their tokens and what an answer drew on, and asks the model.
// What comes from files, headers and the model is text, and is put in as text only.

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const ZOOMS = [1, 1.5, 2, 3, 4, 6, 8];

let about = {};
let known; // called once `about` is there
const asked = new Promise((done) => { known = done; });
let ecgs = []; // {id, about, start, box, svg, tokens: Map, looked}
let talk = null; // the conversation's id
let asking = null; // the reader of the answer that is being written
let zoom = matchMedia("(max-width: 600px)").matches ? 2 : 1; // in parts of the width
let started = false;
let listed = 0;
let opened = 0;
const narrow = matchMedia("(max-width: 1000px)");
const on = { tokens: false, calipers: false };

// ---- asking the server

async function api(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer: is `ecgbyte serve` still running?");
  }
  if (!answer.ok) {
    let said = {};
    try { said = await answer.json(); } catch { /* no JSON */ }
    throw new Error(said.error || `The server says ${answer.status}.`);
  }
  return answer;
}

const get = async (path) => (await api(path)).json();
const send = (path, told) => api(path, {
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(told),
});
const post = async (path, told) => (await send(path, told)).json();

function fail(error) {
  $("error").textContent = error ? error.message || String(error) : "";
  $("error").hidden = !error;
}

// what a control does, with its failure shown
const doing = (work) => async (event) => {
  fail();
  try { await work(event); } catch (error) { fail(error); }
};

function make(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key in made && key !== "list") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function draw(parent, name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  parent.append(made);
  return made;
}

// ---- the list

async function list(more, look) {
  const offset = more ? listed : 0;
  const found = await get(`api/records?find=${encodeURIComponent($("find").value.trim())}&offset=${offset}&limit=60${look ? "&look=1" : ""}`);
  if (!more) $("records").replaceChildren();
  listed = offset + found.records.length;
  $("total").textContent = `(${found.total})`;
  $("more").hidden = listed >= found.total;
  for (const one of found.records) $("records").append(entry(one));
  mark();
  if (started) thumbnails();
}

// after the first sheet, which they would delay
function thumbnails() {
  for (const image of document.querySelectorAll("#records img:not([src])")) image.src = image.dataset.src;
}

function entry({ id, name }) {
  const open = make("button", { type: "button", className: "open", title: name, onclick: doing(() => show(id)) },
    make("img", { loading: "lazy", alt: "", width: 150, height: 34 }),
    make("span", {}, name));
  open.dataset.id = id;
  open.firstChild.dataset.src = `api/records/${id}/thumbnail.svg`;
  const beside = make("button", {
    type: "button", title: "Open beside the one that is shown, to compare", "aria-label": `Compare with ${name}`,
    onclick: doing(() => show(id, true)),
  }, "+");
  return make("li", {}, open, beside);
}

function mark() {
  for (const open of document.querySelectorAll("#records .open")) {
    open.setAttribute("aria-current", String(ecgs.some((ecg) => ecg.id === open.dataset.id)));
  }
}

// ---- opening

async function show(id, beside) {
  if (beside && ecgs.length > 1) throw new Error("Two ECGs are open: close one first.");
  if (beside && ecgs.some((ecg) => ecg.id === id)) throw new Error("This ECG is open already.");
  const ecg = { id, about: null, start: 0, tokens: new Map(), looked: null };
  const turn = ++opened;
  const [told, svg] = await Promise.all([get(`api/records/${id}`), sheetOf(ecg)]);
  if (turn !== opened) return; // another one was chosen meanwhile
  ecg.about = told;
  if (!beside) {
    ecgs = [];
    stop();
    $("log").replaceChildren();
  }
  unlook();
  ecgs.push(ecg);
  location.replace("#" + ecgs.map((one) => one.id).join("+"));
  layouts();
  $("ecgs").replaceChildren(...ecgs.map((one) => one.box || panel(one)));
  place(ecg, svg);
  if (ecgs.length > 1) place(ecgs[0]); // it is narrower now
  mark();
  if (narrow.matches) $("list").open = false;
  document.title = `${ecgs.map((one) => one.about.name).join(", ")} · ecgbyte`;
  await asked;
  if (about.model) await converse({ do: "open", record: id, conversation: beside ? talk : null });
}

function panel(ecg) {
  const told = ecg.about;
  ecg.scroll = make("div", { className: "scroll", tabIndex: 0, role: "group" });
  ecg.scroll.setAttribute("aria-label", `Sheet of ${told.name}`);
  ecg.slider = make("input", { type: "range", min: 0, step: "any", oninput: () => later(ecg, Number(ecg.slider.value)) });
  ecg.slider.setAttribute("aria-label", "Second that the sheet begins with");
  ecg.at = make("span");
  ecg.reading = make("select", { hidden: true, onchange: doing(() => read(ecg)) });
  ecg.readingLabel = make("label", { hidden: true }, "The model reads ", ecg.reading);
  const step = (by) => () => later(ecg, ecg.start + by * Number($("seconds").value));
  ecg.time = make("div", { className: "moves" },
    make("button", { type: "button", "aria-label": "Earlier", onclick: step(-1) }, "‹"), ecg.slider,
    make("button", { type: "button", "aria-label": "Later", onclick: step(1) }, "›"), ecg.at);
  ecg.facts = make("dl");
  fact(ecg, "recorded", `${told.leads.length} leads (${told.leads.join(", ")}), ${+told.fs.toFixed(3)} Hz, `
    + `${+told.seconds.toFixed(3)} s${told.start ? ", " + told.start.replace("T", " ") : ""}`);
  if (told.comments.length) fact(ecg, "header (the model is not told)", told.comments.join("\n"));
  ecg.box = make("article", { className: "ecg" },
    make("div", { className: "head" }, make("h2", {}, told.name), ecg.readingLabel,
      make("button", { type: "button", onclick: doing(() => close(ecg)) }, "Close")),
    ecg.scroll, ecg.time, make("details", { className: "facts", open: !narrow.matches },
      make("summary", {}, "About this recording"), ecg.facts));
  ecg.box.setAttribute("aria-label", told.name);
  pan(ecg.scroll);
  ecg.scroll.addEventListener("keydown", (event) => keys(ecg, event));
  ecg.scroll.addEventListener("pointerover", (event) => {
    if (event.target.classList.contains("band")) tell(event.target);
  });
  ecg.scroll.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    magnify(event.deltaY < 0 ? 1 : -1);
  }, { passive: false });
  return ecg.box;
}

function fact(ecg, name, text) {
  ecg.facts.append(make("dt", {}, name), make("dd", {}, text));
}

async function close(ecg) {
  const left = ecgs.filter((one) => one !== ecg);
  if (left.length) return show(left[0].id);
  ecgs = [];
  talk = null;
  stop();
  location.replace("#");
  $("ecgs").replaceChildren(make("p", { className: "empty" }, "Choose a recording, or drop a file on the page."));
  $("log").replaceChildren();
  unlook();
  ready();
  mark();
}

// ---- the sheet

function layouts() {
  const names = [...new Set(ecgs.flatMap((ecg) => ecg.about.drawn))];
  const before = $("layout").value || "3x4";
  const whole = [["3x4", "3 × 4 and rhythm"], ["6x2", "6 × 2"], ["12x1", "12 × 1"]];
  const each = names.map((name) => ["lead " + name, "lead " + name]);
  $("layout").replaceChildren(...[...whole, ...each].map(([value, text]) => make("option", { value }, text)));
  $("layout").value = before;
  if (!$("layout").value) $("layout").value = "3x4";
}

async function sheetOf(ecg) {
  const layout = $("layout").value || "3x4";
  const lead = layout.startsWith("lead ") ? layout.slice(5) : "";
  const there = !lead || !ecg.about || ecg.about.drawn.includes(lead);
  const asked = new URLSearchParams({
    start: ecg.start, seconds: $("seconds").value, speed: $("speed").value, gain: $("gain").value,
    ...(lead && there ? { leads: lead } : { layout: lead ? "12x1" : layout }),
  });
  const text = await (await api(`api/records/${ecg.id}/sheet.svg?${asked}`)).text();
  const drawn = new DOMParser().parseFromString(text, "image/svg+xml").documentElement;
  if (drawn.nodeName !== "svg") throw new Error("The sheet cannot be shown.");
  return document.adoptNode(drawn);
}

function place(ecg, svg = ecg.svg) {
  ecg.svg = svg;
  ecg.scroll.replaceChildren(svg);
  ecg.scroll.classList.remove("busy");
  svg.style.setProperty("--mm", svg.getAttribute("width"));
  const seconds = Number($("seconds").value);
  ecg.slider.max = Math.max(0, ecg.about.seconds - Math.min(seconds, ecg.about.seconds));
  ecg.slider.value = ecg.start;
  ecg.time.hidden = ecg.about.seconds <= seconds * 1.001;
  const end = Math.min(ecg.start + seconds, ecg.about.seconds);
  ecg.at.textContent = `${+ecg.start.toFixed(2)} to ${+end.toFixed(2)} of ${+ecg.about.seconds.toFixed(2)} s`;
  size(ecg);
  overlay(ecg);
  performance.mark("sheet");
}

function size(ecg) {
  ecg.svg.style.setProperty("--px", `${100 * zoom}%`);
}

let sooner = 0;
function later(ecg, start) {
  const most = Math.max(0, ecg.about.seconds - Number($("seconds").value));
  ecg.start = Math.round(1000 * Math.min(Math.max(start, 0), most)) / 1000;
  ecg.slider.value = ecg.start;
  ecg.scroll.classList.add("busy");
  clearTimeout(sooner);
  sooner = setTimeout(doing(() => redraw(ecg)), 60);
}

async function redraw(ecg) {
  const wanted = (ecg.wanted = (ecg.wanted || 0) + 1);
  const svg = await sheetOf(ecg);
  if (wanted === ecg.wanted) place(ecg, svg); // an older answer may come after a newer one
}

const redrawAll = doing(() => Promise.all(ecgs.map((ecg) => {
  ecg.start = Math.min(ecg.start, Math.max(0, ecg.about.seconds - Number($("seconds").value)));
  return redraw(ecg);
})));

function magnify(by) {
  const at = ZOOMS.indexOf(zoom);
  zoom = by === 0 ? 1 : ZOOMS[Math.min(Math.max(at + by, 0), ZOOMS.length - 1)];
  for (const ecg of ecgs) {
    const box = ecg.scroll;
    const [x, y] = [(box.scrollLeft + box.clientWidth / 2) / box.scrollWidth,
      (box.scrollTop + box.clientHeight / 2) / box.scrollHeight];
    size(ecg);
    box.scrollLeft = x * box.scrollWidth - box.clientWidth / 2;
    box.scrollTop = y * box.scrollHeight - box.clientHeight / 2;
  }
}

function pan(box) {
  box.addEventListener("pointerdown", (event) => {
    if (event.pointerType !== "mouse" || event.button || event.target.closest(".caliper")) return;
    const from = [event.clientX + box.scrollLeft, event.clientY + box.scrollTop];
    const move = (next) => box.scrollTo(from[0] - next.clientX, from[1] - next.clientY);
    window.addEventListener("pointermove", move);
    window.addEventListener("pointerup", () => window.removeEventListener("pointermove", move), { once: true });
  });
}

function keys(ecg, event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest(".caliper")) return;
  const acts = {
    "+": () => magnify(1), "=": () => magnify(1), "-": () => magnify(-1), 0: () => magnify(0),
    t: () => $("tokens").click(), c: () => $("calipers").click(),
    "[": () => next(ecg, -1), "]": () => next(ecg, 1),
  };
  if (!ecg.time.hidden && zoom === 1) {
    acts.ArrowLeft = () => later(ecg, ecg.start - 1);
    acts.ArrowRight = () => later(ecg, ecg.start + 1);
  }
  const act = acts[event.key] || acts[event.key.toLowerCase()];
  if (!act) return;
  event.preventDefault();
  act();
}

// ---- what lies on the sheet: what the model reads, tokens, attribution, calipers

function overlay(ecg) {
  for (const old of ecg.svg.querySelectorAll(".over")) old.remove();
  if (ecg.part) {
    const layer = draw(ecg.svg, "g", { class: "over" });
    for (const { lead, x, top, from, to } of stretches(ecg, ecg.part.start, ecg.part.start + ecg.part.seconds)) {
      if (about.tokens.leads.includes(lead)) draw(layer, "path", { class: "reads", fill: "none", d: `M${x(from)} ${top + 0.6}H${x(to)}` });
    }
  }
  if (ecg.looked) shade(ecg);
  if (on.tokens) tokens(ecg).catch(fail);
  if (on.calipers) calipers(ecg);
}

// the parts of the leads on the sheet that lie between two times
function stretches(ecg, begin, end) {
  const speed = Number(ecg.svg.dataset.speed);
  return [...ecg.svg.querySelectorAll("g.lead")].flatMap((group) => {
    const told = group.dataset;
    const start = Number(told.start);
    const from = Math.max(start, begin);
    const to = Math.min(start + Number(told.seconds), end);
    const x = (t) => +(Number(told.x) + (t - start) * speed).toFixed(3);
    return from < to ? [{ group, lead: told.lead, x, from, to, top: Number(told.top), bottom: Number(told.bottom) }] : [];
  });
}

async function tokens(ecg) {
  if (!about.tokens) throw new Error("There is no tokenizer: start the server with a model, or in a work folder.");
  const each = about.tokens.segment_seconds;
  const shown = ecg.svg;
  const first = Math.floor(ecg.start / each + 1e-9);
  const last = Math.min(Math.ceil((ecg.start + Number(shown.dataset.seconds)) / each - 1e-9), ecg.about.segments);
  for (let i = first; i < last; i++) {
    if (!ecg.tokens.has(i)) ecg.tokens.set(i, get(`api/records/${ecg.id}/tokens?segment=${i + 1}`));
    let told;
    try { told = await ecg.tokens.get(i); } catch (error) { ecg.tokens.delete(i); throw error; }
    if (ecg.svg !== shown || !on.tokens) return;
    bands(ecg, told);
  }
}

function bands(ecg, told) {
  const layer = draw(ecg.svg, "g", { class: "over tokens" });
  for (const { lead, x, from, to, top, bottom } of stretches(ecg, told.start, told.start + told.seconds)) {
    const row = told.leads.indexOf(lead);
    for (const [id, own, start, stop, low, high] of told.spans) {
      const a = told.start + start / told.fs;
      const b = told.start + stop / told.fs;
      if (own !== row || b <= from || a >= to) continue;
      const left = x(Math.max(a, from));
      const band = draw(layer, "rect", {
        class: `band c${id % 6}`, x: left, y: top, width: +(x(Math.min(b, to)) - left).toFixed(3), height: bottom - top,
      });
      band.dataset.token = id;
      band.told = `token ${id} on ${lead}: ${told.letters[id]}, ${+(1000 * (b - a)).toFixed(1)} ms `
        + `(${a.toFixed(3)} to ${b.toFixed(3)} s), ${low.toFixed(2)} to ${high.toFixed(2)} mV`;
    }
  }
  // calipers and traces stay on top
  for (const group of ecg.svg.querySelectorAll("g.lead, .calipers")) ecg.svg.append(group);
  for (const group of ecg.svg.querySelectorAll("g.lead")) group.style.pointerEvents = "none";
}

function tell(band) {
  for (const other of document.querySelectorAll(".band.chosen")) other.classList.remove("chosen");
  band.classList.add("chosen");
  $("token").textContent = band.told;
}

function next(ecg, by) {
  const every = [...ecg.svg.querySelectorAll(".band")];
  if (!every.length) return;
  const at = every.findIndex((band) => band.classList.contains("chosen"));
  const band = every[(at + by + every.length) % every.length];
  tell(band);
  band.scrollIntoView({ block: "nearest", inline: "nearest" });
}

function shade(ecg) {
  const { looked } = ecg;
  const most = Math.max(...looked.shares.flat()) || 1;
  const layer = draw(ecg.svg, "g", { class: "over looked" });
  const whole = looked.start + looked.cell_seconds * looked.shares[0].length;
  for (const { lead, x, from, to, top, bottom } of stretches(ecg, looked.start, whole)) {
    const shares = looked.shares[looked.leads.indexOf(lead)];
    if (!shares) continue;
    shares.forEach((share, i) => {
      const a = looked.start + i * looked.cell_seconds;
      const b = a + looked.cell_seconds;
      if (share < 0.01 * most || b <= from || a >= to) return;
      const left = x(Math.max(a, from));
      draw(layer, "rect", {
        class: "share", x: left, y: top, width: x(Math.min(b, to)) - left, height: bottom - top,
        "fill-opacity": (0.85 * share / most).toFixed(3),
      });
    });
  }
  for (const group of ecg.svg.querySelectorAll("g.lead")) ecg.svg.append(group);
}

function calipers(ecg) {
  const box = ecg.svg.viewBox.baseVal;
  if (!ecg.at2) ecg.at2 = [[0.3, 0.35], [0.3, 0.35]].map(([u, v], i) => [Math.round(u * box.width) + 25 * i, Math.round(v * box.height)]);
  const layer = draw(ecg.svg, "g", { class: "over calipers" });
  ecg.at2.forEach((at, i) => {
    at[0] = Math.min(at[0], box.width);
    at[1] = Math.min(at[1], box.height);
    const one = draw(layer, "g", { class: "caliper", tabindex: 0, role: "slider", "aria-label": `Caliper ${i + 1}` });
    draw(one, "rect", { x: -2.5, y: -box.height, width: 5, height: 2 * box.height });
    draw(one, "line", { x1: 0, x2: 0, y1: -box.height, y2: box.height });
    draw(one, "line", { x1: -6, x2: 6, y1: 0, y2: 0 });
    draw(one, "text", { x: 1, y: -1, "font-size": 4 }, String(i + 1));
    const move = (x, y) => {
      at[0] = Math.min(Math.max(x, 0), box.width);
      at[1] = Math.min(Math.max(y, 0), box.height);
      one.setAttribute("transform", `translate(${at[0]} ${at[1]})`);
      measure(ecg, one);
    };
    one.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      event.stopPropagation();
      one.focus();
      one.setPointerCapture(event.pointerId);
      const scale = box.width / ecg.svg.getBoundingClientRect().width;
      const from = [at[0] - event.clientX * scale, at[1] - event.clientY * scale];
      one.onpointermove = (to) => move(from[0] + to.clientX * scale, from[1] + to.clientY * scale);
      one.onpointerup = () => { one.onpointermove = null; };
    });
    one.addEventListener("keydown", (event) => {
      const by = event.shiftKey ? 0.05 : 0.5;
      const to = { ArrowLeft: [-by, 0], ArrowRight: [by, 0], ArrowUp: [0, -by], ArrowDown: [0, by] }[event.key];
      if (!to) return;
      event.preventDefault();
      move(at[0] + to[0], at[1] + to[1]);
    });
    move(...at);
  });
}

function measure(ecg, one) {
  const [[x, y], [u, v]] = ecg.at2;
  const ms = 1000 * Math.abs(x - u) / Number(ecg.svg.dataset.speed);
  const rate = ms >= 1 ? `, ${Math.round(60000 / ms)} a minute` : "";
  const text = `${Math.round(ms)} ms${rate}, ${(Math.abs(y - v) / Number(ecg.svg.dataset.gain)).toFixed(2)} mV`;
  $("measure").textContent = `Calipers: ${text}`;
  one.setAttribute("aria-valuetext", text);
  one.setAttribute("aria-valuenow", Math.round(ms));
}

function toggle(name) {
  on[name] = !on[name];
  $(name).setAttribute("aria-pressed", String(on[name]));
  $(name === "tokens" ? "token" : "measure").hidden = !on[name];
  if (name === "tokens") $("token").textContent = on.tokens ? "Point at a token, or press ] on the sheet." : "";
  ecgs.forEach(overlay);
}

// ---- the conversation

async function converse(told) {
  $("state").textContent = "The model reads the ECG …";
  try {
    const state = await post("api/conversation", told);
    talk = state.conversation;
    state.ecgs.forEach((one, i) => {
      const ecg = ecgs.find((other) => other.id === one.record);
      if (!ecg) return;
      ecg.part = one;
      ecg.reading.replaceChildren(...Array.from({ length: one.segments }, (_, k) => {
        const from = k * one.seconds;
        return make("option", { value: k + 1 }, `${+from.toFixed(2)} to ${+(from + one.seconds).toFixed(2)} s`);
      }));
      ecg.reading.value = one.segment;
      ecg.reading.hidden = ecg.readingLabel.hidden = false;
      ecg.reading.disabled = i !== state.ecgs.length - 1; // as in chat: of the one opened last
      for (const name of ["heart rate", "read"]) {
        [...ecg.facts.children].filter((child) => child.textContent === name).forEach((child) => {
          child.nextSibling.remove();
          child.remove();
        });
        if (one.facts[name]) fact(ecg, name, one.facts[name]);
      }
      overlay(ecg);
    });
    state.unlike.forEach((line) => note(line, "bad"));
    const many = state.ecgs.length > about.model.most_ecgs;
    $("state").textContent = (state.ecgs.length > 1 ? "Questions are about both ECGs, in this order. " : "")
      + (state.ecgs.length < ecgs.length ? `Questions are about ${state.ecgs[0].name} alone. ` : "")
      + (many ? "The model was not trained on questions about so many." : "")
      + (about.model.keeps_context || many ? "" : "Each question is asked by itself: the model was trained so.");
  } catch (error) {
    talk = null;
    $("state").textContent = error.message;
  }
  ready();
}

async function read(ecg) {
  stop();
  unlook();
  await converse({ do: "segment", conversation: talk, number: Number(ecg.reading.value) });
  note("Another stretch is read; what was said before is forgotten.");
  later(ecg, ecg.part.start);
}

function ready() {
  const can = Boolean(talk);
  for (const id of ["question", "clear", "save"]) $(id).disabled = !can;
  $("send").disabled = !can || Boolean(asking);
  $("stop").hidden = !asking;
  const answered = can && !asking && $("log").querySelector(".a:not(.empty)");
  $("looked").disabled = $("method").disabled = !answered;
}

function note(text, kind = "note") {
  $("log").append(make("p", { className: kind }, text));
  $("log").scrollTop = $("log").scrollHeight;
}

async function ask(question) {
  const told = make("p", { className: "a" });
  $("log").append(make("p", { className: "q" }, question), told);
  unlook();
  asking = talk;
  ready();
  told.textContent = "…";
  let text = "";
  let over = false;
  try {
    const answer = await send("api/ask", { conversation: talk, question, stream: true });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      let part;
      try { part = await reader.read(); } catch { part = { done: true }; }
      if (part.done) break;
      const lines = (rest + part.value).split("\n\n");
      rest = lines.pop();
      for (const line of lines) {
        const event = JSON.parse(line.slice("data: ".length));
        if (event.piece !== undefined) told.textContent = text += event.piece;
        if (event.error) throw new Error(event.error);
        if (event.done) {
          over = true;
          told.textContent = event.done.answer || "(no answer)";
          told.classList.toggle("empty", !event.done.answer);
          const sure = event.done.probability;
          const said = [
            ...(event.done.stopped ? ["stopped"] : []),
            ...(event.done.certainty ? [event.done.certainty]
              : typeof sure === "number" ? [`probability of this answer ${(100 * sure).toFixed(0)} %`] : []),
            `${event.done.seconds.toFixed(2)} s`,
          ];
          if (told.isConnected) note(said.join(" · "));
        }
      }
    }
    if (!over) throw new Error("The server has stopped in the middle of this answer: it is not whole. Start `ecgbyte serve` again.");
  } catch (error) {
    const shown = told.isConnected; // not if another ECG was opened meanwhile
    if (!text) told.remove();
    if (shown) note(error.message, "bad");
  }
  asking = null;
  ready();
  $("log").scrollTop = $("log").scrollHeight;
}

function stop() {
  if (asking) post("api/stop", { conversation: asking }).catch(fail);
}

function unlook() {
  $("drew").hidden = true;
  for (const ecg of ecgs) {
    if (ecg.looked) { ecg.looked = null; overlay(ecg); }
  }
}

async function look() {
  $("drew").replaceChildren(make("p", {}, "Asking what the answer drew on …"));
  $("drew").hidden = false;
  let told;
  try { told = await post("api/attribution", { conversation: talk, method: $("method").value }); } catch (error) {
    $("drew").hidden = true;
    throw error;
  }
  const ecg = ecgs.findLast((one) => one.id === told.record);
  if (ecg) { ecg.looked = told; overlay(ecg); }
  const most = Math.max(...told.words.map(([, value]) => value), 1e-9);
  const words = told.words.map(([word, value]) => {
    const bar = make("i");
    bar.style.height = `${(28 * value / most).toFixed(1)}px`;
    return make("span", { className: "word", title: `${(100 * value).toFixed(1)} %` }, bar, word.replaceAll(" ", "\u00a0"));
  });
  const on_text = told.on_text === null ? [] : [make("p", {}, `${(100 * told.on_text).toFixed(0)} % of it is on the question:`)];
  $("drew").replaceChildren(
    make("p", {}, make("b", {}, `What “${told.answer}” drew on (${told.method})`)),
    make("p", {}, told.verdict), ...on_text, make("div", { className: "words" }, ...words));
}

// ---- files

async function take(files) {
  let into = "";
  let found = [];
  if (!files.length) return;
  for (const file of files) {
    if (file.size > about.upload_bytes) throw new Error(`${file.name} is too large: ${about.upload_bytes >> 20} MB at most.`);
  }
  for (const file of files) {
    const name = encodeURIComponent(file.name);
    const taken = await (await api(`api/upload/${name}${into && "?into=" + into}`, { method: "PUT", body: file })).json();
    into = taken.into;
    found = taken.records;
  }
  if (!found.length) throw new Error("That is no recording: a WFDB record needs its header (.hea) and its signal files together.");
  $("find").value = "";
  await list();
  await show(found[0].id);
}

// ---- the start

function listen() {
  for (const id of ["layout", "speed", "gain", "seconds"]) $(id).onchange = redrawAll;
  $("in").onclick = () => magnify(1);
  $("out").onclick = () => magnify(-1);
  $("fit").onclick = () => magnify(0);
  $("tokens").onclick = () => toggle("tokens");
  $("calipers").onclick = () => toggle("calipers");
  $("print").onclick = () => print();
  $("more").onclick = doing(() => list(true));
  let typing = 0;
  $("find").oninput = () => {
    clearTimeout(typing);
    typing = setTimeout(doing(() => list()), 150);
  };
  $("path-form").onsubmit = doing(async (event) => {
    event.preventDefault();
    if (!$("find").value.trim()) return list(false, true); // new files, too
    const { id } = await get(`api/records?path=${encodeURIComponent($("find").value.trim())}`);
    await show(id);
  });
  $("ask").onsubmit = doing(async (event) => {
    event.preventDefault();
    const question = $("question").value.trim();
    if (!question || asking || !talk) return;
    $("question").value = "";
    await ask(question);
  });
  $("question").onkeydown = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $("ask").requestSubmit();
  };
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") stop(); });
  $("stop").onclick = stop;
  $("looked").onclick = doing(look);
  $("clear").onclick = doing(async () => {
    stop();
    if (ecgs.length > 1) return show(ecgs.at(-1).id);
    $("log").replaceChildren();
    unlook();
    await converse({ do: "clear", conversation: talk });
  });
  $("save").onclick = () => { location.href = `api/save?conversation=${talk}`; };
  $("files").onchange = doing(async () => {
    await take([...$("files").files]);
    $("files").value = "";
  });
  let over = 0;
  document.addEventListener("dragenter", () => { over += 1; document.body.classList.add("over"); });
  document.addEventListener("dragleave", () => { if (--over <= 0) document.body.classList.remove("over"); });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", doing(async (event) => {
    event.preventDefault();
    over = 0;
    document.body.classList.remove("over");
    await take([...event.dataTransfer.files]);
  }));
}

async function start() {
  listen();
  layouts();
  const wanted = location.hash.slice(1).split("+").filter(Boolean);
  const [told, first] = [get("api"), wanted.length ? null : list().catch(fail)];
  const shown = (async () => {
    if (!wanted.length) {
      await first;
      const open = document.querySelector("#records .open");
      if (open) wanted.push(open.dataset.id);
    }
    for (const [i, id] of wanted.entries()) await show(id, i > 0);
  })();
  shown.catch(fail);
  about = await told;
  $("notice").textContent = about.notice;
  $("model").textContent = about.model
    ? `${about.model.folder}, from ${about.model.base}` : "No model is open: the page shows ECGs only.";
  if (!about.model) $("state").textContent = "There is no model to ask: start `ecgbyte serve --model FOLDER`.";
  $("tokens").disabled = !about.tokens;
  $("method").replaceChildren(...Object.keys(about.methods).map((name) => make("option", {}, name)));
  known();
  await shown.catch(() => {});
  started = true;
  if (first) thumbnails();
  else await list();
}

start().catch(fail);
