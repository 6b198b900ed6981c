// The explorer's plot, one example in full, and what switches do; the second part of report.js's module.

// --- the scatter plot

function scatterRows() {
  const label = data.kinds;
  const a = axis(state.a);
  const b = axis(state.b);
  const rows = [];
  for (let i = 0; i < size; i++) {
    if (a[i] === null || b[i] === null) continue;
    const group = label === null ? "example" : visible(examples.labels[label][i]) || "unlabelled";
    rows.push({ i, id: visible(examples.id[i]), x: a[i], y: b[i], group, shown: listed[i] === 1 });
  }
  return rows.sort((p, q) => p.shown - q.shown); // what is listed lies on top
}

const fade = later(() => {
  if (scatterView) scatterView.data("examples", scatterRows()).runAsync();
}, 250);

const brushed = later((value) => {
  const [x, y] = [value.x ?? null, value.y ?? null];
  if (!x && !y && !state.brushed) return;
  const rounded = (end) => Number(end.toPrecision(6));
  for (const [name, ends] of [["a", x], ["b", y]]) {
    const sorted = ends ? [...ends].sort((p, q) => p - q).map(rounded) : ["", ""];
    byId(`${name}-from`).value = sorted[0];
    byId(`${name}-to`).value = sorted[1];
  }
  state.brushed = Boolean(x || y);
  applyLimits();
  announce();
}, 40);

// Draws the plot anew; limits that were typed appear as the brush.
async function drawScatter() {
  const specification = structuredClone(specifications.scatter);
  const { x, y, color, shape } = specification.encoding;
  x.title = axisTitle(state.a);
  y.title = axisTitle(state.b);
  // Rank 1 stands where the highest score does.
  if (ranks()) x.scale.reverse = y.scale.reverse = true;
  if (data.kinds === null) color.condition.legend = shape.legend = null;
  const [aFrom, aTo, bFrom, bTo] = limits.map(limit);
  const interval = {};
  if (aFrom !== null && aTo !== null) interval.x = [aFrom, aTo];
  if (bFrom !== null && bTo !== null) interval.y = [bFrom, bTo];
  if (Object.keys(interval).length) specification.params.find((one) => one.name === "brush").value = interval;
  specification.datasets = { examples: scatterRows() };
  if (scatterView) scatterView.finalize();
  scatterView = null;
  const { view } = await draw(byId("scatter"), specification, { renderer: "canvas" });
  scatterView = view;
  view.signal("picked", state.picked).runAsync();
  view.addSignalListener("brush", (_name, value) => brushed(value));
  view.addEventListener("click", (_event, item) => {
    if (item && item.datum && item.datum.i !== undefined) show(item.datum.i, false);
  });
}

// --- one example

const byEffect = (p, q) => (q.a ?? q.b) - (p.a ?? p.b);

function summary(method, effects) {
  if (effects === null) return `${method} has one score for an example, none per task.`;
  const values = [...effects].filter(([, value]) => !Number.isNaN(value)).sort((p, q) => q[1] - p[1]);
  if (!values.length) return `${method} did not evaluate this example.`;
  const helped = values.filter(([, value]) => value > 0).length;
  const [most, least] = [values[0], values.at(-1)];
  return `${method}: helps ${helped} of ${values.length} tasks; most: “${taskName(most[0])}” (${number(most[1])}), ` +
    `least: “${taskName(least[0])}” (${number(least[1])}).`;
}

