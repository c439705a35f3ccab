"use strict";
const drop = document.getElementById("drop"), said = document.getElementById("said"), list = document.getElementById("read");

function element(tag, text, kind) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function show(file, own) {
  const item = element("li"), picture = element("img"), words = element("div");
  picture.src = URL.createObjectURL(file);
  picture.alt = own.text ?? "a picture that was not read";
  picture.onload = () => URL.revokeObjectURL(picture.src);
  if (own.error) {
    words.append(element("span", `${own.error.kind}: ${own.error.detail}`, "fault"));
  } else {
    const text = element("b");
    for (const [character, sure] of own.characters) text.append(element("span", character, sure < 0.9 ? "unsure" : ""));
    if (!own.text) text.append("(nothing)");
    words.append(text, element("small", `${(100 * own.confidence).toFixed(1)} % sure of all of it`));
  }
  words.append(element("small", own.name ?? file.name ?? ""));
  item.append(picture, words);
  list.prepend(item);
}

async function read(files) {
  if (!files.length) return;
  said.textContent = "";
  const form = new FormData(), token = document.getElementById("token").value;
  for (const file of files) form.append("pictures", file, file.name || "pasted");
  try {
    const answer = await fetch("v1/read", { method: "POST", body: form, headers: token ? { Authorization: `Bearer ${token}` } : {} });
    const found = await answer.json();
    if (found.readings) found.readings.forEach((own, i) => show(files[i], own));
    else said.textContent = found.error ? found.error.detail : `the server said ${answer.status}`;
  } catch (error) {
    said.textContent = "the server cannot be reached";
  }
}

document.getElementById("files").addEventListener("change", event => { read([...event.target.files]); event.target.value = ""; });
drop.addEventListener("dragover", event => { event.preventDefault(); drop.classList.add("over"); });
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
document.addEventListener("dragover", event => event.preventDefault());
document.addEventListener("drop", event => {
  event.preventDefault();
  drop.classList.remove("over");
  read([...event.dataTransfer.files]);
});
document.addEventListener("paste", event => read([...event.clipboardData.files]));
