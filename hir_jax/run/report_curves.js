"use strict";
// Curves as SVG: one chart a metric, one line a group, the standard error over seeds as a band.

const SECTIONS = [
  ["charts", "Accuracy", {
    heldout_following: ["Following, held out", "ILA less the ILA under other prompts' constraints"],
    following: ["Following, training", "the same of the sampled responses"],
    heldout_ila_shuffled: ["ILA under other prompts' constraints, held out", "the control: share met without being asked"],
    ila: ["ILA, training", "share of sampled responses that meet every constraint"],
    heldout_ila: ["ILA, held out", "on instructions never trained on"],
    cla: ["CLA, training", "mean share of an instruction's constraints that are met"],
    heldout_cla: ["CLA, held out", "on instructions never trained on"],
    distinct: ["Distinct responses, training", "share"],
    heldout_distinct: ["Distinct responses, held out", "share"],
  }],
  ["charts", "Policy", {
    policy_entropy: ["Entropy of the sampler", "nats a token"],
    response_tokens: ["Response length", "tokens, mean"],
    truncated: ["Cut responses", "share that reached the longest length"],
    groups_equal: ["Prompts without a difference", "share whose samples all have the same reward"],
  }],
  ["charts", "Learner", {
    loss: ["Loss", ""],
    nll: ["Negative log-likelihood", "nats a token, of what was trained on"],
    grad_norm: ["Gradient norm", "before clipping"],
    clipped: ["Clipped", "share of tokens where the clip took effect"],
    kl_old: ["KL to the behaviour policy", "nats a token, k3 estimate"],
    kl_ref: ["KL to the reference policy", "nats a token"],
    gap: ["Distance from the behaviour policy", "mean |difference of log-probs|"],
    preferred: ["Preferred", "share of pairs whose chosen response is the likelier one"],
    margin: ["Margin", "DPO's implicit reward, chosen less rejected"],
  }],
  ["replay-charts", "", {
    replay_integrity: ["Integrity of replays", "share of the original's constraints that a replay meets"],
    replay_kept_constraints: ["Constraints kept", "of a rewritten instruction, mean"],
    replay_outside_clip: ["Replayed tokens outside the clip", "share whose ratio the clip cuts, mean over the step's updates"],
    replays: ["Replays a step", ""],
    replays_lacking: ["Replays lacking", "failures too few to replay"],
  }],
];
const DASHES = ["", "7 3", "2 2", "9 3 2 3", "12 4", "4 2 1 2", "1 3", "6 2"];
const MARGIN = { left: 48, right: 12, top: 8, bottom: 34 }, HEIGHT = 190;
const MANY_TYPES = 12; // of more, the charts wait to be opened
const charts = [];
let axis = "step";

const members = (group) => data.runs.filter((run) => run.group === group).length;
const color = (group) => `var(--g${group % 8})`;
const generated = data.samples.map((one) => one && new Map(one[0].map((step, i) => [step, one[1][i]])));

/** A line with a group's colour and dash. */
function swatch(group) {
  return el("svg", { class: "swatch", viewBox: "0 0 26 10", "aria-hidden": "true" },
    el("line", { x1: 0, x2: 26, y1: 5, y2: 5, style: `stroke:${color(group)};stroke-width:3`, "stroke-dasharray": DASHES[group % 8] }));
}

/** About `count` round numbers that cover [low, high]. */
function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.8);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(i * step);
  return found;
}

function tickText(x, step) {
  const size = Math.abs(x);
  if (size >= 1e6) return `${Number((x / 1e6).toPrecision(4))}M`;
  if (size >= 1e4) return `${Number((x / 1e3).toPrecision(4))}k`;
  if (size !== 0 && step < 1e-4) return x.toExponential(1);
  return x.toFixed(Math.max(0, Math.min(6, Math.ceil(-Math.log10(step) - 1e-9))));
}

/** The points of curves on the current axis: a list a group of {step, x, mean, error, seeds}. */
function points(curves) {
  return curves.map((curve, group) => !curve ? [] : curve[0].map((step, i) => ({
    step, x: axis === "step" ? step : generated[group]?.get(step), mean: curve[1][i], error: curve[2][i], seeds: curve[3][i],
  })).filter((point) => point.x !== undefined));
}

