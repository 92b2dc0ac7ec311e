// Sends pictures to POST classify, a few at a time, and shows each answer. Whatever a server or a file is called goes
// into the page as text.
"use strict";

const MOST_IN_FLIGHT = 4;
const LONGEST_WAIT = 120_000; // milliseconds
const MOST_CLASSES = Number(document.body.dataset.mostClasses);
const MOST_ANSWERS = Number(document.body.dataset.mostAnswers);
const BACKENDS = new Map(Object.entries(JSON.parse(document.body.dataset.backends)));
const CLASSIFY = new URL("classify", document.baseURI);
// Control characters, and those that change the direction of the text after them: shown as escapes.
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g;

const answers = document.getElementById("answers");
const waiting = []; // cards, in the order in which they are asked
let inFlight = 0;

function visible(text) {
  return String(text).replace(UNSEEN, (letter) => "\\u" + letter.charCodeAt(0).toString(16).padStart(4, "0"));
}

function put(card, selector, text) {
  const element = card.item.querySelector(selector);
  element.textContent = visible(text);
  return element;
}

function notice(text) {
  document.getElementById("notice").textContent = text;
}

function add(parent, tag, kind, text = "") {
  const element = document.createElement(tag);
  element.className = kind;
  element.textContent = visible(text);
  parent.append(element);
  return element;
}

// For screen readers: a log, so that answers that come together are all read out.
function say(card, words) {
  const log = document.getElementById("said");
  add(log, "p", "", `${card.file.name}: ${words}`);
  if (log.children.length > MOST_ANSWERS) log.firstElementChild.remove();
}

function percent(share) {
  if (share > 0 && share < 0.00005) return "<0.01%";
  return `${((share < 1 ? Math.min(share, 0.9999) : share) * 100).toFixed(2)}%`;
}

function duration(milliseconds) {
  return milliseconds < 1000 ? `${milliseconds.toFixed(1)} ms` : `${(milliseconds / 1000).toFixed(2)} s`;
}

function pictures(number) {
  return number === 1 ? "1 picture" : `${number} pictures`;
}

// Takes files of a choice, a drop or the clipboard. Answers that are awaited stay; the oldest others make room.
function take(files) {
  const room = MOST_ANSWERS - answers.querySelectorAll("[aria-busy=true]").length;
  const taken = files.slice(0, room);
  const left = files.length - taken.length;
  notice(left ? `${pictures(taken.length)} of ${files.length} taken: ${MOST_ANSWERS} can wait at once.` : "");
  taken.forEach(enter);
  const done = [...answers.querySelectorAll("[aria-busy=false]")];
  done.slice(Math.max(0, done.length - (answers.children.length - MOST_ANSWERS))).forEach((item) => {
    URL.revokeObjectURL(item.querySelector("img").src);
    item.remove();
  });
  ask();
}

function enter(file) {
  const item = document.getElementById("answer").content.firstElementChild.cloneNode(true);
  const card = { file, item };
  const image = item.querySelector("img");
  image.addEventListener("error", () => {
    image.hidden = true;
    item.querySelector(".placeholder").hidden = false;
  });
  image.src = URL.createObjectURL(file);
  put(card, ".name", file.name).title = visible(file.name);
  item.querySelector(".again").addEventListener("click", () => {
    item.querySelector(".failure").hidden = true;
    queue(card);
    ask();
  });
  queue(card);
  answers.prepend(item);
}

function queue(card) {
  card.item.setAttribute("aria-busy", "true");
  put(card, ".state", "Waiting").hidden = false;
  waiting.push(card);
}

function ask() {
  while (inFlight < MOST_IN_FLIGHT && waiting.length) {
    const card = waiting.shift();
    inFlight += 1;
    put(card, ".state", "Asking the model");
    send(card)
      .catch((error) => fail(card, `Expected an answer as this page knows it. Received: another (${error.message}).`))
      .finally(() => {
        card.item.setAttribute("aria-busy", "false");
        card.item.querySelector(".state").hidden = true;
        inFlight -= 1;
        ask();
      });
  }
}

