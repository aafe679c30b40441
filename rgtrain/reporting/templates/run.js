const COLORS = ["#3b6fb6", "#d9822b", "#2f9e6e", "#b5487f", "#7a5bc2", "#8a8f2f", "#2c9fb5", "#c0504d"];
const [WIDTH, HEIGHT] = [420, 220];
const MARGIN = { left: 46, right: 8, top: 8, bottom: 22 };
const SVG = "http://www.w3.org/2000/svg";

function drawn(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

const color = (curve) => COLORS[curve.color % COLORS.length];
const short = (value) => (value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential(1) : String(+value.toPrecision(4)));

// Round numbers that divide a range into about `count` parts.
function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const found = [];
  for (let tick = Math.ceil(low / step - 1e-9); tick * step <= high + step * 1e-9; tick++) found.push(tick * step);
  return found;
}

// The curves to draw: of stacked ones, each lies on the sum of those before it.
function layers(chart, visible) {
  const curves = chart.curves.filter((curve) => visible.has(curve.label));
  if (!chart.stacked) return curves.map((curve) => ({ curve, top: curve.values, bottom: null }));
  const sums = new Map();
  return curves.map((curve) => {
    const bottom = curve.steps.map((step) => sums.get(step) ?? 0);
    const top = curve.values.map((value, position) => bottom[position] + value);
    curve.steps.forEach((step, position) => sums.set(step, top[position]));
    return { curve, top, bottom };
  });
}

function scales(chart, shown) {
  const steps = chart.curves.flatMap((curve) => curve.steps);
  const values = shown.flatMap(({ curve, top }) => (chart.stacked ? top : [...curve.low, ...curve.high]));
  let [low, high] = [chart.bounds[0] ?? Math.min(...values), chart.bounds[1] ?? Math.max(...values)];
  if (chart.bounds[1] === null) high += (high - low) * 0.06;
  if (!(high > low)) [low, high] = [low - (Math.abs(low) || 1) * 0.1, high + (Math.abs(high) || 1) * 0.1];
  let [first, last] = [Math.min(...steps), Math.max(...steps)];
  if (last === first) [first, last] = [first - 1, last + 1];
  const x = (step) => MARGIN.left + ((step - first) / (last - first)) * (WIDTH - MARGIN.left - MARGIN.right);
  const y = (value) => HEIGHT - MARGIN.bottom - ((value - low) / (high - low)) * (HEIGHT - MARGIN.top - MARGIN.bottom);
  return { low, high, first, last, x, y };
}

// Mean plus standard deviation may lie outside of the chart.
const inside = (place) => Math.min(HEIGHT - MARGIN.bottom, Math.max(MARGIN.top, place)).toFixed(1);
const points = (steps, values, { x, y }) => steps.map((step, position) => `${x(step).toFixed(1)},${inside(y(values[position]))}`);

function drawChart(figure, chart) {
  figure.append(element("h3", chart.title), element("p", [chart.unit, chart.note].filter(Boolean).join(" · ")));
  const svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": chart.title });
  const legend = element("div", undefined, "legend");
  const tip = element("div", undefined, "tip");
  tip.hidden = true;
  figure.append(svg, legend, tip);
  const visible = new Set(chart.curves.map((curve) => curve.label));
  let now = null;
  const redraw = () => {
    const shown = layers(chart, visible);
    now = scales(chart, shown);
    svg.replaceChildren();
    for (const tick of ticks(now.low, now.high, 4)) {
      svg.append(drawn("line", { class: "grid", x1: MARGIN.left, x2: WIDTH - MARGIN.right, y1: now.y(tick), y2: now.y(tick) }));
      svg.append(drawn("text", { class: "soft", "text-anchor": "end", x: MARGIN.left - 5, y: now.y(tick) + 4 }, short(tick)));
    }
    for (const tick of ticks(now.first, now.last, 5).filter(Number.isInteger)) {
      const anchor = now.x(tick) > WIDTH - 20 ? "end" : "middle";
      svg.append(drawn("text", { class: "soft", "text-anchor": anchor, x: now.x(tick), y: HEIGHT - 6 }, String(tick)));
    }
    for (const { curve, top, bottom } of shown) {
      const upper = points(curve.steps, bottom ? top : curve.high, now);
      const lower = points(curve.steps, bottom ?? curve.low, now).reverse();
      const opacity = bottom ? 0.75 : 0.18;
      svg.append(drawn("polygon", { points: [...upper, ...lower].join(" "), fill: color(curve), "fill-opacity": opacity }));
      if (bottom) continue;
      const line = { points: points(curve.steps, top, now).join(" "), fill: "none", stroke: color(curve), "stroke-width": 1.6 };
      svg.append(drawn("polyline", line));
      if (curve.steps.length === 1) svg.append(drawn("circle", { cx: now.x(curve.steps[0]), cy: now.y(top[0]), r: 3, fill: color(curve) }));
    }
  };
  for (const curve of chart.curves) {
    const button = element("button");
    const swatch = element("span", undefined, "swatch");
    swatch.style.background = color(curve);
    button.append(swatch, document.createTextNode(curve.label));
    button.setAttribute("aria-pressed", "true");
    button.addEventListener("click", () => {
      if (visible.has(curve.label) && visible.size > 1) visible.delete(curve.label);
      else visible.add(curve.label);
      button.setAttribute("aria-pressed", visible.has(curve.label));
      redraw();
    });
    legend.append(button);
  }
  svg.addEventListener("pointermove", (event) => showTip(event, svg, tip, chart, visible, now));
  svg.addEventListener("pointerleave", () => (tip.hidden = true));
  redraw();
}

