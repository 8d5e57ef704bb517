"""Preference data that cannot be used, each made when it is asked for.

BROKEN maps a case's name to a function that writes it below a folder and returns the name to give as `dataset_name`.
"""

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict

Make = Callable[[Path], str]
GOOD = {"prompt": "Say it: ", "chosen": "yes, gladly", "rejected": "no", "language": "de"}
HUGE = "x" * 100_000
RIGHT_TO_LEFT = "\u202e\u200f\u2067"
CONTROLS = "\x1b[31m\x07\x00\x9b2J"


def message(content: Any = "yes", role: Any = "assistant") -> dict:
    return {"role": role, "content": content}


CHAT = {"prompt": [message("Say it", "user")], "chosen": [message("yes")], "rejected": [message("no")]}


def json_lines(rows: list) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def in_file(name: str, content: str | bytes) -> Make:
    def make(folder: Path) -> str:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return str(path)

    return make


def in_folder(files: Mapping[str, str | bytes]) -> Make:
    def make(folder: Path) -> str:
        for name, content in files.items():
            in_file(f"data/{name}", content)(folder)
        return str(folder / "data")

    return make


def rows_with(**changes: Any) -> str:
    """Two good rows, and one with other values."""
    return json_lines([GOOD, GOOD, GOOD | changes])


def nested(depth: int, start: str = "[", value: str = "", end: str = "]") -> str:
    return start * depth + value + end * depth


def parquet(columns: list[pa.Array], names: list[str]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(columns, names=names), sink)
    return sink.getvalue().to_pybytes()


TEXTS = pa.array(["a", "b", "c"])
WHOLE = parquet([TEXTS, pa.array(["d", "e", "f"])], ["chosen", "rejected"])
LINES = json_lines([GOOD] * 3)
CSV = "prompt,chosen,rejected\n" + "a,b,c\n" * 3

