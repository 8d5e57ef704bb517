"""Data files that cannot be read: which one, which line, and why.

Readers of data name a row at best, and none of them the file in a folder. What they refuse is looked at again here,
line by line; and before they start, what would bring the JSON reader of pyarrow down with the whole process.
"""

import bz2
import csv
import gzip
import json
import lzma
import re
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

BUILDERS = {".json": "json", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet", ".csv": "csv"}
_TABBED = {".tsv": "csv"}  # which readers find in folders
_OPEN = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
_COMPRESSED = {*_OPEN, ".zst"}
DEEPEST = 60
"""Levels of lists and objects that JSON may have: pyarrow passes 64 on, and no preference data have as many."""
_TOO_DEEP = "it is nested too deeply"
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)  # the last one may have no end
_NULL = re.compile(rb"\s*\[?\s*null\b")


def builder_of(path: Path, builders: Mapping[str, str] = BUILDERS) -> str | None:
    """The reader of `datasets` for a file of that name, compressed or not; None if it is not one of data."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in _COMPRESSED]
    return builders.get(suffixes[-1]) if suffixes else None


def refuse_unsafe_lines(path: Path, reader: str | None = None) -> None:
    """Raise ValueError for what readers would not survive, or take although it is no text, or means two things.

    pyarrow 26 ends the process with a segmentation fault where a block of lines, or a list, starts with null, or
    values are nested some ten thousand deep, and looks at no bytes of a string. Of a column of CSV, or a key in a JSON
    document, that comes twice, readers take one.

    Args:
        path: of the file or folder.
        reader: of all the files; None for that of each file's name.
    """
    for file, kind in _text_files(path, reader):
        if problem := _said_twice(file, kind) or _unsafe_line(file, kind):
            raise ValueError(f"{file}, {problem}")


def _unsafe_line(file: Path, reader: str) -> str | None:
    """Why readers must not be given a line of JSON, and which one."""
    depth = 0
    for number, line in lines_of(file) if reader == "json" else ():
        depth, deepest = _depths(line, depth)
        if deepest > DEEPEST:
            found = _file_problem(file, reader)  # as many lines that are cut look like it, too
            return found if found and _TOO_DEEP not in found else f"line {number}: {_TOO_DEEP}"
        problem = _text_problem(line)
        if _NULL.match(line.removeprefix(BOM_UTF8)):
            problem = "null is not an object with the columns' names and values"
        if problem:
            return f"line {number}: {problem}"
    return None


def _depths(line: bytes, depth: int) -> tuple[int, int]:
    """How deep JSON is nested after the line, and in it at most (or a bound that is not beyond DEEPEST)."""
    opened, closed = _brackets(line)
    if depth == 0 and opened == closed <= DEEPEST:  # as it is with a whole object in a line
        return 0, opened
    bare = _STRING.sub(b"", line)
    opened, closed = _brackets(bare)
    if depth + opened <= DEEPEST:
        return max(depth + opened - closed, 0), depth + opened
    steps = (1 if letter in b"[{" else -1 for letter in bare if letter in b"[{]}")
    *before, last = accumulate(steps, initial=depth)
    return max(last, 0), max(*before, last)


def _brackets(line: bytes) -> tuple[int, int]:
    """How many open, and how many close."""
    return line.count(b"[") + line.count(b"{"), line.count(b"]") + line.count(b"}")


def _said_twice(file: Path, reader: str) -> str | None:
    """The column of CSV, or the key of an object in a JSON document, that comes twice, and its line."""
    number, first = next(lines_of(file), (0, b""))
    first = first.removeprefix(BOM_UTF8)
    try:
        if reader == "csv":
            between = "\t" if builder_of(file, _TABBED) else ","
            heading = next(csv.reader((line.decode("utf-8-sig") for _, line in lines_of(file)), delimiter=between), [])
            twice = _twice(heading)
            return f"line {number}: the column {twice!r} comes twice" if twice else None
        if first.startswith((b"[", b"{")) and _json_problem(first):
            text = b"".join(line for _, line in lines_of(file, blank=True)).removeprefix(BOM_UTF8)
            json.loads(text, object_pairs_hook=_object)
    except KeyTwice:
        return _json_problem(text, lines=True)
    except (ValueError, RecursionError, csv.Error):  # which the reader will refuse
        return None
    return None


def line_problem(line: bytes) -> str | None:
    """Why a line is not an object in JSON."""
    return _text_problem(line) or _json_problem(line.rstrip())


def first_problem(*paths: Path, reader: str | None = None) -> str | None:
    """File, line and reason of the first line, in files and folders of JSON and CSV, that cannot be read."""
    found = ((file, _file_problem(file, kind)) for path in paths for file, kind in _text_files(path, reader))
    return next((f"{file}, {problem}" for file, problem in found if problem), None)


def _file_problem(file: Path, reader: str) -> str | None:
    """Why the file cannot be read, and in which line; JSON is an object a line, or one document over all of them."""
    first = True
    for number, line in lines_of(file):
        problem = _text_problem(line)
        if problem is None and reader == "json":
            problem = _json_problem(line)
            if problem and first and line.removeprefix(BOM_UTF8).startswith((b"[", b"{")):
                return _document_problem(file, problem)
        if problem:
            return f"line {number}: {problem}"
        first = False
    return None


def _document_problem(file: Path, problem: str) -> str | None:
    """Why the document cannot be read; where it ends in the first line, that line's own problem."""
    content = b"".join(line for _, line in lines_of(file, blank=True))
    problems = _text_problem(content), _json_problem(content, lines=True)
    found = next(filter(None, problems), None)
    return f"line 1: {problem}" if found and "Extra data" in found else found


