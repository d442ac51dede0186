"use strict";
// Replays: the constraint types that they keep and drop, and the browser.

const PAGE = 20, COLLAPSED = 1200; // replays a page; characters of a response shown at first
const VERDICTS = { 1: ["met", "✓", "met"], 0: ["not", "✗", "not met"], "?": ["unknown", "?", "unknown"] };
const FIELDS = ["run", "step", "integrity", "score", "key", "template", "types", "texts", "marks", "original", "response", "rewritten", "cut"];
const replays = data.replays.map((row) => Object.fromEntries(FIELDS.map((name, i) => [name, row[i]])));
const string = (index) => data.strings[index];
const joined = (pieces) => pieces.map(string).join("");
const namedType = (name) => name || "(no type)";

// --- constraint types ---

/** Kept, not met and unknown as a bar and in words. */
function share([n, met, unknown]) {
  if (!n) return el("td", {}, "–");
  const part = (name, count) => el("span", { class: name, style: `width:${100 * count / n}%` });
  return el("td", {}, el("span", {}, `${Math.round(100 * met / n)} % kept` + (unknown ? `, ${Math.round(100 * unknown / n)} % unknown` : "")),
    el("span", { class: "bar", "aria-hidden": "true" }, part("met", met), part("not", n - met - unknown)));
}

function showTypes(filterBy) {
  const place = byId("types");
  if (!data.types.length) return;
  const add = (a, b) => a.map((count, i) => count + b[i]);
  const types = data.types.map(([name, groups]) => {
    const [early, late] = groups.reduce(([a, b], [c, d]) => [add(a, c), add(b, d)]);
    return { name, groups, early, late, whole: add(early, late) };
  });
  const kept = ([n, met]) => n ? met / n : -1;
  const byName = (a, b) => a.name.localeCompare(b.name, "en");
  const orders = { type: byName, number: (a, b) => b.whole[0] - a.whole[0], kept: (a, b) => kept(a.whole) - kept(b.whole),
    early: (a, b) => kept(a.early) - kept(b.early), late: (a, b) => kept(a.late) - kept(b.late) };
  const titles = { type: "type", number: "in replays", kept: "kept", early: "first half of the steps", late: "second half" };
  const several = data.groups.length > 1;
  const browsable = new Set(replays.flatMap((replay) => replay.types.map(string)));
  const heads = Object.entries(titles).map(([order, title]) => {
    const th = el("th", { scope: "col" }, el("button", { type: "button", click: () => show(order) }, title));
    return [order, th];
  });
  const header = heads.map(([, th]) => th);
  if (several) header.splice(1, 0, el("th", { scope: "col" }, "name"));
  const box = table("Constraint types", header, []), body = box.querySelector("tbody");
  const show = (order) => {
    heads.forEach(([name, th]) => name === order ? th.setAttribute("aria-sort", ["number"].includes(name) ? "descending" : "ascending") : th.removeAttribute("aria-sort"));
    body.replaceChildren(...types.sort((a, b) => orders[order](a, b) || byName(a, b)).flatMap((type) => type.groups.map(([early, late], group) => el("tr", {},
      group ? null : el("th", { scope: "rowgroup", rowspan: type.groups.length },
        browsable.has(type.name) ? el("button", { type: "button", title: "Show the replays with this type", click: () => filterBy(type.name) }, namedType(type.name))
          : namedType(type.name)),
      several ? el("td", {}, data.groups[group]) : null, el("td", { class: "number" }, figure(early[0] + late[0])),
      share(add(early, late)), share(early), share(late)))));
  };
  show("kept");
  const best = "the replays in replays.jsonl, which are the best of each step (logging.replays_per_step), not all";
  const others = data.sampled.length < data.runs.length && Object.keys(data.kept).length > 0;
  place.append(el("h3", {}, "Constraint types, kept and dropped"), el("p", { class: "faint" },
    !data.sampled.length ? "Over all replays." : others ? `Over all replays; of ${data.sampled.map(runName).join(", ")} over ${best}.` : `Over ${best}.`), box);
}

// --- the browser ---

