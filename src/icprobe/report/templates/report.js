// The explorer: connects the page's data with DataTables (the table) and Vega (the charts).
// Texts of the data reach the page through textContent alone, the table's filter through escaped strings.

const read = (id) => JSON.parse(document.getElementById(id).textContent);
const data = read("data");
const specifications = read("specifications");
const byId = (id) => document.getElementById(id);
const examples = data.examples;
const size = examples.id.length;

// --- small things

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = visible(text);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// Control characters as their pictures, so that every character of a text is seen.
function visible(text) {
  return String(text)
    .replace(/[\x00-\x08\x0b\x0c\x0e-\x1f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)))
    .replace(/[\x7f-\x9f\p{Surrogate}]/gu, "\ufffd")
    .replace(/\r\n?/g, "\n");
}

const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/"/g, "&quot;");

function number(value) {
  if (value === null || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  const text =
    size && (size >= 1e5 || size < 1e-3) ? value.toExponential(2).replace("+", "")
    : size >= 1e3 ? value.toFixed(0)
    : String(Number(value.toPrecision(3)));
  return text.replace(/-/g, "−");
}

function later(action, milliseconds) {
  let timer;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...values), milliseconds);
  };
}

function options(select, values, chosen) {
  select.replaceChildren(...values.map(([value, text]) => {
    const option = element("option", text);
    option.value = value;
    return option;
  }));
  if (chosen !== undefined) select.value = chosen;
}

// --- matrices: float16 in base64, decoded when first asked for

const decoded = new Map();

function halfToNumber(half) {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >> 10) & 31;
  const fraction = half & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

// What a task is called: its id, or where that was made of its texts, its row_number and how it begins.
function taskName(task) {
  const { id, row_number, instruction } = data.tasks;
  if (!row_number) return id[task];
  const letters = [...instruction[task]];
  const begins = letters.slice(0, 40).join("").trim();
  return `task ${row_number[task]}, ${begins}${letters.length > 40 ? "…" : ""}`;
}

// The effects of example i on the tasks of a method's matrix; null where the method has none per task.
function effectsOf(model, method, i) {
  const matrix = data.models[model].matrices[method];
  if (!matrix) return null;
  if (!decoded.has(matrix)) {
    const bytes = Uint8Array.from(atob(matrix.values), (c) => c.charCodeAt(0));
    decoded.set(matrix, new Uint16Array(bytes.buffer));
  }
  const m = matrix.tasks.length;
  const row = decoded.get(matrix).subarray(i * m, (i + 1) * m);
  return new Map(matrix.tasks.map((task, column) => [task, halfToNumber(row[column]) * matrix.unit]));
}

// --- charts

// ast: expressions are interpreted, for the page's policy forbids making code from strings.
const embedOptions = { actions: false, ast: true, renderer: "svg", tooltip: { theme: "light" } };
const draw = (target, specification, more = {}) => vegaEmbed(target, specification, { ...embedOptions, ...more });

function drawStanding() {
  for (const name of Object.keys(specifications)) {
    const target = byId(name);
    if (!target || name === "scatter") continue;
    const select = document.querySelector(`select[data-chart="${name}"]`);
    draw(target, specifications[name]).then(({ view }) => {
      if (!select) return;
      const show = () => view.signal("statistic", select.value).runAsync();
      select.addEventListener("change", show);
      show();
    });
  }
}

// --- state of the explorer

const state = { model: null, a: null, b: null, picked: -1, brushed: false };
const keep = new Uint8Array(size).fill(1);
const model = () => data.models[state.model];
const ranks = () => byId("axes").value === "ranks";
// What stands beside a model's only method.
const TOKENS = "response tokens";
const scoresOf = (method) => (method === TOKENS ? model().n_target : model().scores[method]);
const axis = (method) => (method === TOKENS || !ranks() ? scoresOf(method) : model().ranks[method]);
const axisTitle = (method) => (method === TOKENS ? TOKENS : `${method}, ${ranks() ? "rank" : "score"}`);
const limits = ["a-from", "a-to", "b-from", "b-to"];
const limit = (id) => (byId(id).value === "" ? null : Number(byId(id).value));

let scatterView = null;
let table = null;
let listed = new Uint8Array(size).fill(1);

// --- the table

function column(title, text, more = {}) {
  return {
    title: escaped(title),
    type: "string",
    data: (i, type) => {
      const value = text(i);
      if (type === "display") return element("span", value, { dir: "auto", title: visible(value) });
      return type === "filter" ? escaped(value) : value;
    },
    ...more,
  };
}