def _text_files(path: Path, reader: str | None) -> Iterator[tuple[Path, str]]:
    """The files of JSON and CSV that `datasets` would find there, each with its reader."""
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    for file in files:
        hidden = any(part.startswith((".", "__")) for part in file.relative_to(path).parts)
        kind = reader or builder_of(file, BUILDERS | _TABBED)
        if kind in ("json", "csv") and not hidden and file.is_file():
            yield file, kind


def lines_of(file: Path, blank: bool = False) -> Iterator[tuple[int, bytes]]:
    """The numbered lines, whose ends are LF, CRLF or CR; no more where the file cannot be read further, which its
    reader will say.
    """
    if file.suffix.lower() in _COMPRESSED - set(_OPEN):
        return
    try:
        with _OPEN.get(file.suffix.lower(), open)(file, "rb") as content:
            lines = (part for line in content for part in (line.splitlines(True) if b"\r" in line else (line,)))
            yield from ((number, line) for number, line in enumerate(lines, start=1) if blank or line.strip())
    except (OSError, EOFError, lzma.LZMAError):
        return


def _text_problem(line: bytes) -> str | None:
    if line.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")):
        return "it is UTF-16 or UTF-32, not UTF-8; save it as UTF-8"
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return f"it is not UTF-8 ({error.reason} {line[error.start]:#x} at byte {error.start + 1}); save it as UTF-8"
    return "it has NUL characters" if b"\x00" in line else None


def _json_problem(text: bytes, lines: bool = False) -> str | None:
    """Why UTF-8 text is not an object in JSON, or in a document of several `lines` a list of them."""
    try:
        value = json.loads(text.removeprefix(BOM_UTF8), object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        return (f"line {error.lineno}, " if lines else "") + f"column {error.colno}: not JSON: {error.msg}"
    except RecursionError:
        return _TOO_DEEP
    except KeyTwice as error:
        return f"line {_line_of_repeated_key(text.decode())}: {error}" if lines else str(error)
    except ValueError:  # int() reads no more than some thousand
        return "a number has too many digits"
    for number, entry in enumerate(value if lines and isinstance(value, list) else [value]):
        if not isinstance(entry, dict):
            return f"entry {number}: " * lines + "it is not an object with the columns' names and values"
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return f"half of a surrogate pair ({error.object[error.start]!r}) is no character"
    return None


class KeyTwice(ValueError):
    """An object in JSON has a key twice."""


def _object(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    twice = _twice(key for key, _ in pairs)
    if twice is not None:
        raise KeyTwice(f"the key {twice!r} comes twice in an object")
    return dict(pairs)


def _twice(names: Iterable[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)


_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"(\s*:)?|[{}\[\]]', re.DOTALL)


def _line_of_repeated_key(text: str) -> int:
    """The line of the first key that its object has had before, in a document that is JSON."""
    keys: list[set[str]] = []
    for token in _TOKENS.finditer(text):
        if token[0] in "{[":
            keys.append(set())
        elif token[0] in "}]":
            keys.pop()
        elif token[1] is not None:
            key = json.loads(token[0].removesuffix(token[1]))
            if key in keys[-1]:
                return text.count("\n", 0, token.start()) + 1
            keys[-1].add(key)
    raise AssertionError("no key comes twice")