const filters = {}; // values of the filter fields
let matches = [], current = 0, page = 0;
const parts = {};

/** All text of a replay in lower case, made once. */
function haystack(replay) {
  replay.hay ??= [joined(replay.original), string(replay.response), joined(replay.rewritten), string(replay.key), string(replay.template),
    ...replay.types.map(string), ...replay.texts.map(string)].join("\n").toLowerCase();
  return replay.hay;
}

function matching(replay, wanted) {
  const { type, verdict, from, to, run } = filters;
  const step = replay.step ?? -1;
  if ((from !== "" && step < Number(from)) || (to !== "" && step > Number(to))) return false;
  if (run !== "" && runName(replay.run) !== run && data.groups[data.runs[replay.run].group] !== run) return false;
  if ((type !== "" || verdict !== "") && !replay.types.some((name, c) =>
    (type === "" || string(name) === type.slice(1)) && (verdict === "" || replay.marks[c] === verdict))) return false;
  return !wanted || haystack(replay).includes(wanted);
}

const value = (x, least) => x === null ? (least ? Infinity : -Infinity) : x; // unknown values come last
const SORTS = {
  step: ["step, first to last", (a, b) => value(a.step, true) - value(b.step, true)],
  newest: ["step, last to first", (a, b) => value(b.step) - value(a.step)],
  integrity: ["integrity, high to low", (a, b) => value(b.integrity) - value(a.integrity)],
  least: ["integrity, low to high", (a, b) => value(a.integrity, true) - value(b.integrity, true)],
  score: ["score, high to low", (a, b) => value(b.score) - value(a.score)],
  worst: ["score, low to high", (a, b) => value(a.score, true) - value(b.score, true)],
};

function search() {
  for (const [name, field] of Object.entries(parts.fields)) filters[name] = field.value;
  const wanted = filters.text.toLowerCase();
  const compare = SORTS[filters.sort][1];
  matches = replays.filter((replay) => matching(replay, wanted)).sort((a, b) => compare(a, b) || 0);
  parts.count.textContent = `${matches.length.toLocaleString("en")} of ${plural(replays.length, "replay")} ${matches.length === 1 ? "matches" : "match"}`;
  select(0);
}

/** Shows the index-th match, in the list and beside it. */
function select(index, focus = false) {
  current = Math.max(0, Math.min(matches.length - 1, index));
  page = Math.floor(current / PAGE);
  list();
  detail();
  if (focus) parts.list.querySelector("[aria-current=true]")?.focus();
}

function marks(replay) {
  return el("span", { class: "marks", "aria-label": `${plural([...replay.marks].filter((m) => m === "1").length, "constraint")} of ${replay.marks.length} met` },
    ...[...replay.marks].map((mark) => el("span", { class: VERDICTS[mark][0], "aria-hidden": "true" }, VERDICTS[mark][1])));
}

function list() {
  const shown = matches.slice(page * PAGE, page * PAGE + PAGE);
  parts.list.replaceChildren(...shown.map((replay, i) => {
    const index = page * PAGE + i, here = index === current;
    return el("li", {}, el("button", { type: "button", "aria-current": here ? "true" : null, tabindex: here ? 0 : -1, "data-index": index, click: () => open(index) },
      el("span", { class: "row" }, el("span", {}, place(replay)), el("span", {}, `integrity ${figure(replay.integrity)}, score ${figure(replay.score)}`)),
      el("span", { class: "gist" }, marks(replay), ` ${joined(replay.original).slice(0, 150) || "(no text)"}`)));
  }));
  const pages = Math.max(1, Math.ceil(matches.length / PAGE));
  parts.pages.textContent = `page ${page + 1} of ${pages.toLocaleString("en")}`;
  parts.back.disabled = page === 0;
  parts.on.disabled = page >= pages - 1;
}

const place = (replay) => (replay.step === null ? "no step" : `step ${figure(replay.step)}`) + (data.runs.length > 1 ? `, ${runName(replay.run)}` : "");

/** Opens a replay at a click, and scrolls to it if it is below the list. */
function open(index) {
  select(index, true);
  if (parts.detail.getBoundingClientRect().top > parts.list.getBoundingClientRect().bottom - 1) parts.detail.scrollIntoView({ block: "start" });
}