/** Runs of neighbouring points that have a value. */
function stretches(line) {
  const found = [[]];
  for (const point of line) point.mean === null ? found.push([]) : found[found.length - 1].push(point);
  return found.filter((stretch) => stretch.length);
}

function range(values, least) {
  let low = Math.min(...values), high = Math.max(...values);
  if (high - low < 1e-12 * Math.abs(high) || high === low) [low, high] = [low - least, high + least];
  return [low, high];
}

class Chart {
  /** key: the metric; curves: its curve of each group, as in `data.curves`. */
  constructor(key, curves, title, note) {
    this.curves = curves;
    this.title = title;
    this.plot = el("div", { class: "plot", tabindex: 0, role: "slider", "aria-label": title, "aria-valuemin": 0 });
    this.readout = el("div", { class: "readout", "aria-hidden": "true" });
    const numbers = later("Show the numbers", () => this.numbers());
    this.figure = el("figure", { "data-metric": key },
      el("figcaption", {}, el("b", {}, title), el("span", { class: "faint note" }, note)), this.plot, this.readout, numbers);
    this.plot.addEventListener("pointermove", (event) => this.point(event));
    this.plot.addEventListener("pointerdown", (event) => this.point(event));
    this.plot.addEventListener("pointerleave", () => this.show(this.steps.length - 1, false));
    this.plot.addEventListener("keydown", (event) => this.press(event));
    this.plot.addEventListener("blur", () => this.show(this.steps.length - 1, false));
    charts.push(this);
  }

  draw() {
    const width = Math.max(220, this.plot.clientWidth || 360);
    this.lines = points(this.curves);
    const all = this.lines.flat(), finite = all.filter((point) => point.mean !== null);
    this.steps = [...new Set(all.map((point) => point.step))].sort((a, b) => a - b);
    this.plot.setAttribute("aria-valuemax", Math.max(0, this.steps.length - 1));
    if (!finite.length) {
      this.plot.replaceChildren(el("p", { class: "faint" }, all.length ? "No finite value." : "Not known against generated samples."));
      return this.show(this.steps.length - 1, false);
    }
    const [x0, x1] = range(finite.map((p) => p.x), 1);
    let [y0, y1] = range(finite.flatMap((p) => [p.mean - (p.error ?? 0), p.mean + (p.error ?? 0)]), Math.abs(finite[0].mean) * 0.1 || 1);
    [y0, y1] = [y0 - 0.04 * (y1 - y0), y1 + 0.04 * (y1 - y0)];
    this.x = (x) => MARGIN.left + (x - x0) / (x1 - x0) * (width - MARGIN.left - MARGIN.right);
    this.y = (y) => HEIGHT - MARGIN.bottom - (y - y0) / (y1 - y0) * (HEIGHT - MARGIN.top - MARGIN.bottom);
    this.cursor = el("g");
    this.plot.replaceChildren(el("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, "aria-hidden": "true" },
      ...this.axes([x0, x1], [y0, y1], width), ...this.lines.flatMap((line, group) => this.line(line, group)), this.cursor));
    this.show(this.steps.length - 1, false);
  }

  axes(xs, ys, width) {
    const down = ticks(...ys, 5), along = ticks(...xs, Math.max(2, Math.floor(width / 70)));
    const foot = HEIGHT - MARGIN.bottom, right = width - MARGIN.right;
    const step = (list) => list.length > 1 ? list[1] - list[0] : 1;
    const whole = along.filter((x) => Number.isInteger(x));
    return [
      ...down.flatMap((y) => [
        el("line", { class: "rule", x1: MARGIN.left, x2: right, y1: this.y(y), y2: this.y(y) }),
        el("text", { x: MARGIN.left - 6, y: this.y(y) + 4, "text-anchor": "end" }, tickText(y, step(down)))]),
      ...whole.flatMap((x) => [
        el("line", { class: "cursor", "stroke-dasharray": "none", x1: this.x(x), x2: this.x(x), y1: foot, y2: foot + 4 }),
        el("text", { x: this.x(x), y: foot + 15, "text-anchor": "middle" }, tickText(x, step(whole)))]),
      el("text", { x: right, y: HEIGHT - 3, "text-anchor": "end" }, axis === "step" ? "step" : "generated samples"),
    ];
  }