// order: of the examples, best first, where equal values have one.
function numberColumn(title, values, className = "n score", order = () => null) {
  return {
    title: escaped(title),
    type: "num",
    className,
    searchable: false,
    data: (i, type) => {
      const value = values()[i] ?? null;
      if (type === "display") return element("span", number(value));
      return value === null ? -Infinity : type === "sort" && order() ? -order()[i] : value;
    },
  };
}

const columns = [
  {
    title: "Example",
    type: "string",
    className: "id",
    data: (i, type) => {
      const id = examples.id[i];
      if (type !== "display") return type === "filter" ? escaped(id) : id;
      return element("button", id, { type: "button", class: "link", "data-row": i });
    },
  },
  column("Instruction", (i) => examples.instruction[i], { className: "long" }),
  ...data.labels.map((label) => column(label, (i) => examples.labels[label][i], { className: "label" })),
  numberColumn("Response tokens", () => model().n_target ?? [], "n tokens"),
  numberColumn("a", () => scoresOf(state.a), undefined, () => model().order[state.a]),
  numberColumn("b", () => scoresOf(state.b), undefined, () => model().order[state.b]),
  // Searched, never shown: the texts that no column holds.
  { title: "texts", type: "string", visible: false, orderable: false, data: (i) => escaped(`${examples.input[i]} ${examples.output[i]}`) },
];
const columnA = columns.length - 3;

function makeTable() {
  table = new DataTable("#example-table", {
    data: Array.from({ length: size }, (_, i) => i),
    columns,
    order: [[columnA, "desc"]],
    autoWidth: false,
    // A click on the heading turns the order round; none is without order.
    columnDefs: [{ targets: "_all", orderSequence: ["asc", "desc"] }],
    deferRender: true,
    pageLength: 10,
    lengthMenu: [10, 25, 50, 100],
    layout: { topStart: "pageLength", topEnd: "info", bottomStart: null, bottomEnd: "paging" },
    language: {
      lengthMenu: "_MENU_ examples a page",
      info: "_START_–_END_ of _TOTAL_",
      infoFiltered: "",
      infoEmpty: "none",
      zeroRecords: "No example is within the limits.",
      emptyTable: "There are no examples.",
    },
    createdRow: (row, i) => row.classList.toggle("open", i === state.picked),
  });
  table.search.fixed("limits", (_text, i) => keep[i] === 1);
  table.on("draw", follow);
  byId("example-table").addEventListener("click", (event) => {
    const row = event.target.closest("tbody tr");
    const i = row && table.row(row).data();
    // A click that a key made has no detail: then the reader's focus follows.
    if (i !== undefined && i !== null) show(i, event.detail === 0);
  });
}

// Which examples the table lists: the count and the plot follow when that changes, not when it is sorted or paged.
function follow() {
  const now = new Uint8Array(size);
  for (const i of table.rows({ search: "applied" }).data().toArray()) now[i] = 1;
  if (now.every((one, i) => one === listed[i])) return;
  listed = now;
  announce();
  fade();
}

function announce() {
  const shown = listed.reduce((sum, one) => sum + one, 0);
  byId("count").textContent =
    shown === size ? `All ${size} examples` : `${shown} of ${size} examples${state.brushed ? ", limited by the plot" : ""}`;
}

// --- limits

function applyLimits() {
  const members = byId("bin").value === "" ? null : new Set(model().bins[byId("bin").value][state.a] ?? []);
  const wanted = [...document.querySelectorAll(".label-filter")].flatMap((select) =>
    select.value === "" ? [] : [[examples.labels[select.dataset.label], select.value.slice(1)]]);
  const [aFrom, aTo, bFrom, bTo] = limits.map(limit);
  const a = axis(state.a);
  const b = axis(state.b);
  const within = (value, from, to) =>
    (from === null && to === null) || (value !== null && (from === null || value >= from) && (to === null || value <= to));
  for (let i = 0; i < size; i++) {
    keep[i] =
      (members === null || members.has(i)) && wanted.every(([values, value]) => values[i] === value) &&
      within(a[i], aFrom, aTo) && within(b[i], bFrom, bTo) ? 1 : 0;
  }
  table.search(byId("search").value).draw();
}

function clearRanges() {
  for (const id of limits) byId(id).value = "";
  state.brushed = false;
}

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
        column: method, effect, direction: effect > 0 ? "helps" : "hurts", order }];
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
