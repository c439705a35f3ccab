"use strict";

const NAMES = {
  "0": "zero", "O": "capital o", "o": "small o", "Q": "capital q", "D": "capital d",
  "1": "one", "l": "small L", "I": "capital i", "i": "small i", "|": "bar", "7": "seven", "L": "capital L",
  "2": "two", "Z": "capital z", "z": "small z", "5": "five", "S": "capital s", "s": "small s",
  "6": "six", "G": "capital g", "b": "small b", "8": "eight", "B": "capital b", "9": "nine", "g": "small g", "q": "small q",
};
const UNSURE = 0.9;  // a character that the reader is less sure of is marked
const tab = sessionStorage.tab ??= crypto.getRandomValues(new Uint32Array(4)).join("-");  // a reload is the same tab
const mac = /Mac|iP(hone|ad)/.test(navigator.platform);  // where Alt types letters, and Control is free
const at = (id) => document.getElementById(id);
const pictures = new Map();  // fetched ahead: id -> Image
let queue = [], shown = null, since = 0, busy = false, asked = 3, zoom = 3, state = {};

async function ask(what, body) {
  for (let wait = 250; ; wait = Math.min(2 * wait, 4000)) {
    try {
      const answer = await fetch(what, {
        method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify({tab, ...body}),
      });
      if (answer.status === 404) {
        say("This address is an old one: open the one that recognizer label prints.", true);
        return new Promise(() => {});
      }
      if (answer.status < 500) return {status: answer.status, ...(await answer.json())};
      say("The answer could not be saved: is the disk full? Trying again…", true);
    } catch {  // the server is away: nothing is lost, and it is asked again
      say("Nobody answers: is recognizer label still running? Trying again…", true);
    }
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}

function say(text, wrong = false) {
  at("message").textContent = text;
  at("message").classList.toggle("wrong", wrong);
}

function fetchAhead() {
  for (const p of queue) {
    if (!pictures.has(p.id)) {
      const image = new Image();
      image.src = `picture/${p.id}`;
      pictures.set(p.id, image);
    }
  }
}

async function more() {
  const answer = await ask("next", {});
  queue = answer.pictures.filter((p) => !shown || p.id !== shown.id);
  progress(answer.state);
  fetchAhead();
}

function progress(now) {
  state = now;
  at("bar").max = Math.max(now.total - now.broken, 1);
  at("bar").value = now.answered;
  const left = now.total - now.broken - now.answered, rate = now.a_minute;
  let text = `${now.answered} of ${now.total - now.broken}`;
  if (rate) text += ` · ${rate.toFixed(0)} a minute · ${timeLeft(left / rate)} left`;
  if (now.unread) text += ` · the reader has ${now.unread} to go`;
  if (now.broken) text += ` · ${now.broken} cannot be opened`;
  at("state").textContent = text;
  document.title = `${now.answered} of ${now.total - now.broken}`;
}

function timeLeft(minutes) {
  return minutes < 1 ? "less than a minute" : minutes < 90 ? `${Math.round(minutes)} min` : `${(minutes / 60).toFixed(1)} h`;
}

function show(p, text) {
  shown = p;
  at("work").hidden = !p;
  at("done").hidden = !!p;
  if (!p) return finish();
  const image = pictures.get(p.id), place = at("picture");
  place.onload = () => { zoom = fitting(); scale(); place.style.visibility = "visible"; };
  place.onerror = function gone() {
    if (busy) return setTimeout(gone, 100);
    if (shown === p) {
      once(async () => {
        await forward();
        say(`${p.name} cannot be opened: it is not asked again`, true);
      });
    }
  };
  place.style.visibility = "hidden";  // a browser shows the last picture until this one is there, beside its guess
  place.src = image ? image.src : `picture/${p.id}`;
  at("text").value = text ?? p.label ?? p.guess;
  at("name").textContent = p.name;
  at("sure").textContent = p.confidence === null ? "" : `the reader is ${Math.round(100 * p.confidence)} % sure of ${p.guess || "nothing"}`;
  at("suggest").hidden = !p.suggested;
  at("why").textContent = p.reasons.length ? `Why it is doubted: ${p.reasons.join("; ")}` : "";
  spell();
  at("text").focus();
  at("text").setSelectionRange(at("text").value.length, at("text").value.length);
  since = performance.now();
}

function finish() {
  const usable = state.total - state.broken, open = usable - state.answered;
  at("end").textContent = open ? "Nothing is left for this tab" : usable ? "All pictures are answered" : "No picture can be opened";
  at("after").textContent = open ? `${open} are shown in other tabs, or were a short while ago.`
    : state.answered ? "The labels are in metadata.jsonl beside the pictures. You may close this page and stop the command." : "";
  at("end").focus();  // and not on the button: one Enter too many must take nothing back
  if (open) setTimeout(() => once(async () => { if (!shown) { await more(); if (queue.length) advance(); else finish(); } }), 3000);
}

function advance() {
  say("");
  show(queue.shift() ?? null);
}

async function forward() {  // to the next picture, once this one is done with
  pictures.delete(shown.id);
  shown = null;
  await more();
  advance();
}

function spell() {
  const text = at("text").value, own = shown.characters.map(([c]) => c).join("") === text;
  at("spelt").replaceChildren(...[...text].map((c, i) => {
    const item = document.createElement("li"), letter = document.createElement("b"), name = document.createElement("small");
    letter.textContent = c;
    name.textContent = NAMES[c] ?? (c === " " ? "space" : "\u00a0");
    if (/\p{Nd}/u.test(c)) item.className = "digit";
    if (own && shown.characters[i][1] < UNSURE) {
      item.classList.add("unsure");
      item.title = `the reader is ${Math.round(100 * shown.characters[i][1])} % sure of it`;
      name.textContent += " ?";
    }
    item.append(letter, name);
    return item;
  }));
}

function fitting() {  // as large as was asked for, and the whole picture to be seen
  const room = at("stage").clientWidth - 32;
  return Math.min(asked, Math.max(room / at("picture").naturalWidth, 0.05));
}

function scale() {
  const image = at("picture");
  image.style.width = `${image.naturalWidth * zoom}px`;
  image.style.imageRendering = zoom >= 4 ? "pixelated" : "auto";
}

async function once(work) {  // what is asked for while an answer is on its way to disk waits for no one: it is dropped
  if (busy) return;
  busy = true;
  try { await work(); } finally { busy = false; }
}

const answered = (given) => once(async () => {
  if (!shown) return;
  const own = shown;
  const answer = await ask("answer", {id: own.id, version: own.version, seconds: (performance.now() - since) / 1000, ...given});
  if (answer.status >= 400 && answer.status !== 409) return say(typeof answer.detail === "string" ? answer.detail : "not a label", true);
  await forward();
  if (answer.status === 409) {
    say(answer.label ? `${own.name} was answered in another tab: ${answer.label}` : `${own.name} was answered in another tab`, true);
  }
});

const undo = () => once(async () => {
  const answer = await ask("undo", {});
  progress(answer.state);
  if (!answer.picture) return say("There is nothing to undo in this tab.", true);
  if (shown) queue.unshift(shown);
  queue = queue.filter((p) => p.id !== answer.picture.id);
  const before = typed.get(answer.picture.id);
  show(answer.picture, before);
  say(`Taken back: ${answer.picture.name}`);
});

const typed = new Map();  // what this tab answered, to be shown again where it is taken back
function accept() {
  const text = at("text").value.trim();
  if (!text) return say("Type what it shows, or skip it.", true);
  typed.set(shown.id, text);
  answered({text});
}
function suggest() {
  if (!shown?.suggested) return;
  at("text").value = shown.suggested;
  spell();
  at("text").focus();
}
function resize(factor) {
  asked = zoom = Math.min(Math.max(zoom * factor, 0.1), 12);
  scale();
}

at("form").addEventListener("submit", (event) => { event.preventDefault(); accept(); });
at("text").addEventListener("input", spell);
at("skip").addEventListener("click", () => answered({skip: true}));
at("unreadable").addEventListener("click", () => answered({text: null}));
at("undo").addEventListener("click", undo);
at("back").addEventListener("click", undo);
at("suggest").addEventListener("click", suggest);
at("larger").addEventListener("click", () => resize(1.25));
at("smaller").addEventListener("click", () => resize(0.8));
document.addEventListener("keydown", (event) => {
  if (event.isComposing || event.keyCode === 229) return;  // the key is the input method's
  const keys = {u: () => answered({text: null}), z: undo, s: suggest, "+": () => resize(1.25), "=": () => resize(1.25), "-": () => resize(0.8)};
  const own = (mac ? event.ctrlKey && !event.altKey : event.altKey && !event.ctrlKey) && keys[event.key.toLowerCase()];
  if (event.key === "Enter" && event.repeat) {
    event.preventDefault();  // a key that is held answers one picture, and none that was not looked at
  } else if (event.key === "Escape" && shown) {
    event.preventDefault();
    if (!event.repeat) answered({skip: true});
  } else if (own) {
    event.preventDefault();
    if (!event.repeat || "+=-".includes(event.key)) own();
  }
});
for (const key of mac ? document.querySelectorAll("kbd") : []) key.textContent = key.textContent.replace("Alt", "Ctrl");
once(async () => { await more(); advance(); });