  line(line, group) {
    const path = (list, y) => list.map((p) => `${this.x(p.x).toFixed(1)},${this.y(y(p)).toFixed(1)}`).join("L");
    const few = line.length <= 30;
    return stretches(line).flatMap((stretch) => [
      stretch.some((p) => p.error !== null) && stretch.length > 1 ? el("path", { class: "band", style: `fill:${color(group)}`,
        d: `M${path(stretch, (p) => p.mean + (p.error ?? 0))}L${path([...stretch].reverse(), (p) => p.mean - (p.error ?? 0))}Z` }) : null,
      stretch.length > 1 ? el("path", { class: line.length > 300 ? "curve dense" : "curve", style: `stroke:${color(group)}`, "stroke-dasharray": DASHES[group % 8],
        d: `M${path(stretch, (p) => p.mean)}` }) : null,
      ...(few || stretch.length === 1 ? stretch : []).map((p) =>
        el("circle", { cx: this.x(p.x), cy: this.y(p.mean), r: 2.5, style: `fill:${color(group)}` })),
      stretch.length === 1 && stretch[0].error ? el("line", { x1: this.x(stretch[0].x), x2: this.x(stretch[0].x), style: `stroke:${color(group)}`,
        y1: this.y(stretch[0].mean - stretch[0].error), y2: this.y(stretch[0].mean + stretch[0].error) }) : null,
    ].filter(Boolean));
  }

  /** Shows the values at the index-th step as text under the chart, and the cursor if the reader asked for them. */
  show(index, asked) {
    this.index = index;
    const step = this.steps[index];
    const here = this.lines.map((line, group) => ({ group, point: line.find((p) => p.step === step) })).filter((one) => one.point);
    const value = ({ group, point }) => (data.groups.length > 1 ? `${data.groups[group]} ` : "")
      + (point.mean === null ? "not finite" : spread(point.mean, point.error))
      + (point.seeds < members(group) ? ` (${point.seeds} of ${plural(members(group), "seed")})` : "");
    const place = step === undefined ? "" : `step ${figure(step)}`
      + (axis === "samples" && here.length ? `, ${figure(Math.round(here[0].point.x))} samples` : "");
    this.plot.setAttribute("aria-valuenow", Math.max(0, index));
    this.plot.setAttribute("aria-valuetext", [place, ...here.map(value)].join("; ") || "no values");
    this.readout.replaceChildren(el("span", { class: "faint" }, place), ...here.map((one) => el("span", {}, swatch(one.group), value(one))));
    const finite = here.filter((one) => one.point.mean !== null);
    if (!this.cursor) return;
    this.cursor.replaceChildren(...(!asked || !finite.length ? [] : [
      el("line", { class: "cursor", x1: this.x(finite[0].point.x), x2: this.x(finite[0].point.x), y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }),
      ...finite.map(({ group, point }) => el("circle", { cx: this.x(point.x), cy: this.y(point.mean), r: 4, style: `fill:${color(group)}` }))]));
  }

  /** Shows the step nearest to the pointer. */
  point(event) {
    const svg = this.plot.querySelector("svg");
    if (!svg) return;
    const box = svg.getBoundingClientRect(), x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
    let best = null;
    for (const p of this.lines.flat()) if (!best || Math.abs(this.x(p.x) - x) < Math.abs(this.x(best.x) - x)) best = p;
    this.show(this.steps.indexOf(best.step), true);
  }

  press(event) {
    const last = this.steps.length - 1;
    const to = { ArrowLeft: this.index - 1, ArrowDown: this.index - 1, ArrowRight: this.index + 1, ArrowUp: this.index + 1,
      PageUp: this.index + 10, PageDown: this.index - 10, Home: 0, End: last }[event.key];
    if (to === undefined || last < 0) return;
    event.preventDefault();
    this.show(Math.min(last, Math.max(0, to)), true);
  }

