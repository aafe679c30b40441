"use strict";
// A model's text is only ever set as the text of an element, so it can never become markup.

const byId = (id) => document.getElementById(id);

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

async function unpacked(id) {
  const letters = atob(byId(id).textContent);
  // Uint8Array.from takes seconds for a long text.
  const packed = new Uint8Array(letters.length);
  for (let at = 0; at < letters.length; at++) packed[at] = letters.charCodeAt(at);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

// Append `text` to `parent`, with all occurrences of `wanted` marked.
function appendMarked(parent, text, wanted) {
  if (!wanted) {
    parent.append(document.createTextNode(text));
    return;
  }
  const lower = text.toLowerCase();
  let from = 0;
  // Lower case may have another length in a few scripts. Then nothing is marked.
  for (let at = lower.length === text.length ? lower.indexOf(wanted) : -1; at >= 0; at = lower.indexOf(wanted, from)) {
    parent.append(document.createTextNode(text.slice(from, at)), element("mark", text.slice(at, at + wanted.length)));
    from = at + wanted.length;
  }
  parent.append(document.createTextNode(text.slice(from)));
}

function marked(tag, text, wanted) {
  const made = element(tag);
  appendMarked(made, text, wanted);
  return made;
}

function folded(title, content, isOpen) {
  const details = element("details");
  details.open = isOpen;
  details.append(element("summary", title), content);
  return details;
}

const contains = (text, wanted) => (text ?? "").toLowerCase().includes(wanted);

function addOption(id, value, text) {
  const option = element("option", text ?? value);
  option.value = value;
  byId(id).append(option);
}

// Sort a table by a column: by numbers if all known cells begin with one. Unknown cells count as lower than all numbers.
function sortTable(table, column, header) {
  const rising = header.getAttribute("aria-sort") === "descending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", rising ? "ascending" : "descending");
  // A row whose figures are unknown has fewer cells.
  const text = (row) => row.cells[column]?.textContent ?? "";
  const number = (row) => parseFloat(text(row).replace("<", ""));
  const rows = [...table.tBodies[0].rows];
  const isNumeric = rows.every((row) => ["", "-", "unknown"].includes(text(row)) || !Number.isNaN(number(row)));
  const value = (row) => (Number.isNaN(number(row)) ? -Infinity : number(row));
  // Equal infinities have no difference.
  const order = (a, b) => (isNumeric ? value(a) - value(b) || 0 : text(a).localeCompare(text(b)));
  table.tBodies[0].append(...rows.sort((a, b) => (rising ? order(a, b) : order(b, a))));
}

function makeSortable(table) {
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    header.querySelector("button").addEventListener("click", () => sortTable(table, column, header));
  });
}

// Filters and position are kept in the URL's fragment, so that a link leads to what is shown.
const fragment = () => Object.fromEntries(new URLSearchParams(location.hash.slice(1)));

function keepInFragment(values) {
  const kept = Object.entries(values).filter(([, value]) => value !== undefined && value !== "");
  history.replaceState(null, "", `#${new URLSearchParams(kept)}`);
}

// Read or set the inputs of the filters, given their ids by name. A checkbox is "1" or empty.
function filterValues(filters) {
  const value = (input) => (input.type === "checkbox" ? (input.checked ? "1" : "") : input.value);
  return Object.fromEntries(Object.entries(filters).map(([name, id]) => [name, byId(id) ? value(byId(id)) : ""]));
}

function setFilters(filters, values) {
  for (const [name, id] of Object.entries(filters)) {
    const input = byId(id);
    if (!input || values[name] === undefined) continue;
    if (input.type === "checkbox") input.checked = values[name] !== "";
    else input.value = values[name];
    // A select without this option would show nothing.
    if (input.tagName === "SELECT" && input.selectedIndex < 0) input.selectedIndex = 0;
  }
}

function onKeys(actions) {
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (actions[event.key]) actions[event.key]();
  });
}

// Answers of evaluations.

const VERDICTS = { right: "right", partly: "partly right", wrong: "wrong", none: "no answer found", error: "not judged" };
const tokensOf = (answer) => (answer.tokens === null ? "unknown number of tokens" : `${answer.tokens} tokens`);

// One line of at most `length` characters.
function oneLine(text, length) {
  const line = text.slice(0, 4 * length).replace(/\s+/g, " ").trim();
  return line.length > length ? `${line.slice(0, length)}…` : line;
}

function difficultyOf(problem) {
  return Object.entries(problem.difficulty).map(([name, value]) => `${name} ${+value.toPrecision(4)}`).join(", ");
}

// The lowest number orders problems of one dataset, which share their quantities.
const compareDifficulty = (a, b) => {
  const [x, y] = [Object.values(a.difficulty), Object.values(b.difficulty)];
  const at = x.findIndex((value, position) => value !== y[position]);
  return at < 0 ? x.length - y.length : x[at] - (y[at] ?? -Infinity);
};

function answerFacts(answer) {
  const facts = [`score ${answer.score.toFixed(2)}`, tokensOf(answer)];
  if (answer.cut) facts.push("cut off");
  if (answer.error) facts.push(answer.error);
  return facts.join(" · ");
}

// The extracted answer, the think part folded, and the rest of the completion.
function appendAnswer(shown, answer, wanted) {
  const extracted = element("div", answer.answer === null ? "no answer found" : "extracted answer: ", "short");
  if (answer.answer !== null) appendMarked(extracted, answer.answer, wanted);
  shown.append(extracted);
  if (answer.completion === null) return;
  const end = answer.completion.lastIndexOf("</think>");
  const said = answer.completion.slice(end < 0 ? 0 : end + 8);
  if (end >= 0) {
    const thought = answer.completion.slice(0, end + 8);
    const isOpen = said.trim() === "" || (wanted !== "" && contains(thought, wanted));
    shown.append(folded("think part", marked("pre", thought, wanted), isOpen));
  }
  const rest = marked("pre", said, wanted);
  rest.classList.add("completion-text");
  shown.append(rest);
}