/** Text nodes of a text, with the searched words in <mark>. */
function marked(text) {
  if (!filters.text) return [text];
  const wanted = new RegExp(filters.text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "gi"), found = [];
  let at = 0;
  for (const hit of text.matchAll(wanted)) {
    found.push(text.slice(at, hit.index), el("mark", {}, hit[0]));
    at = hit.index + hit[0].length;
  }
  return [...found, text.slice(at)];
}

/** The original instruction; constraints in it underlined or struck through. */
function original(replay) {
  const verdict = new Map(replay.texts.map((text, c) => [text, VERDICTS[replay.marks[c]][0]]));
  const nodes = replay.original.map((piece) => verdict.has(piece) ? el("span", { class: verdict.get(piece) }, ...marked(string(piece))) : marked(string(piece)));
  return el("div", { class: "text" }, ...nodes.flat());
}

function response(replay) {
  const text = string(replay.response), wanted = filters.text.toLowerCase();
  const box = el("div", { class: "text", "data-part": "response" });
  const show = (whole) => box.replaceChildren(...(text ? marked(whole ? text : text.slice(0, COLLAPSED) + " …") : [el("span", { class: "faint" }, "(empty)")]));
  const long = text.length > COLLAPSED + 200, found = wanted !== "" && text.toLowerCase().indexOf(wanted, COLLAPSED - wanted.length) >= 0;
  let whole = !long || found;
  show(whole);
  const label = () => whole ? "Show less" : `Show all ${text.length.toLocaleString("en")} characters`;
  const button = el("button", { type: "button", class: "more", "aria-expanded": String(whole), click: () => {
    whole = !whole;
    show(whole);
    button.setAttribute("aria-expanded", String(whole));
    button.textContent = label();
  } }, label());
  return [box, long ? button : null,
    replay.cut ? el("p", { class: "faint" }, `${replay.cut.toLocaleString("en")} characters more are in replays.jsonl; they are left out of this page for its size.`) : null];
}

function detail() {
  const replay = matches[current];
  if (!replay) return parts.detail.replaceChildren(el("p", {}, "No replay matches these filters."));
  const step = (by, text) => el("button", { type: "button", disabled: !matches[current + by], "data-step": by, click: () => {
    select(current + by);
    (parts.detail.querySelector(`[data-step="${by}"]:not(:disabled)`) ?? parts.title).focus();
  } }, text);
  parts.title = el("h3", { tabindex: -1 }, `Replay ${(current + 1).toLocaleString("en")} of ${matches.length.toLocaleString("en")}: ${place(replay)}`);
  const about = [`integrity ${figure(replay.integrity)}`, `score ${figure(replay.score)}`, string(replay.key) && `row ${string(replay.key)}`,
    string(replay.template) && `template ${string(replay.template)}`].filter(Boolean).join(" · ");
  parts.detail.replaceChildren(
    el("div", { class: "controls pager" }, step(-1, "← Previous"), step(1, "Next →")),
    parts.title, el("p", { class: "faint" }, about),
    el("h4", {}, "Original instruction"), original(replay),
    el("h4", {}, "Its constraints"),
    replay.types.length ? el("ul", { class: "verdicts" }, ...replay.types.map((type, c) => {
      const [name, symbol, words] = VERDICTS[replay.marks[c]];
      return el("li", {}, el("span", { class: `verdict ${name}` }, `${symbol} ${words}`),
        el("span", {}, ...marked(string(replay.texts[c])), el("span", { class: "type" }, ...marked(string(type)))));
    })) : el("p", { class: "faint" }, "None recorded."),
    el("h4", {}, "Response"), ...response(replay).filter(Boolean),
    el("h4", {}, "Rewritten instruction, which it is replayed for"), el("div", { class: "text" }, ...marked(joined(replay.rewritten))));
}