async function send(card) {
  try {
    await card.file.slice(0, 1).arrayBuffer();
  } catch {
    return fail(card, "Expected a picture's file. Received: what this browser cannot read, such as a folder.");
  }
  const url = new URL(CLASSIFY);
  url.searchParams.set("top_k", MOST_CLASSES);
  const start = performance.now();
  let response, body;
  try {
    response = await fetch(url, {
      method: "POST",
      body: card.file,
      headers: { "Content-Type": "application/octet-stream" },
      signal: AbortSignal.timeout(LONGEST_WAIT),
    });
    body = await response.text();
  } catch (error) {
    return fail(card, await unreachable(error), true);
  }
  const milliseconds = performance.now() - start;
  const answer = parsed(body);
  if (response.ok) return show(card, answer, milliseconds);
  const wait = response.headers.get("Retry-After");
  const words = answer?.error ?? `The server answered with status ${response.status} and no reason.`;
  const isTemporary = response.status >= 500 || response.status === 408;
  return fail(card, wait ? `${words} The server asks to wait ${wait} s.` : words, isTemporary);
}

function parsed(body) {
  try {
    return JSON.parse(body);
  } catch {
    return null;
  }
}

// Why there is no answer: a server that ends a connection early, as it may for a large file, is still there.
async function unreachable(error) {
  if (error.name === "TimeoutError") return `Expected an answer within ${duration(LONGEST_WAIT)}. Received: none.`;
  try {
    await fetch(document.baseURI, { method: "HEAD", cache: "no-store", signal: AbortSignal.timeout(5000) });
  } catch {
    return `Server not reachable: nothing answers at ${location.host}. Is it still running?`;
  }
  return "The server closed the connection before it answered. The file may be larger than it takes.";
}

function fail(card, words, again = false) {
  put(card, ".error", words);
  card.item.querySelector(".again").hidden = !again;
  card.item.querySelector(".failure").hidden = false;
  say(card, words);
}

function show(card, answer, roundTrip) {
  const { classes, answered_by: by, milliseconds: times } = answer;
  const [best] = classes;
  const { item } = card;
  put(card, ".pixels", `${answer.width} × ${answer.height} pixels`);
  put(card, ".best-class", best ? best.class : "No class is likely enough").title = best ? visible(best.class) : "";
  put(card, ".best-share", best ? percent(best.probability) : "");
  item.querySelector("img").alt = visible(`Preview of ${card.file.name}`);

  const precision = `${by.precision.toUpperCase()} on ${BACKENDS.get(by.backend) ?? by.backend}`;
  put(card, ".badge", `${precision}, verdict: ${by.verdict}`).classList.add(by.verdict.replaceAll(" ", ""));
  put(card, ".answering", by.file);
  put(card, ".alert", `${by.file} answers although its verdict is: ${by.verdict}.`).hidden = by.verdict === "pass";

  const bars = item.querySelector(".bars");
  bars.replaceChildren(...classes.map((each) => row(each, by.precision)));
  const list = item.querySelector(".times");
  list.replaceChildren();
  const computed = answer.batch > 1 ? `compute, batch of ${answer.batch}` : "compute";
  for (const [name, value] of [
    ["decode", times.decode], ["wait in the queue", times.queue], [computed, times.compute],
    ["total on the server", times.total], ["round trip", roundTrip],
  ]) {
    const pair = add(list, "div", "");
    add(pair, "dt", "", name);
    add(pair, "dd", "", duration(value));
  }
  item.querySelector(".result").hidden = false;
  say(card, best ? `${best.class}, ${percent(best.probability)}` : "no class is likely enough");
}

function row(each, precision) {
  const line = document.createElement("li");
  add(add(line, "span", "label"), "bdi", "class", each.class).title = visible(each.class);
  add(line, "span", "value", percent(each.probability));
  const track = add(line, "span", "track");
  track.setAttribute("aria-hidden", "true");
  const bar = add(track, "span", "bar");
  bar.classList.add(precision);
  bar.style.width = `${each.probability * 100}%`;
  return line;
}

function dragged(event) {
  event.preventDefault();
  document.body.classList.toggle("dragging", event.dataTransfer.types.includes("Files"));
}

function dropped(event) {
  event.preventDefault();
  document.body.classList.remove("dragging");
  const files = [...event.dataTransfer.files];
  if (files.length) take(files);
  else notice("Expected a picture's file. Received: a link or text. Save the picture first.");
}

document.getElementById("address").textContent = CLASSIFY.href;
document.getElementById("files").addEventListener("change", (event) => {
  take([...event.target.files]);
  event.target.value = ""; // so that the same file can be chosen again
});
for (const kind of ["dragenter", "dragover"]) window.addEventListener(kind, dragged);
window.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
window.addEventListener("drop", dropped);
document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (files.length) take(files);
});
