
"use strict";
/* All texts of the data are inserted as text nodes, never as HTML. */
const data = JSON.parse(document.getElementById("data").textContent);
const { suspects, fingerprint, counts } = data;
const ROW = 48; // pixels, as in page.css
const $ = (id) => document.getElementById(id);

/* `view` holds the suspects that pass the filters; `current` is the one shown, or null. */
let view = suspects;
let current = suspects[0];
let marking = true;
const listed = new Set(suspects.map((row) => row.pair));
const firstUndecided = (rows) => rows.find((row) => !decisions.has(row.pair));

function decide(decision) {
  if (!current) return;
  const { pair } = current;
  const note = decisions.get(pair)?.note;
  decisions.delete(pair); // a new decision on a pair is the last one
  decisions.set(pair, { pair, fingerprint, decision, ...(note !== undefined && { note }) });
  save();
  const at = view.indexOf(current);
  const following = firstUndecided([...view.slice(at + 1), ...view.slice(0, at)]);
  show(following ?? current);
  say(`Pair ${pair}: ${decision}.` + (following ? "" : " No pair in view is left undecided."));
}

function undo() {
  const pair = decisions.has(current?.pair) ? current.pair : [...decisions.keys()].findLast((pair) => listed.has(pair));
  const row = view.find((row) => row.pair === pair);
  if (!row) return say(pair === undefined ? "There is nothing to undo." : `The filter hides pair ${pair}, the last one decided.`);
  decisions.delete(pair);
  save();
  show(row);
  say(`Pair ${pair}: cleared.`);
}

function filter() {
  const wanted = $("search").value.normalize("NFC").toLowerCase();
  const group = groups[$("group").value];
  view = suspects.filter((row) => (group === undefined || row.group === group) && (!wanted || searched(row).includes(wanted)));
  $("list").scrollTop = 0;
  show(view.includes(current) ? current : firstUndecided(view) ?? view[0] ?? null);
  say(`${count(view.length, "pair")} in view.`);
}

function searched(row) {
  return row.lower ??= [row.id, row.prompt, row.chosen, row.rejected].join("\n").normalize("NFC").toLowerCase();
}

function move(steps) {
  const to = view[view.indexOf(current) + steps];
  if (to) show(to);
}

function show(row = current) {
  const moved = row !== current || !$("name").textContent;
  current = row;
  $("pair").hidden = !row;
  $("empty").hidden = Boolean(row);
  $("empty").textContent = suspects.length ? "No pair passes the filter." : "No suspects.";
  if (row && moved) describe(row);
  const done = (rows) => rows.filter((row) => decisions.has(row.pair)).length;
  const share = (rows) => `${done(rows).toLocaleString("en")} of ${rows.length.toLocaleString("en")}`;
  $("bar").value = suspects.length ? done(suspects) / suspects.length : 0;
  const progress = [`decided ${share(suspects)}`, view.length < suspects.length && `${share(view)} in view`, !stored && "not saved"];
  $("decided").textContent = progress.filter(Boolean).join(" · ");
  const decision = decisions.get(row?.pair)?.decision;
  for (const button of $("decide").querySelectorAll("[data-decision]")) {
    button.disabled = !row;
    button.setAttribute("aria-pressed", button.dataset.decision === decision);
  }
  $("previous").disabled = !row || row === view[0];
  $("next").disabled = !row || row === view.at(-1);
  $("kept").textContent = stored
    ? "Decisions are kept in this browser, for this data set; export them to use them."
    : "This browser does not keep decisions for this file. Export them before you close it.";
  say("");
  $("rows").style.height = `${view.length * ROW}px`; // before reveal(), which cannot scroll further
  if (row) reveal();
  drawList();
}

