"use strict";
// Data and helpers of the page, its head and its config. Text of runs goes in as text nodes alone: it is not trusted.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

/** An element with attributes (a function becomes a listener, null or false is left out) and children: nodes or text. */
function el(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "circle", "text", "g"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** A number for reading: about four digits. */
function figure(x) {
  if (x === null || x === undefined) return "–";
  if (Number.isInteger(x) || Math.abs(x) >= 1e4) return Math.abs(x) < 1e15 ? Math.round(x).toLocaleString("en") : x.toExponential(2);
  return x !== 0 && Math.abs(x) < 1e-3 ? x.toExponential(2) : String(Number(x.toPrecision(4)));
}

const spread = (mean, error) => figure(mean) + (error === null || error === undefined ? "" : ` ± ${figure(Number(error.toPrecision(2)))}`);
const plural = (count, what) => `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`;

function duration(seconds) {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** A table in a box of its own that scrolls; cells are nodes or text, numbers are right-aligned. */
function table(label, header, rows) {
  const cell = (tag, value) => value instanceof HTMLTableCellElement ? value
    : el(tag, { class: typeof value === "number" && "number" }, typeof value === "number" ? figure(value) : value ?? "–");
  const head = header.map((name) => { const th = cell("th", name); th.scope = "col"; return th; });
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label },
    el("table", {}, el("thead", {}, el("tr", {}, ...head)),
      el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map((value) => cell("td", value)))))));
}

/** Details whose content is made when they are first opened. */
function later(summary, make) {
  const details = el("details", {}, el("summary", {}, summary));
  details.addEventListener("toggle", () => details.open && details.append(make()), { once: true });
  return details;
}

/** Calls `act` once there has been no further call for 120 ms. */
function calmly(act) {
  let timer = 0;
  return () => { clearTimeout(timer); timer = setTimeout(act, 120); };
}

/** "0.14 → 0.29 ± 0.02": first and last value of a group's curve. */
function firstAndLast(key, group) {
  const curve = data.curves[key]?.[group];
  const at = curve ? curve[0].map((_, i) => i).filter((i) => curve[1][i] !== null) : [];
  if (!at.length) return "–";
  const last = at[at.length - 1];
  return (at.length > 1 ? `${figure(curve[1][at[0]])} → ` : "") + spread(curve[1][last], curve[2][last]);
}

function showHead() {
  byId("title").textContent = data.title;
  byId("made").textContent = `Report of ${data.made}`;
  const runs = data.runs.map((run, index) => ({ ...run, index }));
  const several = data.groups.length > 1 || runs.length > 1;
  const rows = data.groups.map((name, group) => {
    const own = runs.filter((run) => run.group === group);
    const same = (key) => [...new Set(own.map((run) => run[key] || "–"))].join(", ");
    const steps = own.map((run) => figure(run.steps) + (run.total ? ` of ${figure(run.total)}` : ""));
    return [name, firstAndLast("heldout_following", group), firstAndLast("heldout_ila", group), firstAndLast("heldout_cla", group),
      firstAndLast("ila", group),
      same("method"), same("model"), own.length, [...new Set(steps)].join(", "), [...new Set(own.map((run) => figure(run.samples)))].join(", ")];
  });
  byId("runs").append(table("Results", ["name", "held-out following", "held-out ILA", "held-out CLA", "training ILA", "method", "model", "seeds", "steps", "samples"], rows));
  byId("runs").append(el("p", { class: "faint" }, "ILA: share of responses that meet every constraint; CLA: share of constraints met; following: ILA less the ILA of the same "
    + "responses under other prompts' constraints. ILA ranks, following gates. First → last value"
    + (runs.length > data.groups.length ? "; ± is the standard error of the mean over seeds." : ".")));
  const list = () => table("Run directories", ["run", "seed", "last step", "last written", "time", "directory"],
    runs.map((run) => [runName(run.index), run.seed || "–", run.steps, run.date, duration(run.seconds), run.dir]));
  byId("runs").append(several ? later("Run directories", list)
    : el("p", { class: "faint" }, `${runs[0].dir}, last written ${runs[0].date}, ${duration(runs[0].seconds)} of training`));
  if (data.warnings.length) {
    byId("runs").append(el("div", { class: "notes", id: "warnings" }, el("p", {}, "What the control says:"),
      el("ul", {}, ...data.warnings.map((warning) => el("li", {}, warning)))));
  }
  if (data.notes.length) {
    byId("runs").append(el("div", { class: "notes" }, el("p", {}, "Not everything in the files could be used:"),
      el("ul", {}, ...data.notes.map((note) => el("li", {}, note)))));
  }
}

/** A run by its group and, where that has several, its own name. */
function runName(index) {
  const run = data.runs[index], group = data.groups[run.group];
  return data.runs.filter((other) => other.group === run.group).length > 1 ? `${group}/${run.name}` : group;
}

function showConfig() {
  const place = byId("config-table");
  if (!data.config.length) return place.append(el("p", {}, "No config.json in these directories."));
  const differ = data.config.filter(([, values]) => values.length > 1);
  const body = el("tbody"), count = el("span", { role: "status", class: "faint" });
  const filter = el("input", { type: "search", id: "config-filter", autocomplete: "off" });
  const only = el("input", { type: "checkbox", id: "config-differ" });
  const value = ([text, who], alone) => el("div", {}, text === null ? "(not set)" : text || "(empty)",
    alone ? null : el("span", { class: "faint" }, `  ${who.map(runName).join(", ")}`));
  const show = () => {
    const wanted = filter.value.toLowerCase();
    const rows = (only.checked ? differ : data.config).filter(([key, values]) =>
      `${key} ${values.map(([text]) => text).join(" ")}`.toLowerCase().includes(wanted));
    body.replaceChildren(...rows.map(([key, values]) => el("tr", {}, el("th", { scope: "row" }, key),
      el("td", { class: "value" }, ...values.map((one) => value(one, values.length === 1))))));
    count.textContent = `${rows.length} of ${plural(data.config.length, "key")}`;
  };
  filter.addEventListener("input", show);
  only.addEventListener("change", show);
  const head = el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "key"), el("th", { scope: "col" }, "value")));
  place.append(el("details", {}, el("summary", {}, `All ${data.config.length} keys`),
    el("div", { class: "controls" }, el("label", {}, "Filter", filter),
      differ.length ? el("label", {}, only, `only the ${plural(differ.length, "key")} in which runs differ`) : null, count),
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Config" }, el("table", {}, head, body))));
  show();
}

showHead();
showConfig();