function show(i, focus) {
  state.picked = i;
  table.rows().every(function () {
    const node = this.node();
    if (node) node.classList.toggle("open", this.data() === i);
  });
  if (scatterView) scatterView.signal("picked", i).runAsync();
  const methods = [...new Set([state.a, state.b])].filter((method) => method !== TOKENS);

  const texts = element("dl", undefined, { class: "texts", tabindex: "0", "aria-label": "Texts of the example" });
  for (const [name, title] of [["instruction", "Instruction"], ["input", "Input"], ["output", "Response"]]) {
    if (name === "input" && !examples.input[i]) continue;
    texts.append(element("dt", title), element("dd", examples[name][i], { dir: "auto" }));
  }

  const scores = element("table");
  scores.append(element("caption", "Score and rank by each method"));
  const head = scores.createTHead().insertRow();
  const effectsOnAll = model().mean_effects; // of methods whose score is a share of tasks
  const titles = ["Method", "Score", "Rank", ...(Object.keys(effectsOnAll).length ? ["Mean effect"] : [])];
  for (const title of titles) head.append(element("th", title, { scope: "col", ...(title === "Method" ? {} : { class: "n" }) }));
  const body = scores.createTBody();
  for (const method of model().methods) {
    const row = body.insertRow();
    const rank = model().ranks[method][i];
    row.append(element("th", method, { scope: "row" }), element("td", number(model().scores[method][i]), { class: "n" }),
      element("td", rank ?? "–", { class: "n" }));
    if (titles.length > 3) row.append(element("td", number(effectsOnAll[method]?.[i] ?? null), { class: "n" }));
  }

  const facts = data.labels.filter((label) => examples.labels[label][i]).map((label) => `${label}: ${examples.labels[label][i]}`);
  if (examples.row_number) facts.unshift(`row_number ${examples.row_number[i]}`);
  if (model().n_target) facts.push(`${model().n_query[i] ?? "–"} query tokens, ${model().n_target[i] ?? "–"} response tokens`);

  const effects = methods.map((method) => effectsOf(state.model, method, i));
  const parts = [texts, element("p", facts.join("; "), { class: "facts", dir: "auto" }), element("h4", "Effect on each task")];
  methods.forEach((method, index) => parts.push(element("p", summary(method, effects[index]), { dir: "auto" })));
  const chart = element("div", undefined, { id: "effects", class: "chart" });
  if (effects.some((one) => one !== null)) parts.push(chart, effectsTable(methods, effects));
  parts.push(scores);
  const back = element("button", "Back to the table", { type: "button", class: "link" });
  back.addEventListener("click", () => {
    (document.querySelector(`#example-table button[data-row="${i}"]`) ?? byId("search")).focus();
  });
  parts.push(back);
  byId("detail-title").textContent = visible(examples.id[i]);
  byId("detail-body").replaceChildren(...parts);
  byId("detail").scrollTop = 0;
  if (effects.some((one) => one !== null)) drawEffects(chart, methods, effects);
  if (focus) byId("detail-title").focus();
  else if (matchMedia("(max-width: 60rem)").matches) byId("detail").scrollIntoView();
}

// The tasks that any of the methods has values for, by the first method's effect.
function effectRows(effects) {
  const rows = data.tasks.id.map((_id, task) => ({ task, a: effects[0]?.get(task), b: effects[1]?.get(task) }));
  return rows.filter((row) => row.a !== undefined || row.b !== undefined).sort(byEffect);
}

function drawEffects(target, methods, effects) {
  const specification = structuredClone(specifications.effects);
  const drawn = methods.filter((_method, index) => effects[index] !== null);
  const longest = Math.max(...data.tasks.id.map((_id, task) => taskName(task).length));
  const labels = Math.min(120, 7 * longest) + 16;
  specification.width = Math.max(70, Math.floor((target.clientWidth - labels) / drawn.length) - 22);
  specification.datasets = { effects: effectRows(effects).flatMap((row, order) =>
    methods.flatMap((method, index) => {
      const effect = index ? row.b : row.a;
      if (effect === undefined || Number.isNaN(effect)) return [];
      return [{ task: visible(taskName(row.task)), text: visible(data.tasks.instruction[row.task]), method,
        column: method, effect, direction: effect > 0 ? "helps" : effect < 0 ? "hurts" : null, order }];
    })) };
  draw(target, specification);
}

function effectsTable(methods, effects) {
  const details = element("details");
  details.append(element("summary", "Show as a table"));
  const made = element("table");
  made.append(element("caption", "Effect on each task, the most helped first"));
  const head = made.createTHead().insertRow();
  head.append(element("th", "Task", { scope: "col" }));
  for (const method of methods) head.append(element("th", method, { scope: "col", class: "n" }));
  const body = made.createTBody();
  for (const row of effectRows(effects)) {
    const line = body.insertRow();
    const name = element("th", data.tasks.row_number?.[row.task] ?? data.tasks.id[row.task], { scope: "row", dir: "auto" });
    name.append(element("span", ` ${data.tasks.instruction[row.task]}`, { class: "task-text", dir: "auto" }));
    line.append(name);
    methods.forEach((_method, index) => line.append(element("td", number((index ? row.b : row.a) ?? null), { class: "n" })));
  }
  details.append(made);
  return details;
}