function showTip(event, svg, tip, chart, visible, { first, last }) {
  const box = svg.getBoundingClientRect();
  const place = ((event.clientX - box.left) / box.width) * WIDTH;
  const wanted = first + ((place - MARGIN.left) / (WIDTH - MARGIN.left - MARGIN.right)) * (last - first);
  tip.replaceChildren();
  const curves = chart.curves.filter((curve) => visible.has(curve.label));
  curves.slice(0, 12).forEach((curve, number) => {
    const distances = curve.steps.map((step) => Math.abs(step - wanted));
    const nearest = distances.indexOf(Math.min(...distances));
    if (number === 0) tip.append(element("div", `step ${Math.round(curve.steps[nearest])}`, "soft"));
    const swatch = element("span", undefined, "swatch");
    swatch.style.background = color(curve);
    const line = element("div");
    line.append(swatch, document.createTextNode(`${curve.label} ${short(curve.values[nearest])}`));
    tip.append(line);
  });
  tip.hidden = false;
  const isLeft = event.clientX - box.left < box.width / 2;
  tip.style.left = isLeft ? `${event.clientX - box.left + 14}px` : "auto";
  tip.style.right = isLeft ? "auto" : `${box.right - event.clientX + 14}px`;
  tip.style.top = `${svg.offsetTop + 8}px`;
}

const isRight = (completion) => completion.accuracy === 1;

function showCompletion(completion, number, wanted) {
  const shown = element("article", undefined, `completion${isRight(completion) ? " is-right" : ""}`);
  const title = element("div");
  title.append(element("b", `reward ${short(completion.reward)}`));
  const facts = [`${completion.tokens} tokens`];
  if (completion.cut) facts.push("cut off");
  if (completion.advantage !== null) facts.push(`advantage ${short(completion.advantage)}`);
  facts.push(...completion.failures.map((failure) => `not judged: ${failure}`));
  title.append(element("span", ` · ${facts.join(" · ")}`, "soft"));
  const parts = Object.entries(completion.parts).map(([name, value]) => `${name} ${short(value)}`);
  if (completion.logProb !== null) parts.push(`log-prob ${short(completion.logProb)}`);
  if (completion.gap !== null) parts.push(`gap ${short(completion.gap)}`);
  shown.append(title, element("div", parts.join(" · "), "soft"));
  const answer = element("div", completion.answer === null ? "no answer found" : "answer: ");
  if (completion.answer !== null) appendMarked(answer, completion.answer, wanted);
  shown.append(answer);
  const end = completion.text.lastIndexOf("</think>");
  if (end >= 0) {
    const thought = completion.text.slice(0, end + 8);
    shown.append(folded("think part", marked("pre", thought, wanted), wanted !== "" && contains(thought, wanted)));
  }
  shown.append(marked("pre", completion.text.slice(end < 0 ? 0 : end + 8), wanted));
  shown.dataset.number = number;
  return shown;
}

function verdict(group) {
  const right = group.completions.filter(isRight).length;
  return right === group.completions.length ? "right" : right ? "mixed" : "wrong";
}

const FILTERS = { run: "of-run", split: "of-split", dataset: "of-dataset", level: "of-level", verdict: "of-verdict", from: "from-step", to: "to-step", text: "with-text" };

function matches(group, filter) {
  const of = (name) => filter[name] ?? "";
  const wanted = of("text").toLowerCase();
  return (
    (of("run") === "" || group.run === Number(of("run"))) &&
    (of("split") === "" || group.split === of("split")) &&
    (of("dataset") === "" || group.dataset === of("dataset")) &&
    (of("level") === "" || String(group.level) === of("level")) &&
    (of("from") === "" || group.step >= Number(of("from"))) &&
    (of("to") === "" || group.step <= Number(of("to"))) &&
    (of("verdict") === "" ||
      verdict(group) === of("verdict") ||
      (of("verdict") === "cut" && group.completions.some((completion) => completion.cut)) ||
      (of("verdict") === "none" && group.completions.some((completion) => completion.answer === null))) &&
    (wanted === "" || contains(group.prompt, wanted) || group.completions.some((one) => contains(one.text, wanted)))
  );
}

