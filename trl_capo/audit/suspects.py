"""List and write suspects: pairs ranked by how likely their labels are wrong, with reasons and texts."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from jinja2 import Environment, FileSystemLoader

from trl_capo.audit.mislabels import LabelErrors
from trl_capo.common.text import count, spreadsheet_cell

TEXTS = ("prompt", "chosen", "rejected")
STATISTICS = ("first_confidence", "final_confidence", "mean_confidence", "variability", "area_under_margin")
_TYPES = {"pair": pa.int64(), "id": pa.string(), "group": pa.string(), "score": pa.float64(), "rank": pa.int64()}
_TYPES |= {"suggestion": pa.string(), "reasons": pa.list_(pa.string()), **dict.fromkeys(TEXTS, pa.string())}
_TYPES |= dict.fromkeys(STATISTICS, pa.float32()) | dict.fromkeys(("forgetting", "epochs"), pa.int32())
SCHEMA = pa.schema(_TYPES | {"fingerprint": pa.string()})
NOISY_GROUP = 1.25  # ratio of a group's noise rate to the overall one above which the rate is a reason


def list_suspects(errors: LabelErrors, data: Dataset | None, fingerprint: str) -> pa.Table:
    """Return a table of SCHEMA, worst first; what neither the log nor the data set holds is null."""
    pairs, rates = errors.pairs, errors.groups["rate"]
    noisy = rates[(rates > NOISY_GROUP * rates[pairs["group"]].mean()) & (rates.index != "")].to_dict()
    columns = {name: None for name in SCHEMA.names if name not in pairs} | {
        "pair": pairs.index,
        "group": pairs["group"].where(pairs["group"] != ""),
        "rank": range(1, len(pairs) + 1),
        "reasons": [reasons(pair, noisy.get(pair.group)) for pair in pairs.itertuples()],
        "area_under_margin": pairs.get("mean_margin"),
        "fingerprint": fingerprint,
    }
    if data is not None:
        names = [name for name in (*TEXTS, "id") if name in data.column_names]
        texts = data.select_columns(names).with_format(None).select(pairs.index)
        columns |= {name: list(map(render_messages, texts[name][:])) for name in names}
    return pa.Table.from_pandas(pairs.assign(**columns), SCHEMA, preserve_index=False)


def reasons(pair: Any, noise_rate: float | None = None) -> list[str]:
    """Say what speaks for and against a label, a row of `LabelErrors.pairs`; `noise_rate` is its group's, if high."""
    neither, chosen, rejected = answers = ("neither answer", "the chosen answer", "the rejected answer")
    found = []
    if hasattr(pair, "epochs"):
        passes = {rejected: pair.disagreements, chosen: pair.agreements, neither: pair.epochs}
        side, number = next((side, number) for side, number in passes.items() if number)
        if pair.epochs > 1:
            times = f"{'all' if number == pair.epochs else f'{number} of'} {pair.epochs} passes"
            found.append(f"the model preferred {side} in {times} (mean margin {pair.mean_margin:+.2f})")
        if pair.epochs == 1 or (pair.disagreements and pair.first_margin):
            first = f"{answers[int(np.sign(pair.first_margin))]} (margin {pair.first_margin:+.2f})"
            found.append(f"before it learned from the pair, the model preferred {first}")
        if pair.forgetting:
            found.append(f"it agreed with the label and later disagreed, {count(pair.forgetting, 'time')}")
    if getattr(pair, "probe", 0):
        found.append(f"the probe, fitted to other pairs, prefers {answers[int(np.sign(pair.probe))]}")
    if noise_rate:
        found.append(f"about {noise_rate:.0%} of the labels of {pair.group!r} look wrong")
    return found


def render_messages(value: Any) -> str | None:
    """Write a list of messages as one text, with a line `role:` before each; convert other values to text."""
    if not isinstance(value, list):
        return None if value is None else str(value)
    lines = []
    for message in value:
        content, calls = message.get("content"), message.get("tool_calls")
        if isinstance(content, list):
            content = " ".join(part.get("text") or f"[{part['type']}]" for part in content)
        calls = calls and json.dumps(calls, ensure_ascii=False, sort_keys=True, default=str)
        lines += [f"{message['role']}:", " ".join(filter(None, [content, calls]))]
    return "\n".join(lines)


def write_suspects(suspects: pa.Table, top: int, folder: Path) -> list[dict[str, Any]]:
    """Write all suspects to suspects.parquet, and the first `top` to .csv and .jsonl; return the latter as rows."""
    pq.write_table(suspects, folder / "suspects.parquet", compression="zstd")
    rows = suspects.slice(0, top).to_pylist()
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "suspects.jsonl").write_text(lines, encoding="utf-8", newline="\n")
    cells = pd.DataFrame(rows, dtype=object).map(spreadsheet_cell)  # utf-8-sig: spreadsheets need the byte order mark
    cells.to_csv(folder / "suspects.csv", index=False, encoding="utf-8-sig", quoting=csv.QUOTE_ALL)
    return rows


def write_page(path: Path, suspects: list[dict[str, Any]], **shown: Any) -> None:
    """Write rows of suspects.jsonl as an HTML page on which to decide, which needs neither network nor server.

    They are JSON in the page, and its script inserts them as text, never as HTML. `shown`: title, fingerprint,
    groupName, counts (logged pairs by group), and the command that applies an export.
    """
    rows = [{name: value for name, value in row.items() if name != "fingerprint"} for row in suspects]
    data = {**shown, "suspects": rows}
    files = FileSystemLoader(Path(__file__).with_name("page"))
    text = Environment(loader=files, autoescape=True).get_template("page.html").render(data=data)
    path.write_text(text, encoding="utf-8", newline="\n")
