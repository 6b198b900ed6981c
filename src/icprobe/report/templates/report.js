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
