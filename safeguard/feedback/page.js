"use strict";
// One person labels pictures, and ranks them (rank.js). What is shown as saved is what the server has said it keeps.

const $ = (id) => document.getElementById(id);
const KEPT = sessionStorage; // of this tab alone, and through a reload
const SAID = { yes: "Yes", no: "No", unsure: "Unsure" };

if (location.hash.length > 1) {
  KEPT.setItem("token", location.hash.slice(1));
  history.replaceState(null, "", location.pathname); // so that no history and no screenshot holds the key
}

let state = { pictures: [], group: [], last: {} };
let place = 0; // of the picture that is asked about
let view = KEPT.getItem("view") === "rank" ? "rank" : "label";
const failed = new Map(); // what could not be saved: picture to reason

// Talking to the server

async function ask(path, body) {
  const headers = { "X-Safeguard-Token": KEPT.getItem("token") ?? "" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let reply;
  try {
    reply = await fetch(path, { method: body === undefined ? "GET" : "POST", headers, body: body && JSON.stringify(body) });
  } catch {
    throw new Error("the server does not answer; is safeguard feedback serve still running?");
  }
  if (reply.ok) return reply;
  const told = await reply.json().catch(() => ({}));
  throw new Error(told.error ?? `the server answered ${reply.status}`);
}

let queue = Promise.resolve();

function send(path, body) {
  const sent = queue.then(() => ask(path, body)).then((reply) => reply.json());
  queue = sent.catch(() => {}); // one after the other, in the order in which keys were pressed
  return sent;
}

const pictures = new Map(); // digest to the address of its bytes in this tab

function show(img, digest) {
  img.alt = "";
  if (!pictures.has(digest)) {
    pictures.set(digest, ask(`/images/${digest}.png`).then((reply) => reply.blob()).then((blob) => URL.createObjectURL(blob)));
  }
  pictures.get(digest).then(
    (address) => { img.src = address; },
    (fault) => { pictures.delete(digest); complain(`A picture could not be loaded: ${fault.message}`); },
  );
}

const seen = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    seen.unobserve(target);
    show(target, target.dataset.image);
  }
}, { rootMargin: "400px" });

// What the person is told

function complain(text, digest) {
  $("error").hidden = false;
  $("fault").textContent = text;
  $("goto").hidden = digest === undefined;
  $("goto").onclick = () => { choose("label"); focusOn(placeOf(digest)); };
}

function calm() {
  if (failed.size === 0) {
    $("error").hidden = true;
    return;
  }
  const [digest, why] = [...failed].at(-1);
  const what = failed.size === 1 ? "1 answer was not saved" : `${failed.size} answers were not saved`;
  complain(`${what}. Picture ${placeOf(digest) + 1}: ${why}`, digest);
}

function tell(text) {
  $("said").textContent = text;
}

// Labelling

const placeOf = (digest) => state.pictures.findIndex((one) => one.image === digest);
const tiles = () => [...$("grid").querySelectorAll(".tile")];

function drawGrid() {
  $("grid").replaceChildren(...state.pictures.map((picture, at) => {
    const line = document.createElement("li");
    const tile = document.createElement("button");
    const img = document.createElement("img");
    const mark = document.createElement("span");
    tile.className = "tile";
    mark.className = "mark";
    img.dataset.image = picture.image;
    img.alt = "";
    tile.append(img, mark);
    tile.onclick = () => focusOn(at);
    line.append(tile);
    seen.observe(img);
    return line;
  }));
  state.pictures.forEach((_, at) => drawTile(at));
}

function drawTile(at, saving) {
  const { image, answer } = state.pictures[at];
  const tile = tiles()[at];
  const [mark, wrong] = [tile.querySelector(".mark"), failed.has(image)];
  tile.tabIndex = at === place ? 0 : -1;
  tile.toggleAttribute("data-saving", saving !== undefined);
  tile.toggleAttribute("data-failed", wrong);
  if (answer && !wrong) tile.dataset.answer = answer;
  else delete tile.dataset.answer;
  const word = saving !== undefined ? "saving" : wrong ? "not saved" : answer ? SAID[answer] : "";
  mark.textContent = word;
  mark.hidden = word === "";
  tile.setAttribute("aria-label", `Picture ${at + 1} of ${state.pictures.length}, ${word || "not answered"}`);
}

function focusOn(at) {
  if (at < 0 || at >= state.pictures.length) return;
  const all = tiles();
  all[place]?.classList.remove("peek");
  if (all[place]) all[place].tabIndex = -1;
  place = at;
  KEPT.setItem("place", state.pictures[at].image);
  all[at].tabIndex = 0;
  if (view === "label") all[at].focus();
}

function columns() {
  return getComputedStyle($("grid")).gridTemplateColumns.split(" ").length;
}

function nextUnanswered(from) {
  const { length } = state.pictures;
  for (let step = 1; step < length; step += 1) {
    const at = (from + step) % length;
    if (!state.pictures[at].answer && !tiles()[at].hasAttribute("data-saving")) return at;
  }
  return Math.min(from + 1, length - 1);
}

async function answer(said) {
  const at = place;
  const { image } = state.pictures[at];
  failed.delete(image);
  drawTile(at, said);
  focusOn(nextUnanswered(at));
  try {
    take(await send("/api/answer", { concept: state.concept, image, answer: said }));
    tell(`Picture ${at + 1}: ${SAID[said]}, saved`);
  } catch (fault) {
    failed.set(image, fault.message);
    drawTile(at);
  }
  calm();
}

