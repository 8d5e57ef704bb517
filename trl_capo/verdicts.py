"""What is known of the labels of a data set's pairs: decisions made by hand, and scores of an audit, read from files.

Both name pairs by their row, so each is held against the data: by the data's fingerprint, and suspects by their id and
texts, too, with which a table that was edited tells what it is of. Everything that is wrong with a file comes in one
error, with the lines.
"""

import csv
import json
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from trl_capo.audit.texts import TEXTS, in_words
from trl_capo.data_files import line_problem
from trl_capo.pair_log import fingerprint
from trl_capo.paths import find_path
from trl_capo.plain import first_few
from trl_capo.tables import cell

DECISIONS = ("keep", "flip", "drop")
_MOST_PROBLEMS = 8


class Decision(NamedTuple):
    """What is to be done with a pair (one of DECISIONS), and a note of whoever decided it."""

    what: str
    note: str | None


class Suspect(NamedTuple):
    """How likely a pair's label is wrong, in [0, 1], and why it seems so."""

    score: float
    reasons: list[str]


def read_decisions(name: str, dataset: Dataset) -> dict[int, Decision]:
    """The decisions in a JSONL file, by the pair's row; the last one on a pair counts.

    Raises:
        ValueError, OSError: the file cannot be read, has no decision, or is of other data.
    """
    own, found, problems, strange = fingerprint(dataset), {}, [], 0
    for line, entry in _read(name, "decisions", (".jsonl",)):
        fault = entry if isinstance(entry, str) else _decision_fault(entry, len(dataset))
        if fault:
            problems.append(f"line {line}: {fault}")
            continue
        strange += entry["fingerprint"] != own
        found[entry["pair"]] = Decision(entry["decision"], entry.get("note"))
    if strange:
        problems.append(
            f"{strange:,} of its lines were decided on other data: their fingerprint is not that of the data set "
            f"({own[:12]}...): give the data set that was audited"
        )
    _refuse("decisions", name, problems, found)
    return found


def read_suspects(name: str, dataset: Dataset) -> dict[int, Suspect]:
    """The suspects of an audit by the pair's row, the likeliest to be wrong first.

    Args:
        name: of a .parquet, .csv or .jsonl file with `pair` and `score`. Where it has them, `fingerprint`, `id`,
            `prompt`, `chosen` and `rejected` must be those of the data, and `reasons` are used too.
        dataset: the pairs that were audited, in the order and with the labels that they had.

    Raises:
        ValueError, OSError: the file cannot be read, has no suspect, or is of other data.
    """
    found, problems, strange = {}, [], []
    columns = [column for column in ("id", *TEXTS) if column in dataset.column_names]
    own, rows = fingerprint(dataset), dataset.with_format(None).select_columns(columns)
    for line, entry in _read(name, "suspects", (".parquet", ".csv", ".jsonl")):
        fault = entry if isinstance(entry, str) else _suspect_fault(entry, len(dataset), found)
        if fault:
            problems.append(f"line {line}: {fault}")
            continue
        pair = int(entry["pair"])
        found[pair] = Suspect(float(entry["score"]), _reasons(entry))
        if _differs(entry, rows[pair], own):
            strange.append(f"line {line}")
    if strange:
        problems.append(
            f"{len(strange):,} of its pairs are not those that the data have in these rows, or have other labels "
            f"({first_few(strange)}): give the data set that was audited, in its order and with the labels that it had"
        )
    _refuse("suspects", name, problems, found)
    return dict(sorted(found.items(), key=lambda item: -item[1].score))


def _decision_fault(entry: Mapping[str, Any], rows: int) -> str | None:
    missing = [key for key in ("pair", "fingerprint", "decision") if key not in entry]
    if missing:
        return f"it has no {', '.join(map(repr, missing))}"
    if not isinstance(entry["pair"], int) or isinstance(entry["pair"], bool):
        return f"pair={entry['pair']!r}: it is the row of a pair, a whole number"
    if not 0 <= entry["pair"] < rows:
        return f"pair={entry['pair']}: the data set has rows 0 to {rows - 1:,}"
    if entry["decision"] not in DECISIONS:
        return f"decision={entry['decision']!r}: choose one of {', '.join(map(repr, DECISIONS))}"
    if not isinstance(entry.get("note"), str | None):
        return f"note={entry['note']!r}: it is text"
    return None


def _suspect_fault(entry: Mapping[str, Any], rows: int, before: Mapping[int, Suspect]) -> str | None:
    missing = [key for key in ("pair", "score") if entry.get(key) is None]
    if missing:
        return f"it has no {', '.join(map(repr, missing))}"
    try:
        pair, score = int(entry["pair"]), float(entry["score"])
    except (TypeError, ValueError, OverflowError):
        return f"pair={entry['pair']!r}, score={entry['score']!r}: they are numbers"
    if not (0 <= pair < rows and str(pair) == str(entry["pair"])):
        return f"pair={entry['pair']}: the data set has rows 0 to {rows - 1:,}"
    if pair in before:
        return f"pair={pair}: it is there already"
    if not all(isinstance(reason, str) for reason in _reasons(entry)):
        return f"reasons={entry['reasons']!r}: it is text, or a list of texts"
    return None if 0 <= score <= 1 else f"score={score}: it lies in [0, 1]"  # which NaN does not


def _reasons(entry: Mapping[str, Any]) -> list[Any]:
    told = entry.get("reasons")
    return told if isinstance(told, list) else [] if told is None else [told]


def _differs(entry: Mapping[str, Any], row: Mapping[str, Any], own: str) -> bool:
    """Whether a suspect is of another pair than the row, or of other data, as far as it tells; spaces may differ."""
    for name, text in (in_words(row) | {"fingerprint": own}).items():
        told = entry.get(name)
        if None not in (told, text) and told != row.get(name) and not _same(str(told), text):
            return True
    return False


def _same(told: str, text: str) -> bool:
    """Whether a file tells the text, as it is or as a CSV has it."""
    return told.split() in (text.split(), cell(text).split())


def _refuse(option: str, name: str, problems: list[str], found: Mapping[int, Any]) -> None:
    if not found and not problems:
        problems = [f"there are no {option} in it"]
    if problems:
        more = f"; and {len(problems) - _MOST_PROBLEMS:,} more" if len(problems) > _MOST_PROBLEMS else ""
        raise ValueError(f"{option}={name!r}: " + "; ".join(problems[:_MOST_PROBLEMS]) + f"{more}.")


def _read(name: str, option: str, endings: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """The numbered lines, or rows, of a file: an entry each, or what is wrong with it."""
    path = find_path(name)
    if path is None or not path.is_file():
        raise FileNotFoundError(f"{option}={name!r}: there is no such file.")
    read = {".jsonl": _json_lines, ".csv": _csv_lines, ".parquet": _parquet_rows}
    if path.suffix.lower() not in endings:
        raise ValueError(f"{option}={name!r}: the file's name must end in {' or '.join(endings)}.")
    try:
        yield from read[path.suffix.lower()](path)
    except (UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        raise ValueError(f"{option}={name!r}: it cannot be read: {error}.") from error


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.removeprefix(BOM_UTF8).strip():
                yield number, line_problem(line) or json.loads(line)


def _csv_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    csv.field_size_limit(2**31 - 1)  # answers can be long
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        for entry in reader:
            yield reader.line_num, {key: value for key, value in entry.items() if value != ""}


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    with pq.ParquetFile(path) as file:
        yield from enumerate((row for batch in file.iter_batches(1000) for row in batch.to_pylist()), start=1)
