const FILTERS = { models: "of-comparison", dataset: "of-dataset", outcome: "of-outcome", sort: "order", text: "with-text" };
const OUTCOMES = {
  won: "won",
  lost: "lost",
  wrong: "both wrong",
  right: "both right",
  partly: "both partly right",
  unpaired: "only one answered",
};
const mean = (values) => (values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : 0);
const scoreOf = (answers) => mean(answers.map((answer) => answer.score));
const lengthOf = (answers) => mean(answers.map((answer) => answer.tokens ?? 0));

// The two models that are compared: the first one, and the one that is chosen.
const chosen = () => [0, Number(byId("of-comparison").value) + 1];
const pairOf = (question) => chosen().map((model) => question.answers[model]);
const outcomeOf = (question) => question.outcomes[chosen()[1] - 1];
const gain = (question) => scoreOf(pairOf(question)[1]) - scoreOf(pairOf(question)[0]);
const length = (question) => lengthOf(pairOf(question).flat());
const ORDERS = {
  score: (a, b) => gain(a) - gain(b),
  tokens: (a, b) => length(a) - length(b),
  difficulty: compareDifficulty,
};

function matches(question, { dataset, outcome, text }) {
  const wanted = text.toLowerCase();
  const isOf = dataset.startsWith("c") ? question.category === Number(dataset.slice(1)) : question.dataset === Number(dataset);
  return (
    (dataset === "" || isOf) &&
    (outcome === "" || outcomeOf(question) === outcome) &&
    (wanted === "" ||
      contains(question.question, wanted) ||
      pairOf(question).flat().some((answer) => contains(answer.completion, wanted) || contains(answer.answer, wanted)))
  );
}

function reportLink(data, model, problem) {
  const link = element("a", "in its report");
  const values = { problem };
  if (data.page[model]) values.from = data.page[model] + location.hash;
  link.href = `${data.reports[model]}#${new URLSearchParams(values)}`;
  return link;
}

function showModel(data, question, model, label, wanted) {
  const column = element("section");
  const answers = question.answers[model];
  const right = answers.filter((answer) => answer.verdict === "right").length;
  const name = data.models[model] === label ? label : `${label}: ${data.models[model]}`;
  column.append(element("h3", answers.length > 1 ? `${name}, ${right} of ${answers.length} right` : name));
  if (data.reports[model]) column.append(reportLink(data, model, question.id));
  for (const answer of answers) {
    const shown = element("article", undefined, `completion${answer.verdict === "right" ? " is-right" : ""}`);
    const title = element("div");
    title.append(element("span", VERDICTS[answer.verdict], `verdict ${answer.verdict}`));
    title.append(element("span", answerFacts(answer), "soft"));
    shown.append(title);
    appendAnswer(shown, answer, wanted);
    column.append(shown);
  }
  return column;
}

function browse(data) {
  const { questions } = data;
  let matching = [];
  let at = 0;

  const show = () => {
    const question = matching[at];
    const place = byId("question");
    place.replaceChildren();
    byId("position").textContent = matching.length
      ? `question ${at + 1} of ${matching.length} (${questions.length} in all)`
      : "no question matches";
    keepInFragment({ ...filterValues(FILTERS), question: question?.id ?? "" });
    if (question === undefined) return;
    const wanted = byId("with-text").value.toLowerCase();
    const line = element("p", "", "note");
    const link = element("a", "link to this question");
    link.href = `#${new URLSearchParams({ models: byId("of-comparison").value, question: question.id })}`;
    const difficulty = difficultyOf(question);
    line.append(`seed ${question.seed}${difficulty ? ` · difficulty: ${difficulty}` : ""} · `, link);
    place.append(element("h3", `${question.name}: ${OUTCOMES[outcomeOf(question)]}`), line);
    if (question.question !== null) place.append(marked("pre", question.question, wanted));
    if (question.expected !== null) place.append(element("p", `expected answer: ${question.expected}`, "short"));
    const columns = element("div", undefined, "two-columns");
    const [first, second] = chosen();
    const labels = data.labels[second - 1];
    columns.append(showModel(data, question, first, labels[0], wanted), showModel(data, question, second, labels[1], wanted));
    place.append(columns);
  };
  const filter = () => {
    const values = filterValues(FILTERS);
    matching = questions.filter((question) => matches(question, values));
    const order = ORDERS[values.sort.replace("-", "")];
    if (order) matching.sort(values.sort.startsWith("-") ? (a, b) => order(b, a) : order);
    at = 0;
  };
  const refilter = () => {
    filter();
    show();
  };
  const move = (by) => {
    at = Math.max(0, Math.min(matching.length - 1, at + by));
    show();
  };
  const follow = () => {
    const { question } = fragment();
    setFilters(FILTERS, { models: "0", dataset: "", outcome: "", sort: "", text: "", ...fragment() });
    filter();
    at = Math.max(0, matching.findIndex(({ id }) => String(id) === question));
    show();
    if (question !== undefined) byId("answers").scrollIntoView();
  };

  for (const id of Object.values(FILTERS)) byId(id).addEventListener("input", refilter);
  byId("previous").addEventListener("click", () => move(-1));
  byId("next").addEventListener("click", () => move(1));
  onKeys({ ArrowLeft: () => move(-1), ArrowRight: () => move(1) });
  for (const section of document.querySelectorAll("section.comparison")) {
    makeSortable(section.querySelector("table"));
    for (const row of section.querySelectorAll("tr[data-dataset]")) {
      row.addEventListener("click", (event) => {
        const outcome = event.target.dataset.outcome ?? "";
        setFilters(FILTERS, { models: section.dataset.comparison, dataset: row.dataset.dataset, outcome, text: "" });
        refilter();
        byId("answers").scrollIntoView();
      });
    }
  }
  for (const link of document.querySelectorAll("a.report")) {
    const from = data.page[Number(link.dataset.model)];
    if (from) link.href = `${link.getAttribute("href")}#${new URLSearchParams({ from })}`;
  }
  window.addEventListener("hashchange", follow);
  follow();
}

unpacked("data").then((text) => browse(JSON.parse(text))).catch((error) => {
  byId("position").textContent = `the answers could not be read: ${error}`;
});