function take(told) {
  const { changed, ...progress } = told;
  state = { ...state, ...progress };
  for (const [digest, said] of Object.entries(changed)) {
    const at = placeOf(digest);
    if (at < 0) continue;
    state.pictures[at].answer = said;
    failed.delete(digest);
    drawTile(at);
  }
  drawProgress();
}

async function undo() {
  await queue; // what was just said has to be known before it can be taken back
  const kind = view === "rank" ? "ranking" : "binary";
  const last = state.last[kind];
  if (!last) return tell("There is nothing to take back");
  try {
    take(await send("/api/undo", { concept: state.concept, judgement: last.judgement }));
    if (kind === "ranking") drawRanking(last.images);
    else focusOn(placeOf(last.images[0]));
    tell("Taken back");
    calm();
  } catch (fault) {
    complain(`It could not be taken back: ${fault.message}`);
  }
}

// The page

function drawProgress() {
  const [all, labels] = [state.pictures.length, view === "label"];
  const done = labels ? state.labelled : all - state.unranked;
  $("bar").max = all;
  $("bar").value = done;
  const more = labels ? "" : `, ${state.rankings} ranking${state.rankings === 1 ? "" : "s"}`;
  $("count").textContent = `${done} of ${all} ${labels ? "labelled" : "ranked"}, ${all - done} left${more}`;
  const question = document.createElement("em");
  question.textContent = state.concept;
  $("question").replaceChildren(labels ? "Does the picture show " : "Which picture shows most of ", question, "?");
  $("about").textContent = `Your answers are kept under the name ${state.who}.`;
  $("ask").textContent = "Choose from most to least";
}

function choose(next) {
  view = next;
  KEPT.setItem("view", view);
  for (const name of ["label", "rank"]) {
    $(name).hidden = name !== view;
    $(`tab-${name}`).setAttribute("aria-selected", String(name === view));
    $(`tab-${name}`).tabIndex = name === view ? 0 : -1;
  }
  drawProgress();
}

function enter(next) {
  choose(next);
  if (view === "label") focusOn(place);
  else $("group").querySelector(".tile")?.focus();
}

function blur(wanted) {
  document.body.classList.toggle("blurred", wanted);
  $("blur").setAttribute("aria-pressed", String(wanted));
  KEPT.setItem("blur", wanted ? "on" : "off");
}

async function load(concept) {
  await queue; // what was said of the concept before
  try {
    const asked = concept ?? KEPT.getItem("concept");
    const reply = await ask(`/api/state${asked ? `?concept=${encodeURIComponent(asked)}` : ""}`);
    state = await reply.json();
  } catch (fault) {
    return complain(`The pictures could not be loaded: ${fault.message}`);
  }
  KEPT.setItem("concept", state.concept);
  failed.clear();
  $("concept").hidden = state.concepts.length < 2;
  $("concept").replaceChildren(...state.concepts.map((one) => new Option(one, one, false, one === state.concept)));
  const before = placeOf(KEPT.getItem("place"));
  drawGrid();
  place = before >= 0 ? before : Math.max(0, state.pictures.findIndex((one) => !one.answer));
  drawRanking(state.group);
  enter(view);
  document.body.dataset.ready = "";
}

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], h: [-1, 0], l: [1, 0], k: [0, -1], j: [0, 1] };
const ANSWERS = { y: "yes", n: "no", u: "unsure" };

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT" || !("ready" in document.body.dataset)) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const inTabs = event.target.role === "tab" && key.startsWith("Arrow");
  let does;
  if (key === "b") does = () => blur(!document.body.classList.contains("blurred"));
  else if (key === "z") does = undo;
  else if (inTabs) does = () => { choose(view === "label" ? "rank" : "label"); $(`tab-${view}`).focus(); };
  else does = view === "label" ? labelKey(key, event) : rankKey(key, event);
  if (!does) return;
  event.preventDefault();
  does();
}

function labelKey(key, event) {
  const inGrid = !event.target.closest("button") || event.target.closest("#grid");
  if (key in MOVES) return () => focusOn(place + MOVES[key][0] + MOVES[key][1] * columns());
  if (key in ANSWERS && !event.repeat) return () => answer(ANSWERS[key]);
  if (key === " " && inGrid) return () => tiles()[place]?.classList.toggle("peek");
  return undefined;
}

function rankKey(key, event) {
  const onButton = event.target.closest("button");
  if (/^[1-9]$/.test(key)) return () => pick(Number(key) - 1);
  if (key === "Backspace") return () => { order = order.slice(0, -1); drawOrder(); };
  if (key === "Enter" && (!onButton || onButton.classList.contains("tile")) && !event.repeat) return save;
  return undefined;
}

addEventListener("keydown", onKey);
$("concept").onchange = (event) => { KEPT.removeItem("place"); load(event.target.value); };
$("tab-label").onclick = () => enter("label");
$("tab-rank").onclick = () => enter("rank");
$("blur").onclick = () => blur(!document.body.classList.contains("blurred"));
$("save").onclick = save;
$("clear").onclick = () => { order = order.slice(0, -1); drawOrder(); };
for (const button of document.querySelectorAll("[data-answer]")) button.onclick = () => answer(button.dataset.answer);
for (const button of document.querySelectorAll(".undo")) button.onclick = undo;
blur(KEPT.getItem("blur") !== "off");
load();
