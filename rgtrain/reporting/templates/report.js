const PAGE_SIZE = 25;
const FILTERS = { dataset: "of-dataset", verdict: "of-verdict", sort: "order", cut: "cut-off", text: "with-text" };
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const numRight = (problem) => problem.answers.filter((answer) => answer.verdict === "right").length;
const scoreOf = (problem) => mean(problem.answers.map((answer) => answer.score));
const lengthOf = (problem) => mean(problem.answers.map((answer) => answer.tokens ?? 0));
const ORDERS = {
  score: (a, b) => scoreOf(a) - scoreOf(b),
  tokens: (a, b) => lengthOf(a) - lengthOf(b),
  difficulty: compareDifficulty,
};

function hasVerdict(problem, verdict) {
  const [right, all] = [numRight(problem), problem.answers.length];
  if (verdict === "right") return right === all;
  if (verdict === "sometimes") return right > 0 && right < all;
  if (verdict === "never") return right === 0;
  return problem.answers.some((answer) => answer.verdict === verdict);
}

function matches(problem, { dataset, verdict, cut, text }) {
  const wanted = text.toLowerCase();
  const answerContains = (answer) => contains(answer.completion, wanted) || contains(answer.answer, wanted);
  return (
    (dataset === "" || problem.dataset === Number(dataset)) &&
    (verdict === "" || hasVerdict(problem, verdict)) &&
    (cut === "" || problem.answers.some((answer) => answer.cut)) &&
    (wanted === "" || contains(problem.question, wanted) || problem.answers.some(answerContains))
  );
}

function rowOf(problem) {
  const row = element("summary");
  const { answers } = problem;
  const [first, right] = [answers[0], numRight(problem)];
  if (answers.length === 1) row.append(element("span", VERDICTS[first.verdict], `verdict ${first.verdict}`));
  else {
    const kind = right === answers.length ? "right" : right ? "partly" : "wrong";
    row.append(element("span", `${right} of ${answers.length} right`, `verdict ${kind}`));
  }
  row.append(` ${problem.name}`);
  const counts = new Map();
  for (const { answer } of answers) counts.set(answer, (counts.get(answer) ?? 0) + 1);
  const extracted = [...counts].sort((a, b) => b[1] - a[1]).map(([answer, count]) => {
    const text = answer === null ? "no answer" : oneLine(answer, 60);
    return count > 1 ? `${text} (${count} times)` : text;
  });
  const shown = extracted.slice(0, 3).join(" | ") + (extracted.length > 3 ? ` | ${extracted.length - 3} others` : "");
  row.append(element("span", ` · ${shown}`, "extracted"));
  if (problem.expected !== null) row.append(element("span", ` · expected ${oneLine(problem.expected, 60)}`, "soft"));
  if (answers.length === 1) row.append(element("span", ` · ${answerFacts(first)}`, "soft"));
  else row.append(element("span", ` · mean score ${scoreOf(problem).toFixed(2)} · ${Math.round(lengthOf(problem))} tokens on average`, "soft"));
  return row;
}

function showProblem(problem, wanted) {
  const shown = element("details");
  shown.id = `problem-${problem.id}`;
  shown.append(rowOf(problem));
  const line = element("p", "", "note");
  const link = element("a", "link to this problem");
  link.href = `#problem=${problem.id}`;
  const difficulty = difficultyOf(problem);
  line.append(`seed ${problem.seed}${difficulty ? ` · difficulty: ${difficulty}` : ""} · `, link);
  shown.append(line);
  if (problem.question !== null) shown.append(element("div", "question", "soft"), marked("pre", problem.question, wanted));
  if (problem.expected !== null) shown.append(element("div", "expected answer", "soft"), element("pre", problem.expected));
  for (const answer of problem.answers) {
    const part = element("div", undefined, "answer-of-problem");
    const title = element("div");
    title.append(element("span", VERDICTS[answer.verdict], `verdict ${answer.verdict}`));
    const number = problem.answers.length > 1 ? `answer ${answer.repeat + 1} · ` : "";
    title.append(element("span", `${number}${answerFacts(answer)}`, "soft"));
    part.append(title);
    appendAnswer(part, answer, wanted);
    shown.append(part);
  }
  return shown;
}

