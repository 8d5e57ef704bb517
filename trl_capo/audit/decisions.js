
/* Decisions: pair -> a line of decisions.jsonl. Those on pairs that are not shown here are kept and exported too. */
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
  say(`Exported ${count(lines.length, "decision")}.`);
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
    const lines = readDecisions(await file.text());
    for (const line of lines) decisions.set(line.pair, line);
    save();
    show();
    say(`Imported ${count(lines.length, "decision")}.`);
  } catch (error) {
    say(error.message);
  }
}