  numbers() {
    const seeds = data.runs.length > data.groups.length;
    const header = ["step", "samples", ...data.groups.flatMap((name) => seeds ? [name, "± standard error", "seeds"] : [name])];
    const place = this.curves.map((curve) => new Map((curve?.[0] ?? []).map((step, i) => [step, i])));
    const steps = [...new Set(this.curves.flatMap((curve) => curve?.[0] ?? []))].sort((a, b) => a - b);
    const cells = (step, group) => {
      const i = place[group].get(step);
      const values = i === undefined ? [null, null, null] : [1, 2, 3].map((column) => this.curves[group][column][i]);
      return seeds ? values : values.slice(0, 1);
    };
    const known = (step) => generated.find((one) => one?.has(step))?.get(step) ?? null;
    return table(`${this.title}: numbers`, header, steps.map((step) => [step, known(step), ...this.curves.flatMap((_, group) => cells(step, group))]));
  }
}

function grid(entries, wide = false, curves = data.curves) {
  const made = entries.map(([key, [title, note]]) => new Chart(key, curves[key], title, note));
  return [el("div", { class: wide ? "grid wide" : "grid" }, ...made.map((chart) => chart.figure)), made];
}

/** Charts that are made when the reader opens them. */
function laterGrid(summary, entries, curves) {
  return later(summary, () => {
    const [place, made] = grid(entries, false, curves);
    requestAnimationFrame(() => made.forEach((chart) => chart.draw()));
    return place;
  });
}

/** Charts of the share of each constraint type that the replays of a step keep. */
function showKept() {
  const types = Object.keys(data.kept);
  if (!types.length) return;
  const open = laterGrid(`${plural(types.length, "constraint type")}: share kept in all replays of a step`,
    types.map((name) => [name, [name || "(no type)", "share kept by those replays whose original asked for it"]]), data.kept);
  open.id = "kept";
  open.open = types.length <= MANY_TYPES;
  byId("replay-charts").append(el("h3", {}, "Constraint types over time"), open);
}

function showCurves() {
  const keys = Object.keys(data.curves), shown = new Set();
  for (const [place, title, metrics] of SECTIONS) {
    const entries = Object.entries(metrics).filter(([key]) => keys.includes(key));
    entries.forEach(([key]) => shown.add(key));
    if (entries.length) byId(place).append(...(title ? [el("h3", {}, title)] : []), grid(entries, title === "Accuracy")[0]);
  }
  const others = keys.filter((key) => !shown.has(key));
  if (others.length) {
    const open = laterGrid(`${plural(others.length, "other metric")}: seconds, tokens/s and so on`, others.map((key) => [key, [key, ""]]));
    byId("charts").append(el("h3", {}, "Others"), open);
  }
  if (!keys.length) byId("charts").append(el("p", {}, "No metrics yet: metrics.jsonl holds no step."));
  if (!SECTIONS[3] || !Object.keys(SECTIONS[3][2]).some((key) => shown.has(key))) {
    byId("replay-charts").append(el("p", {}, "No metrics of replays: nothing was replayed yet, or this method replays nothing."));
  }
  showKept();
  if (data.groups.length > 1) byId("legend").append(...data.groups.map((name, group) => el("li", {}, swatch(group), name)));
  const several = data.runs.length > data.groups.length;
  byId("spread").textContent = [
    several ? "Lines are means over those seeds of a group that have a value; shaded: mean ± standard error over them (none for one seed)." : "",
    data.width > 1 ? `Each point is the mean of ${data.width} steps and stands at the last of them.` : "",
  ].join(" ").trim();
  const radios = [...document.querySelectorAll("input[name=axis]")];
  if (!generated.some(Boolean)) [radios[0].checked, radios[1].disabled] = [true, true];
  axis = radios.find((radio) => radio.checked).value; // a browser may have kept it from before a reload
  radios.forEach((radio) => radio.addEventListener("change", () => { axis = radio.value; drawAll(); }));
}

const drawAll = () => charts.forEach((chart) => chart.draw());

showCurves();
drawAll();
let drawnAt = window.innerWidth;
window.addEventListener("resize", calmly(() => {
  if (window.innerWidth !== drawnAt) drawAll();
  drawnAt = window.innerWidth;
}));