// Spreadsheets take cells that start with these characters for formulas, also after blanks and invisible characters.
const cell = (value) => {
  const text = String(value ?? "");
  return `"${(/^[\s\p{C}]*[=+\-@＝＋－＠]|^[\t\r]/u.test(text) ? `'${text}` : text).replaceAll('"', '""')}"`;
};

function selected(problems, datasets) {
  return problems.flatMap((problem) =>
    problem.answers.map((answer) => ({
      dataset: datasets[problem.dataset],
      problem: problem.id,
      name: problem.name,
      seed: problem.seed,
      repeat: answer.repeat,
      verdict: VERDICTS[answer.verdict],
      score: answer.score,
      tokens: answer.tokens,
      cut_off: answer.cut,
      error: answer.error,
      question: problem.question,
      expected: problem.expected,
      answer: answer.answer,
      completion: answer.completion,
    })),
  );
}

function asCsv(rows) {
  const lines = [Object.keys(rows[0]), ...rows.map((row) => Object.values(row))];
  return lines.map((line) => `${line.map(cell).join(",")}\r\n`).join("");
}

function asText(rows) {
  const words = (row) =>
    Object.entries(row).filter(([, value]) => value !== null).map(([name, value]) => `${name}: ${value}`).join("\n");
  return rows.map(words).join("\n\n");
}

function save(text, type, ending) {
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = `answers.${ending}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Browsers may refuse the clipboard to pages that are opened as files.
    const area = element("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

function browse(problems) {
  const datasets = [...byId("of-dataset").options].slice(1).map((option) => option.textContent);
  const list = byId("answers");
  const numAnswers = (some) => some.reduce((sum, problem) => sum + problem.answers.length, 0);
  let matching = [];
  let [numShown, current] = [0, null];
  const keep = () => keepInFragment({ ...filterValues(FILTERS), problem: current ?? "", from: fragment().from });

  const showMore = (atLeast = 0) => {
    const end = Math.min(matching.length, Math.max(numShown + PAGE_SIZE, atLeast));
    const wanted = byId("with-text").value.toLowerCase();
    const added = matching.slice(numShown, end).map((problem) => {
      const shown = showProblem(problem, wanted);
      shown.firstChild.addEventListener("click", () => {
        current = shown.open ? null : problem.id;
        keep();
      });
      return shown;
    });
    list.append(...added);
    numShown = end;
    byId("more").hidden = numShown === matching.length;
    const [some, all] = [numAnswers(matching), numAnswers(problems)];
    const answers = all > problems.length ? ` (${some} of ${all} answers)` : "";
    byId("num-answers").textContent = `${matching.length} of ${problems.length} problems${answers}`;
    for (const id of ["copy", "save-csv", "save-json"]) byId(id).disabled = matching.length === 0;
  };
  const filter = () => {
    const values = filterValues(FILTERS);
    matching = problems.filter((problem) => matches(problem, values));
    const order = ORDERS[values.sort.replace("-", "")];
    if (order) matching.sort(values.sort.startsWith("-") ? (a, b) => order(b, a) : order);
    [numShown, current] = [0, null];
    byId("copied").textContent = "";
    list.replaceChildren();
    showMore();
  };
  const open = (position) => {
    if (position < 0 || position >= matching.length) return;
    if (position >= numShown) showMore(position + 1 - numShown > PAGE_SIZE ? position + 1 : 0);
    if (current !== null) byId(`problem-${current}`).open = false;
    current = matching[position].id;
    const shown = byId(`problem-${current}`);
    shown.open = true;
    shown.scrollIntoView();
    keep();
  };
  const move = (by) => open(current === null ? (by > 0 ? 0 : -1) : matching.findIndex(({ id }) => id === current) + by);
  const goTo = (id) => open(matching.findIndex((problem) => String(problem.id) === id));

  for (const id of Object.values(FILTERS)) {
    byId(id).addEventListener("input", () => {
      filter();
      keep();
    });
  }
  for (const button of document.querySelectorAll("#datasets button[data-dataset]")) {
    button.addEventListener("click", () => {
      setFilters(FILTERS, { dataset: button.dataset.dataset });
      filter();
      keep();
      byId("answers-title").scrollIntoView();
    });
  }
  byId("more").addEventListener("click", () => showMore());
  byId("save-csv").addEventListener("click", () => save(asCsv(selected(matching, datasets)), "text/csv", "csv"));
  byId("save-json").addEventListener("click", () => {
    save(JSON.stringify(selected(matching, datasets), null, 1), "application/json", "json");
  });
  byId("copy").addEventListener("click", async () => {
    await copy(asText(selected(matching, datasets)));
    byId("copied").textContent = `${matching.length} problems copied`;
  });
  onKeys({ ArrowLeft: () => move(-1), ArrowRight: () => move(1) });
  const follow = () => {
    setFilters(FILTERS, { dataset: "", verdict: "", sort: "", cut: "", text: "", ...fragment() });
    const { problem } = fragment();
    filter();
    if (problem !== undefined) goTo(problem);
  };
  window.addEventListener("hashchange", follow);
  follow();
}

// The address may come from anybody, so only a relative path of a page is followed.
function linkBack() {
  const from = fragment().from ?? "";
  if (!/^[\w.%~-]+(\/[\w.%~-]+)*\.html(#[\w=&.%+-]*)?$/.test(from)) return;
  byId("back").hidden = false;
  byId("back").firstChild.href = from;
}

const filterDatasets = byId("find-dataset");
makeSortable(byId("datasets"));
filterDatasets.addEventListener("input", () => {
  const wanted = filterDatasets.value.toLowerCase();
  for (const row of byId("datasets").tBodies[0].rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
});
linkBack();
unpacked("data").then((text) => browse(JSON.parse(text))).catch((error) => {
  byId("num-answers").textContent = `the answers could not be read: ${error}`;
});
