
function help() {
  if ($("help-text").open) $("help-text").close();
  else $("help-text").showModal();
}

function mark() {
  marking = !marking;
  $("differences").setAttribute("aria-pressed", marking);
  if (current) describe(current);
}

const focus = (id) => () => $(id).focus();
const next = () => move(1), previous = () => move(-1);
const KEYS = {
  k: () => decide("keep"), f: () => decide("flip"), d: () => decide("drop"), u: undo, m: mark, e: exportDecisions,
  n: next, j: next, ArrowRight: next, ArrowDown: next, p: previous, ArrowLeft: previous, ArrowUp: previous,
  "/": focus("search"), g: focus("group"), "?": help,
};
addEventListener("keydown", (event) => {
  const field = event.target.closest("input, select");
  if (field && event.key === "Escape") {
    event.preventDefault(); // a search field would be emptied
    field.blur();
  }
  const scrolls = event.key.startsWith("Arrow") && event.target.closest(".text > div");
  const letter = /^[^\0-\x7f]$/.test(event.key) ? event.code.replace("Key", "") : event.key; // a Cyrillic or Arabic layout
  const key = letter.length === 1 ? letter.toLowerCase() : letter;
  if (field || scrolls || event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(KEYS, key)) return;
  if (($("help-text").open && key !== "?") || (event.repeat && "kfdue".includes(key))) return;
  event.preventDefault();
  KEYS[key]();
});
for (const button of $("decide").querySelectorAll("[data-decision]")) button.onclick = () => decide(button.dataset.decision);
const CLICKS = { undo, next, previous, help, close: help, differences: mark, export: exportDecisions, import: () => $("file").click() };
for (const [id, act] of Object.entries(CLICKS)) $(id).onclick = act;
$("file").onchange = () => { importDecisions($("file").files[0]); $("file").value = ""; };
let waiting;
$("search").oninput = () => { clearTimeout(waiting); waiting = setTimeout(filter, 120); };
let clicked; // a group chosen with the mouse: the next key is a decision, not the first letter of another group
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
show(suspects.find((row) => !decisions.has(row.pair)) ?? suspects[0]);