function browse(groups, runs) {
  const state = fragment();
  for (const dataset of [...new Set(groups.map((group) => group.dataset))].sort()) addOption("of-dataset", dataset);
  const levels = [...new Set(groups.map((group) => group.level).filter((level) => level !== null))].sort((a, b) => a - b);
  levels.forEach((level) => addOption("of-level", String(level), `level ${level}`));
  byId("of-level").hidden = levels.length === 0;
  setFilters(FILTERS, state);
  let matching = [];
  let [at, completion] = [0, -1];

  const show = () => {
    const group = matching[at];
    byId("group").replaceChildren();
    byId("position").textContent = matching.length ? `group ${at + 1} of ${matching.length} (${groups.length} in all)` : "no group matches";
    if (group === undefined) return;
    const wanted = byId("with-text").value.toLowerCase();
    const title = element("h3", `${group.split} step ${group.step}: ${group.dataset}${group.level === null ? "" : ` level ${group.level}`}`);
    const facts = [runs.length > 1 ? runs[group.run] : "", group.why.length ? `kept as ${group.why.join(", ")}` : ""].filter(Boolean);
    const link = element("a", "link to this group");
    link.href = `#group=${group.id}`;
    const line = element("p", facts.join(" · ") + (facts.length ? " · " : ""), "note");
    line.append(link);
    const question = group.prompt.length > 600 ? `…${group.prompt.slice(-600)}` : group.prompt;
    byId("group").append(title, line, marked("pre", question, wanted));
    if (question !== group.prompt) byId("group").append(folded("the whole prompt", marked("pre", group.prompt, wanted), false));
    byId("group").append(marked("p", `expected answer: ${group.expected}`, wanted));
    const list = element("div", undefined, "completions");
    list.append(...group.completions.map((one, number) => showCompletion(one, number, wanted)));
    byId("group").append(list);
    if (completion >= 0 && list.children[completion]) {
      list.children[completion].classList.add("is-current");
      list.children[completion].scrollIntoView({ block: "nearest" });
    }
    keepInFragment({ ...filterValues(FILTERS), group: group.id, completion: completion < 0 ? "" : String(completion) });
  };
  const filter = () => {
    const values = filterValues(FILTERS);
    matching = groups.filter((group) => matches(group, values));
    [at, completion] = [0, -1];
    show();
  };
  const move = (by) => {
    if (!matching.length) return;
    [at, completion] = [Math.min(matching.length - 1, Math.max(0, at + by)), -1];
    show();
  };
  const moveToWrong = (by) => {
    let [group, number] = [at, completion];
    while (matching[group]) {
      number += by;
      if (number < 0 || number >= matching[group].completions.length) {
        group += by;
        number = by > 0 ? -1 : (matching[group]?.completions.length ?? 0);
      } else if (!isRight(matching[group].completions[number])) {
        [at, completion] = [group, number];
        show();
        return;
      }
    }
  };
  for (const id of Object.values(FILTERS)) byId(id)?.addEventListener("input", filter);
  byId("previous").addEventListener("click", () => move(-1));
  byId("next").addEventListener("click", () => move(1));
  byId("previous-wrong").addEventListener("click", () => moveToWrong(-1));
  byId("next-wrong").addEventListener("click", () => moveToWrong(1));
  const goTo = (wanted) => {
    const position = matching.findIndex((group) => group.id === wanted.group);
    if (position < 0) return;
    [at, completion] = [position, wanted.completion === undefined ? -1 : Number(wanted.completion)];
    show();
  };
  onKeys({ ArrowLeft: () => move(-1), ArrowRight: () => move(1), w: () => moveToWrong(1), W: () => moveToWrong(-1) });
  window.addEventListener("hashchange", () => goTo(fragment()));
  const hash = location.hash;
  filter();
  if (state.group) {
    goTo(state);
    byId("rollouts").scrollIntoView();
  }
  // A link to a section must not be replaced by the first group.
  else history.replaceState(null, "", hash || location.pathname);
}

async function start() {
  const data = JSON.parse(await unpacked("data"));
  for (const figure of document.querySelectorAll("figure")) drawChart(figure, data.charts[Number(figure.dataset.chart)]);
  const lines = (await unpacked("rollout-data")).split("\n").filter(Boolean);
  browse(lines.map((line) => JSON.parse(line)), data.runs);
}

start().catch((error) => {
  byId("position").textContent = `the data could not be read: ${error}`;
});