function describe(row) {
  const lang = language(row.group);
  const names = [row.id, row.group].filter((name) => name != null).map((name) => element("bdi", visible(name)));
  const title = [`#${row.rank}`, `pair ${row.pair}`, ...names, `score ${number(row.score)}`, `suggestion: ${row.suggestion}`];
  $("name").replaceChildren(...title.flatMap((part, index) => (index ? [" · ", part] : part)));
  $("reasons").replaceChildren(...(row.reasons ?? []).map((reason) => element("li", visible(reason))));
  const times = (n) => (n == null ? "–" : count(n, "time"));
  const facts = {
    Confidence: `${number(row.first_confidence)} → ${number(row.final_confidence)}`,
    "mean": `${number(row.mean_confidence)} ± ${number(row.variability)}`,
    "area under margin": number(row.area_under_margin),
    forgotten: times(row.forgetting),
    seen: times(row.epochs),
  };
  $("dynamics").replaceChildren(...Object.entries(facts).map(([name, value]) => element("div", element("dt", name), element("dd", value))));
  $("dynamics").hidden = row.epochs == null; // there was no training run
  const answers = [row.chosen ?? "", row.rejected ?? ""];
  const [chosen, rejected] = marking ? different(...answers) : answers;
  for (const [id, text] of Object.entries({ prompt: row.prompt ?? "", chosen, rejected })) {
    const marked = [text].flat().map((part) => (part.mark ? element("mark", visible(part.mark)) : visible(part)));
    $(id).replaceChildren(...marked);
    $(id).lang = lang;
    $(id).scrollTop = 0;
  }
  $("prompt-part").hidden = !row.prompt;
  $("answers").hidden = row.chosen == null; // the log names no data set
  $("pair").scrollTop = 0;
}

/* Only the visible rows of the list are elements, so that thousands of suspects cost nothing. */
function drawList() {
  const first = Math.max(0, Math.floor($("list").scrollTop / ROW) - 5);
  const last = first + Math.ceil($("list").clientHeight / ROW) + 10;
  $("rows").replaceChildren(...view.slice(first, last).map((row, index) => {
    const place = first + index;
    const top = element("p", `#${row.rank}`, element("bdi", visible(row.group ?? "")), element("b", decisions.get(row.pair)?.decision ?? ""), number(row.score));
    const text = element("span", visible((row.prompt || row.chosen || "").slice(0, 80)));
    Object.assign(text, { dir: "auto", lang: language(row.group) });
    const item = element("div", top, text);
    Object.assign(item, { role: "option", id: `row-${place}`, ariaSetSize: view.length, ariaPosInSet: place + 1, ariaSelected: row === current });
    item.style.top = `${place * ROW}px`;
    item.onclick = () => show(row);
    return item;
  }));
  $("list").setAttribute("aria-activedescendant", $(`row-${view.indexOf(current)}`)?.id ?? "");
}

function reveal() {
  const top = view.indexOf(current) * ROW, height = $("list").clientHeight;
  if (top < $("list").scrollTop) $("list").scrollTop = top;
  else if (top + ROW > $("list").scrollTop + height) $("list").scrollTop = top + ROW - height;
}

/* Helpers. */
function element(name, ...content) {
  const made = document.createElement(name);
  made.append(...content);
  return made;
}

function visible(text) { // shows control characters as symbols, and bidirectional controls as escapes
  const shown = String(text).replace(/[\0-\x08\x0b-\x1f\x7f]/g, (c) => (c === "\x7f" ? "\u2421" : String.fromCharCode(0x2400 + c.charCodeAt())));
  return shown.replace(/[\u202a-\u202e\u2066-\u2069]/g, (c) => `\\u${c.charCodeAt().toString(16)}`);
}

function language(group) { // for `lang`, on which the glyphs of Han characters depend
  try {
    return /^[a-z]{2,3}([-_]|$)/i.test(group) ? Intl.getCanonicalLocales(group.replaceAll("_", "-"))[0] : "";
  } catch {
    return "";
  }
}

const number = (value) => (value == null ? "–" : value.toFixed(2).replace("-", "−"));
const count = (n, what) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;
const say = (text) => { $("status").textContent = text; };

/* Decisions map a pair to a line of decisions.jsonl, in the order in which undo() goes back. Those on pairs that this page
does not show are exported too. */
const DECISIONS = ["keep", "flip", "drop"];
const KEY = `trl-capo decisions ${fingerprint}`;
let decisions = new Map();
let stored = true;
let unexported = false;

