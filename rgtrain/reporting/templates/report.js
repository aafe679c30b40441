"use strict";
// A model's text is only ever set as the text of an element, so it can never become markup.

const PAGE_SIZE = 25;
const VERDICTS = { right: "right", partly: "partly right", wrong: "wrong", none: "no answer found", error: "not judged" };
const byId = (id) => document.getElementById(id);

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function sortTable(table, column, header) {
  const rising = header.getAttribute("aria-sort") === "descending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", rising ? "ascending" : "descending");
  const value = (row) => row.cells[column].textContent;
  const order = (a, b) => {
    const [x, y] = [parseFloat(value(a)), parseFloat(value(b))];
    return Number.isNaN(x) || Number.isNaN(y) ? value(a).localeCompare(value(b)) : x - y;
  };
  const rows = [...table.tBodies[0].rows].sort((a, b) => (rising ? order(a, b) : order(b, a)));
  table.tBodies[0].append(...rows);
}

function makeTable(table, filter) {
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    header.querySelector("button").addEventListener("click", () => sortTable(table, column, header));
  });
  filter.addEventListener("input", () => {
    const wanted = filter.value.toLowerCase();
    for (const row of table.tBodies[0].rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
}

function showAnswer(answer) {
  const shown = element("details");
  const title = element("summary");
  title.append(element("span", VERDICTS[answer.verdict], `verdict ${answer.verdict}`), element("span", answer.name));
  title.append(element("span", ` · score ${answer.score.toFixed(2)} · ${answer.tokens ?? "unknown number of"} tokens`, "soft"));
  if (answer.cut) title.append(element("span", " · cut off", "soft"));
  if (answer.error) title.append(element("span", ` · ${answer.error}`, "soft"));
  shown.append(title);
  const parts = [["question", answer.question], ["completion", answer.completion], ["extracted answer", answer.answer]];
  parts.push(["reference answer", answer.expected]);
  for (const [name, text] of parts) {
    if (text !== null) shown.append(element("div", name, "soft"), element("pre", text));
  }
  return shown;
}

function browse(answers) {
  let matching = [];
  let numShown = 0;
  const list = byId("answers");
  const showMore = () => {
    list.append(...matching.slice(numShown, numShown + PAGE_SIZE).map(showAnswer));
    numShown = Math.min(numShown + PAGE_SIZE, matching.length);
    byId("more").hidden = numShown === matching.length;
    byId("num-answers").textContent = `${matching.length} of ${answers.length} answers`;
  };
  const filter = () => {
    const [dataset, verdict] = [byId("of-dataset").value, byId("of-verdict").value];
    const text = byId("with-text").value.toLowerCase();
    const contains = (answer) =>
      [answer.question, answer.completion, answer.answer].some((part) => (part ?? "").toLowerCase().includes(text));
    matching = answers.filter(
      (answer) =>
        (dataset === "" || answer.dataset === Number(dataset)) &&
        (verdict === "" || answer.verdict === verdict) &&
        (!byId("cut-off").checked || answer.cut) &&
        (text === "" || contains(answer)),
    );
    numShown = 0;
    list.replaceChildren();
    showMore();
  };
  for (const id of ["of-dataset", "of-verdict", "with-text", "cut-off"]) byId(id).addEventListener("input", filter);
  byId("more").addEventListener("click", showMore);
  filter();
}

async function readAnswers() {
  const packed = Uint8Array.from(atob(byId("data").textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

makeTable(byId("datasets"), byId("find-dataset"));
readAnswers().then(browse, (error) => {
  byId("num-answers").textContent = `the answers could not be read: ${error}`;
});