// --- switches

function switchModel(name) {
  state.model = name;
  const { methods } = model();
  const choice = methods.map((method) => [method, method]);
  const kept = (method, fallback) => (methods.includes(method) ? method : fallback);
  state.a = kept(state.a, kept("icp", methods[0]));
  const alone = methods.length === 1 && model().n_target;
  state.b = alone ? TOKENS : kept(state.b, kept("influence", methods[1] ?? methods[0]));
  options(byId("method-a"), choice, state.a);
  options(byId("method-b"), alone ? [[TOKENS, TOKENS]] : choice, state.b);
  const bin = byId("bin").value;
  const bins = Object.keys(model().bins);
  options(byId("bin"), [["", bins.length ? "any" : "no bins"], ...bins.map((one) => [one, one])], bins.includes(bin) ? bin : "");
}

function retitle() {
  for (const [offset, method] of [[0, state.a], [1, state.b]]) table.column(columnA + offset).title(escaped(method));
  table.column(columnA + 1).visible(state.b !== TOKENS); // they have a column of their own
  byId("limit-a").textContent = `${axisTitle(state.a)}: from – to`;
  byId("limit-b").textContent = `${axisTitle(state.b)}: from – to`;
  for (const id of limits) byId(id).setAttribute("aria-label", `${axisTitle(id[0] === "a" ? state.a : state.b)}, ${id.slice(2)}`);
}

function refresh() {
  clearRanges();
  table.rows().invalidate();
  retitle();
  applyLimits();
  drawScatter();
  if (state.picked >= 0) show(state.picked, false);
}

function start() {
  options(byId("model"), Object.keys(data.models).map((name) => [name, name]));
  for (const select of document.querySelectorAll(".label-filter")) {
    const values = [...new Set(examples.labels[select.dataset.label])].sort();
    // "=" keeps the empty value apart from "any".
    options(select, [["", "any"], ...values.map((value) => [`=${value}`, value || "(none)"])]);
  }
  switchModel(Object.keys(data.models)[0]);
  makeTable();
  retitle();
  announce();
  drawScatter().then(drawStanding);

  byId("model").addEventListener("change", (event) => { switchModel(event.target.value); refresh(); });
  byId("method-a").addEventListener("change", (event) => { state.a = event.target.value; refresh(); });
  byId("method-b").addEventListener("change", (event) => { state.b = event.target.value; refresh(); });
  byId("axes").addEventListener("change", refresh);
  byId("bin").addEventListener("change", applyLimits);
  for (const select of document.querySelectorAll(".label-filter")) select.addEventListener("change", applyLimits);
  byId("search").addEventListener("input", later(applyLimits, 40));
  for (const id of limits) byId(id).addEventListener("change", () => { state.brushed = false; applyLimits(); drawScatter(); });
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("clear").addEventListener("click", (event) => {
    event.preventDefault();
    for (const select of [byId("bin"), ...document.querySelectorAll(".label-filter")]) select.value = "";
    byId("search").value = "";
    clearRanges();
    applyLimits();
    drawScatter();
  });
  addExploreButtons();
}

// The cards of best and worst examples lead into the explorer.
function addExploreButtons() {
  const position = new Map(examples.id.map((id, i) => [visible(id), i]));
  for (const card of document.querySelectorAll(".card")) {
    const i = position.get(card.dataset.example);
    if (i === undefined) continue;
    const button = element("button", "effects on tasks", { type: "button", class: "link", "aria-label": `Effects of ${visible(examples.id[i])} on tasks` });
    button.addEventListener("click", () => { show(i, true); byId("detail").scrollIntoView({ block: "center" }); });
    const line = card.querySelector(".facts");
    line.append(" ", button);
  }
}

// Standing tables: sorted on a click at a heading.
for (const one of document.querySelectorAll("table.sortable")) {
  new DataTable(one, { paging: false, searching: false, info: false, autoWidth: false, order: [] });
}
if (size && Object.keys(data.models).length) start();
else drawStanding();

// What is folded on the screen is open on paper.
let unfolded = [];
addEventListener("beforeprint", () => {
  unfolded = [...document.querySelectorAll("details:not([open])")];
  for (const one of unfolded) one.open = true;
});
addEventListener("afterprint", () => {
  for (const one of unfolded) one.open = false;
});
document.documentElement.dataset.ready = "yes";