function press(event) {
  const to = { ArrowDown: current + 1, ArrowUp: current - 1, PageDown: current + PAGE, PageUp: current - PAGE, Home: 0, End: matches.length - 1 }[event.key];
  if (event.key === "Enter") {
    event.preventDefault();
    select(Number(event.target.closest("button").dataset.index));
    parts.title.focus();
  } else if (to !== undefined) {
    event.preventDefault();
    select(to, true);
  }
}

/** Puts these values into the fields, and clears the others. */
function setFilters(values) {
  for (const [name, field] of Object.entries(parts.fields)) field.value = values[name] ?? (name === "sort" ? "step" : "");
  search();
}

function showBrowser() {
  const box = byId("browser");
  if (!replays.length) return box.append(el("p", {}, "No replays yet: replays.jsonl is absent or empty."));
  const option = (value, text) => el("option", { value }, text);
  const counts = new Map();
  for (const replay of replays) for (const type of new Set(replay.types)) counts.set(string(type), (counts.get(string(type)) ?? 0) + 1);
  const types = [...counts].sort(([a], [b]) => a.localeCompare(b, "en")).map(([name, n]) => option(`=${name}`, `${namedType(name)} (${n.toLocaleString("en")})`));
  const names = data.runs.map((_, index) => runName(index)), whose = [...new Set([...(data.groups.length > 1 ? data.groups : []), ...names])];
  const fields = parts.fields = {
    text: el("input", { type: "search", autocomplete: "off", spellcheck: "false" }),
    type: el("select", {}, option("", "any type"), ...types),
    verdict: el("select", {}, option("", "met or not"), ...Object.entries(VERDICTS).map(([mark, [, symbol, words]]) => option(mark, `${symbol} ${words}`))),
    from: el("input", { type: "number", min: 0, inputmode: "numeric" }),
    to: el("input", { type: "number", min: 0, inputmode: "numeric" }),
    run: el("select", {}, option("", "all runs"), ...whose.map((name) => option(name, name))),
    sort: el("select", {}, ...Object.entries(SORTS).map(([name, [text]]) => option(name, text))),
  };
  const calm = calmly(search);
  for (const [name, field] of Object.entries(fields)) {
    field.id = `filter-${name}`;
    const chosen = field.tagName === "SELECT"; // a choice takes effect at once, typing after a pause
    field.addEventListener(chosen ? "change" : "input", chosen ? search : calm);
  }
  Object.assign(parts, {
    count: el("p", { role: "status", "aria-live": "polite", id: "count" }), list: el("ol", { "aria-label": "Replays", keydown: press }),
    detail: el("article", { class: "replay", "aria-label": "The replay" }), pages: el("span", { class: "faint" }),
    back: el("button", { type: "button", click: () => select((page - 1) * PAGE) }, "← Page"),
    on: el("button", { type: "button", click: () => select((page + 1) * PAGE) }, "Page →"),
  });
  const label = (text, field, extra = "") => el("label", { class: extra }, text, field);
  const dropped = data.replays_found - replays.length;
  box.append(
    el("p", { class: "faint" }, "Failed responses that were learnt from as successes of a rewritten, easier instruction."
      + (dropped ? ` ${plural(replays.length, "replay")} of ${data.replays_found.toLocaleString("en")} in the files, evenly spread, for the page's size.` : "")),
    el("div", { class: "filters", role: "search", "aria-label": "Filter replays" },
      label("Search in all texts", fields.text, "search"), label("Constraint type", fields.type), label("that is", fields.verdict),
      el("div", { class: "pair" }, label("From step", fields.from), label("to step", fields.to)),
      data.runs.length > 1 ? label("Run", fields.run) : null, label("Order", fields.sort), el("button", { type: "button", click: () => setFilters({}) }, "Reset")),
    el("div", { class: "browser" },
      el("div", { class: "list" }, parts.count,
        el("p", { class: "faint print-no" }, "Arrow keys move through the list, Enter goes to the replay."),
        parts.list, el("div", { class: "controls pager" }, parts.back, parts.pages, parts.on)),
      parts.detail));
  search();
}

showBrowser();
showTypes((name) => {
  setFilters({ type: `=${name}` });
  byId("replays").scrollIntoView();
  parts.fields.type.focus({ preventScroll: true });
});
