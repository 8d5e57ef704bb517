
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const { suspects, fingerprint, counts } = data;
const ROW = 48; // pixels, as in page.css
const $ = (id) => document.getElementById(id);

/* What is shown: `view` is the suspects that pass the filters, `current` one of them. */
let view = suspects;
let current = suspects[0];
let marking = true;
const past = []; // pairs decided since the page was opened

function decide(decision) {
  if (!current) return;
  const { pair } = current;
  const note = decisions.get(pair)?.note;
  decisions.set(pair, { pair, fingerprint, decision, ...(note !== undefined && { note }) });
  past.push(pair);
  save();
  const at = view.indexOf(current);
  const open = [...view.slice(at + 1), ...view.slice(0, at)].find((row) => !decisions.has(row.pair));
  show(open ?? current);
  say(`Pair ${pair}: ${decision}.` + (open ? "" : " No pair in view is left undecided."));
}

function undo() {
  const pair = decisions.has(current?.pair) ? current.pair : past.findLast((pair) => decisions.has(pair));
  const row = view.find((row) => row.pair === pair);
  if (!row) return say("There is nothing to undo here.");
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
  show(view.includes(current) ? current : view[0] ?? null); // null: there is none
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
  const done = suspects.filter((row) => decisions.has(row.pair)).length;
  $("bar").value = suspects.length ? done / suspects.length : 0;
  $("decided").textContent = `decided ${done} of ${suspects.length}` + (view.length < suspects.length ? ` · ${view.length} in view` : "");
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
  if (row && moved) reveal();
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
  const answers = [row.chosen ?? "", row.rejected ?? ""];
  const [chosen, rejected] = marking ? different(...answers) : answers;
  for (const [id, text] of Object.entries({ prompt: row.prompt ?? "", chosen, rejected })) {
    const marked = [text].flat().map((part) => (part.mark ? element("mark", visible(part.mark)) : visible(part)));
    $(id).replaceChildren(...marked);
    $(id).lang = lang;
    $(id).scrollTop = 0;
  }
  $("prompt-part").hidden = !row.prompt;
  $("answers").hidden = row.chosen == null; // the log did not name its data
  $("pair").scrollTop = 0;
}

/* Only the rows of the list that can be seen are elements. */
function drawList() {
  const first = Math.max(0, Math.floor($("list").scrollTop / ROW) - 5);
  const last = first + Math.ceil($("list").clientHeight / ROW) + 10;
  $("rows").style.height = `${view.length * ROW}px`;
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
  $("list").setAttribute("aria-activedescendant", `row-${view.indexOf(current)}`);
}

function reveal() {
  const top = view.indexOf(current) * ROW, height = $("list").clientHeight;
  if (top < $("list").scrollTop) $("list").scrollTop = top;
  else if (top + ROW > $("list").scrollTop + height) $("list").scrollTop = top + ROW - height;
}

/* Small things. */
function element(name, ...content) {
  const made = document.createElement(name);
  made.append(...content);
  return made;
}

function visible(text) { // control characters as pictures of them, turns of the reading direction as escapes
  const shown = String(text).replace(/[\0-\x08\x0b-\x1f\x7f]/g, (c) => (c === "\x7f" ? "\u2421" : String.fromCharCode(0x2400 + c.charCodeAt())));
  return shown.replace(/[\u202a-\u202e\u2066-\u2069]/g, (c) => `\\u${c.charCodeAt().toString(16)}`);
}

function language(group) { // glyphs of Han characters depend on it
  try {
    return /^[a-z]{2,3}([-_]|$)/i.test(group) ? Intl.getCanonicalLocales(group.replaceAll("_", "-"))[0] : "";
  } catch {
    return "";
  }
}

const number = (value) => (value == null ? "–" : value.toFixed(2).replace("-", "−"));
const count = (n, what) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;
const say = (text) => { $("status").textContent = text; };