function load() {
  try {
    decisions = new Map(JSON.parse(localStorage.getItem(KEY) ?? "[]").map((line) => [line.pair, line]));
  } catch {
    stored = false;
  }
}

function save() {
  unexported = true;
  try {
    localStorage.setItem(KEY, JSON.stringify([...decisions.values()]));
    stored = true;
  } catch {
    stored = false;
  }
}

function exportDecisions() {
  const lines = [...decisions.values()].sort((a, b) => a.pair - b.pair).map((line) => JSON.stringify(line) + "\n");
  if (!lines.length) return say("There is no decision to export yet.");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
  link.download = "decisions.jsonl";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  unexported = false;
  $("exported-title").textContent = `Exported ${count(lines.length, "decision")}`;
  $("copied").textContent = "";
  $("exported").showModal();
}

function copy(id) {
  getSelection().selectAllChildren($(id));
  $("copied").textContent = document.execCommand("copy") ? "Copied." : "Not copied: copy the selection yourself.";
}

function readDecisions(text) {
  return text.split("\n").flatMap((content, index) => {
    if (!content.trim()) return [];
    const fail = (why) => { throw new Error(`Nothing imported: line ${index + 1} ${why}.`); };
    let line;
    try { line = JSON.parse(content); } catch { fail("is not JSON"); }
    if (!Number.isSafeInteger(line?.pair)) fail("names no pair");
    if (line.fingerprint !== fingerprint) fail("is on another data set");
    if (!DECISIONS.includes(line.decision)) fail("has no decision of keep, flip or drop");
    const { pair, decision, note } = line;
    return [{ pair, fingerprint, decision, ...(typeof note === "string" && { note }) }];
  });
}

async function importDecisions(file) {
  try {
    const lines = readDecisions(await file.text()).map((line) => [line.pair, line]);
    decisions = new Map([...lines, ...decisions, ...lines]); // undo() starts with decisions made here
    save();
    show();
    say(`Imported ${count(lines.length, "decision")}.`);
  } catch (error) {
    say(error.message);
  }
}

/* Mark the words that are not in the longest common subsequence of two texts; each text becomes a list of parts. */
function different(one, other) {
  const a = words(one), b = words(other);
  let start = 0, end = 0;
  while (start < Math.min(a.length, b.length) && a[start].trim() === b[start].trim()) start++;
  while (end < Math.min(a.length, b.length) - start && a.at(-1 - end).trim() === b.at(-1 - end).trim()) end++;
  const m = a.length - start - end, n = b.length - start - end;
  const common = [new Set(), new Set()];
  if (m * n <= 4e6) {
    const [x, y] = [a, b].map((list) => list.slice(start, list.length - end).map((word) => word.trim()));
    const length = Array.from({ length: m + 1 }, () => new Uint16Array(n + 1));
    for (let i = m - 1; i >= 0; i--)
      for (let j = n - 1; j >= 0; j--)
        length[i][j] = x[i] === y[j] ? length[i + 1][j + 1] + 1 : Math.max(length[i + 1][j], length[i][j + 1]);
    for (let i = 0, j = 0; i < m && j < n; )
      if (x[i] === y[j]) { common[0].add(start + i++); common[1].add(start + j++); }
      else if (length[i + 1][j] >= length[i][j + 1]) i++;
      else j++;
  }
  const same = start + end + common[0].size;
  if (same < Math.max(a.length, b.length) / 5) return [one, other]; // marks would cover nearly everything
  return [a, b].map((list, side) => {
    const parts = [];
    list.forEach((word, index) => {
      const plain = index < start || index >= list.length - end || common[side].has(index);
      const last = parts.at(-1); // join neighbours: replaceChildren() takes a limited number of arguments
      if (plain) typeof last === "string" ? parts.push(parts.pop() + word) : parts.push(word);
      else if (last?.mark) last.mark += word;
      else parts.push({ mark: word });
    });
    return parts.flatMap((part) => part.mark ? [{ mark: part.mark.trimEnd() }, part.mark.slice(part.mark.trimEnd().length)] : part);
  });
}