VALUES = {  # of a cell that must be text or messages
    "null": None,
    "number": 3,
    "float": 2.5,
    "true": True,
    "mapping": {"a": 1},
    "list of text": ["x"],
    "list of numbers": [1, 2],
    "list of lists": [["x"]],
    "list of null": [None],
}
MESSAGES = {  # of a cell of messages
    "no role": [{"content": "yes"}],
    "null role": [message(role=None)],
    "empty role": [message(role="")],
    "number as role": [message(role=1)],
    "list as role": [message(role=["user"])],
    "no content": [{"role": "assistant"}],
    "null content": [message(None)],
    "number as content": [message(5)],
    "mapping as content": [message({"text": "yes"})],
    "no messages": [],
    "parts of no type": [message([{"text": "yes"}])],
    "parts of numbers": [message([1, 2])],
    "bare text between": [message(), "yes"],
    "numbers beside a tool call": [message([1]) | {"tool_calls": [{"type": "function"}]}, message(2)],
}
BAD_LINES = {  # as the second of three lines
    "cut": '{"prompt": "a", "chosen": "b',
    "bare text": "hello",
    "bare string": '"hello"',
    "number": "42",
    "list": '["a", "b"]',
    "null": "null",
    "single quotes": "{'chosen': 'a', 'rejected': 'b'}",
    "trailing comma": '{"chosen": "a", "rejected": "b",}',
    "two objects": '{"chosen": "a"} {"chosen": "b"}',
    "control characters": f'{{"chosen": "a{CONTROLS}',
    "right-to-left marks": f"{RIGHT_TO_LEFT} not JSON",
    "huge": "{" + HUGE,
    "deep": nested(100_000),
    "deep objects": nested(50_000, '{"chosen":', "1", "}"),
    "raw surrogate": '{"chosen": "\ud800", "rejected": "b"}',
    "NaN as text": '{"chosen": NaN, "rejected": "b"}',
    "comment": "# a comment",
    "conflict marker": "<<<<<<< HEAD",
}
CONTENTS: dict[str, tuple[str, str | bytes]] = {
    "empty jsonl": ("bad.jsonl", ""),
    "blank jsonl": ("bad.jsonl", "\n \n\n"),
    "empty json": ("bad.json", ""),
    "empty json list": ("bad.json", "[]"),
    "json of nothing": ("bad.json", "{}"),
    "json text": ("bad.json", '"chosen"'),
    "json number": ("bad.json", "3"),
    "json null": ("bad.json", "null"),
    "json list of text": ("bad.json", '["a", "b"]'),
    "json list of lists": ("bad.json", "[[1, 2], [3]]"),
    "json cut": ("bad.json", json.dumps([GOOD] * 3)[:-20]),
    "json over lines, cut": ("bad.json", json.dumps([GOOD] * 3, indent=1)[:-20]),
    "json deep": ("bad.json", nested(100_000)),
    "json of deep cells": ("bad.json", json.dumps([GOOD]).replace('"no"', nested(5_000))),
    "empty csv": ("bad.csv", ""),
    "csv of a heading": ("bad.csv", "chosen,rejected\n"),
    "csv ragged": ("bad.csv", CSV + "a,b,c,d,e\n"),
    "csv open quote": ("bad.csv", CSV + 'a,"b,c\n'),
    "csv without columns": ("bad.csv", "a\nb\nc\n"),
    "csv of empty cells": ("bad.csv", CSV + "a,,c\n"),
    "csv of numbers": ("bad.csv", "chosen,rejected\n1,2\n3,4\n"),
    "csv duplicated column": ("bad.csv", "chosen,chosen,prompt\na,b,c\n"),
    "csv column twice": ("bad.csv", "prompt,chosen,chosen,rejected\na,b,c,d\n"),
    "json key twice": ("bad.json", '[\n {"prompt": "a", "chosen": "b",\n  "chosen": "c", "rejected": "d"}\n]\n'),
    "csv latin-1": ("bad.csv", CSV.encode() + "ä,ö,ü\n".encode("latin-1")),
    "csv utf-16": ("bad.csv", CSV.encode("utf-16")),
    "csv with NUL": ("bad.csv", b"\x00" * 200),
    "csv huge heading": ("bad.csv", HUGE + ",rejected\na,b\n"),
    "csv unsafe heading": ("bad.csv", f"{RIGHT_TO_LEFT}chosen\x1b[2J,rejected\na,b\n"),
    "empty parquet": ("bad.parquet", b""),
    "parquet cut": ("bad.parquet", WHOLE[: len(WHOLE) // 2]),
    "parquet without its end": ("bad.parquet", WHOLE[:-4]),
    "parquet without its start": ("bad.parquet", WHOLE[4:]),
    "parquet damaged": ("bad.parquet", WHOLE[:10] + bytes(40) + WHOLE[50:]),
    "parquet is JSON": ("bad.parquet", LINES),
    "parquet no rows": ("bad.parquet", parquet([TEXTS[:0], TEXTS[:0]], ["chosen", "rejected"])),
    "parquet duplicated column": ("bad.parquet", parquet([TEXTS] * 3, ["chosen", "rejected", "chosen"])),
    "parquet no columns": ("bad.parquet", parquet([], [])),
    "parquet bytes": ("bad.parquet", parquet([pa.array([b"\xff", b"b"])] * 2, ["chosen", "rejected"])),
    "parquet of invalid text": (
        "bad.parquet",
        parquet([pa.array([b"\xff\xfe", b"b"]).view(pa.string()), TEXTS[:2]], ["chosen", "rejected"]),
    ),
    "parquet of dates": ("bad.parquet", parquet([pa.array([1], pa.timestamp("s"))] * 2, ["chosen", "rejected"])),
    "parquet of nulls": ("bad.parquet", parquet([pa.nulls(3), TEXTS], ["chosen", "rejected"])),
    "jsonl is parquet": ("bad.jsonl", WHOLE),
    "jsonl utf-16": ("bad.jsonl", LINES.encode("utf-16")),
    "jsonl utf-32": ("bad.jsonl", LINES.encode("utf-32")),
    "jsonl latin-1": ("bad.jsonl", LINES.encode() + b'{"chosen": "\xe4", "rejected": "b"}\n'),
    "jsonl with NUL": ("bad.jsonl", LINES.encode() + bytes(20)),
    "jsonl random": ("bad.jsonl", bytes(range(256)) * 20),
    "gz is text": ("bad.jsonl.gz", LINES),
    "gz cut": ("bad.jsonl.gz", gzip.compress(LINES.encode() * 50)[:-30]),
    "gz of a bad line": ("bad.jsonl.gz", gzip.compress((LINES + "{broken\n").encode())),
    "gz empty": ("bad.jsonl.gz", b""),
    "xz is text": ("bad.jsonl.xz", LINES),
    "xz cut": ("bad.jsonl.xz", lzma.compress(LINES.encode() * 50)[:-30]),
    "bz2 of a bad line": ("bad.jsonl.bz2", bz2.compress((LINES + "{broken\n").encode())),
    "zst is text": ("bad.jsonl.zst", LINES),
    "unknown ending": ("bad.txt", LINES),
    "no ending": ("bad", LINES),
    "pickle": ("bad.pkl", b"\x80\x04N."),
    "yaml": ("bad.yaml", "chosen: a\n"),
    "no chosen": ("bad.jsonl", json_lines([{"prompt": "a", "rejected": "b"}] * 2)),
    "no answers": ("bad.jsonl", json_lines([{"text": "a"}] * 2)),
    "capital letters": ("bad.jsonl", json_lines([{"Chosen": "a", "Rejected": "b"}] * 2)),
    "unsafe columns": ("bad.jsonl", json_lines([{RIGHT_TO_LEFT + CONTROLS: "a", HUGE: "b"}] * 2)),
    "a thousand columns": ("bad.jsonl", json_lines([{f"column {index}": "a" for index in range(1000)}])),
    "all equal": ("bad.jsonl", json_lines([GOOD | {"rejected": GOOD["chosen"]}] * 3)),
    "chosen missing in a row": ("bad.jsonl", json_lines([GOOD, {"prompt": "a", "rejected": "b"}])),
    "text, then messages": ("bad.jsonl", json_lines([GOOD, CHAT])),
    "messages, then text": ("bad.jsonl", json_lines([CHAT, GOOD])),
    "text prompt of messages": ("bad.jsonl", json_lines([CHAT | {"prompt": "a"}] * 2)),
    "message prompt of text": ("bad.jsonl", json_lines([GOOD | {"prompt": CHAT["prompt"]}] * 2)),
    "chosen text, rejected messages": ("bad.jsonl", json_lines([GOOD | {"rejected": CHAT["chosen"]}] * 2)),
}


def _broken() -> dict[str, Make]:
    cases = {name: in_file(*content) for name, content in CONTENTS.items()}
    for name, line in BAD_LINES.items():
        cases[f"line 2: {name}"] = in_file("bad.jsonl", json_lines([GOOD]) + line + "\n" + json_lines([GOOD]))
    columns = cycle(("prompt", "chosen", "rejected"))
    for (name, value), column in zip(VALUES.items(), columns, strict=False):
        cases[f"a {column}: {name}"] = in_file("bad.jsonl", rows_with(**{column: value}))
        cases[f"every chosen: {name}"] = in_file("bad.jsonl", json_lines([GOOD | {"chosen": value}] * 3))
    for name, value in MESSAGES.items():
        column = next(columns)
        cases[f"{column} with {name}"] = in_file("bad.jsonl", json_lines([CHAT, CHAT, CHAT | {column: value}]))
    return cases | _FOLDERS


def _saved(change: Callable[[Path], Any]) -> Make:
    def make(folder: Path) -> str:
        DatasetDict(train=Dataset.from_list([GOOD] * 4)).save_to_disk(folder / "saved")
        change(folder / "saved")
        return str(folder / "saved")

    return make


def _rewrite(name: str, content: bytes) -> Make:
    return _saved(lambda folder: (folder / name).write_bytes(content))


_FOLDERS = {
    "empty folder": lambda folder: str(folder),
    "folder of a bad line": in_folder({"train.jsonl": LINES + "{broken\n"}),
    "folder, bad second file": in_folder({"train-0.jsonl": LINES, "train-1.jsonl": LINES + "{broken\n"}),
    "folder, bad split": in_folder({"train.jsonl": "{broken\n", "test.jsonl": LINES}),
    "folder of text": in_folder({"readme.txt": "hello"}),
    "folder of other columns": in_folder({"train.jsonl": LINES, "test.jsonl": json_lines([{"a": 1}])}),
    "folder of empty files": in_folder({"train.jsonl": "", "test.jsonl": ""}),
    "folder of cut parquet": in_folder({"train.parquet": WHOLE[:50]}),
    "folder with a script": in_folder({"data.py": "raise SystemExit('it ran')"}),
    "folder with a bad card": in_folder({"README.md": "---\nconfigs: [\n---\n", "train.jsonl": LINES}),
    "saved without data": _saved(lambda f: next((f / "train").glob("*.arrow")).unlink()),
    "saved, cut": _saved(lambda f: os.truncate(next((f / "train").glob("*.arrow")), 100)),
    "saved, empty state": _rewrite("train/state.json", b"{}"),
    "saved, no JSON": _rewrite("train/dataset_info.json", b"{"),
    "saved, list of splits": _rewrite("dataset_dict.json", b"[1]"),
    "saved, absent split": _rewrite("dataset_dict.json", b'{"splits": ["train", "gone"]}'),
    "saved, outside": _rewrite("dataset_dict.json", b'{"splits": ["../../../../../etc"]}'),
}

BROKEN: dict[str, Make] = _broken()