/* Split a text into words with the spaces after them, also in scripts without spaces. */
function words(text) {
  const parts = [];
  for (const { segment } of new Intl.Segmenter(undefined, { granularity: "word" }).segment(text))
    if (parts.length && !segment.trim()) parts.push(parts.pop() + segment);
    else parts.push(segment);
  return parts;
}

function help() {
  if ($("help-text").open) $("help-text").close();
  else $("help-text").showModal();
}

function mark() {
  marking = !marking;
  $("differences").setAttribute("aria-pressed", marking);
  if (current) describe(current);
}

const focus = (id) => () => {
  $(id).focus();
  say("Esc leaves the field.");
};
const next = () => move(1), previous = () => move(-1);
const KEYS = {
  k: () => decide("keep"), f: () => decide("flip"), d: () => decide("drop"), u: undo, m: mark, e: exportDecisions,
  n: next, j: next, ArrowRight: next, ArrowDown: next, p: previous, ArrowLeft: previous, ArrowUp: previous,
  Home: () => show(view[0]), End: () => show(view.at(-1)), "/": focus("search"), g: focus("group"), "?": help,
};
addEventListener("keydown", (event) => {
  const field = event.target.closest("input, select");
  if (field && !event.isComposing && (event.key === "Escape" || (event.key === "Enter" && field === $("search")))) {
    event.preventDefault(); // Escape would clear a search field
    field.blur();
  }
  const scrolls = /^(Arrow|Home|End)/.test(event.key) && event.target.closest(".text > div");
  const letter = /^[^\0-\x7f]$/.test(event.key) ? event.code.replace("Key", "") : event.key; // Cyrillic or Arabic layouts
  const key = letter.length === 1 ? letter.toLowerCase() : letter;
  if (field || scrolls || event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(KEYS, key)) return;
  if ((document.querySelector("dialog[open]") && !($("help-text").open && key === "?")) || (event.repeat && "kfdue".includes(key))) return;
  event.preventDefault();
  KEYS[key]();
});
for (const button of $("decide").querySelectorAll("[data-decision]")) button.onclick = () => decide(button.dataset.decision);
for (const button of document.querySelectorAll("[data-copy]")) button.onclick = () => copy(button.dataset.copy);
for (const button of document.querySelectorAll("[data-close]")) button.onclick = () => button.closest("dialog").close();
const CLICKS = { undo, next, previous, help, differences: mark, export: exportDecisions, import: () => $("file").click() };
for (const [id, act] of Object.entries(CLICKS)) $(id).onclick = act;
$("file").onchange = () => { importDecisions($("file").files[0]); $("file").value = ""; };
let waiting; // for a pause in the typing, but not beyond the field: the next key decides on a pair in view
const search = () => { waiting = clearTimeout(waiting); filter(); };
$("search").oninput = () => { clearTimeout(waiting); waiting = setTimeout(search, 120); };
$("search").onchange = () => { if (waiting) search(); };
let clicked; // after a choice with the mouse, the next key is a decision and not the first letter of another group
$("group").onpointerdown = () => { clicked = true; };
$("group").onkeydown = () => { clicked = false; };
$("group").onchange = () => {
  filter();
  if (clicked) $("group").blur();
};
$("list").onscroll = drawList;
addEventListener("resize", drawList);
addEventListener("storage", (event) => { if (event.key === KEY) { load(); show(); } });
addEventListener("beforeunload", (event) => { if (!stored && unexported) event.preventDefault(); });

const groups = [...new Set(suspects.map((row) => row.group))].filter((group) => group != null).sort();
const option = (text, value) => Object.assign(element("option", text), { value });
const ofGroup = (group) => suspects.filter((row) => row.group === group).length + (counts?.[group] ? ` of ${count(counts[group], "pair")}` : "");
$("group").append(option(`Every ${visible(data.groupName)}  (g)`, ""), ...groups.map((group, index) => option(`${visible(group)}: ${ofGroup(group)}`, index)));
$("group").ariaLabel = `Filter by ${data.groupName}`;
$("group").hidden = !groups.length;
$("title").textContent = document.title = visible(data.title);
load();
show(firstUndecided(suspects) ?? suspects[0]);
