"""Lines of JSON whose values have other types than the columns that `datasets` reads them into.

It takes the columns from the first 10 MB of the first file. Where these have text, whatever comes later becomes text
(messages become their JSON, 3 becomes "3"), which prompts and answers must not; what fits no other column, it refuses
without saying where it stands.
"""

import json
import re
from codecs import BOM_UTF8
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Features, Json, Value, load_dataset, load_dataset_builder
from datasets.packaged_modules.json.json import Json as JsonBuilder

from trl_capo.data_files import first_problem, lines_of

PAIR = ("prompt", "chosen", "rejected")
_FIRST = "in the first 10 MB of the first file"
_MORE_THAN_TEXT = re.compile(rb'"(?<!\\")\s*:\s*(?:[^"\sn]|\Z)')  # null is in every column
_BETWEEN = re.compile(r"[\s,\[\]]*")
_DECODER = json.JSONDecoder(strict=False, parse_int=lambda digits: int(digits[:25]))  # which tell if 64 bits hold them
_KINDS = {str: "text", list: "a list", dict: "a mapping", type(None): "null"} | {
    bool: "true or false",
    int: "a number",
    float: "a number",
}
_PARSED = {pa.int64(): "a whole number", pa.float64(): "a number", pa.bool_(): "true or false"}
Source = Mapping[str, Any]
"""What `load_dataset` is given."""


def unlike_line(
    source: Source,
    features: Features | None,
    *,
    text: bool,
    columns: Collection[str] | None = None,
    split: str | None = None,
) -> str | None:
    """File, line and reason of the first row, in local files of JSON, that does not fit the columns.

    Args:
        source: of the data.
        features: the columns; None where the reader does not know them before it has read all.
        text: whether to look at lines of text alone, and at other columns than those of pairs, too, as is needed where
            they have not been read yet. Text fits columns of text, which is all that most data have, unless there is
            a new column, with which reading ends.
        columns: the only ones that are used; None for all.
        split: the only one that is read, or a slice of it, as `load_dataset` takes it; None for all.
    """
    if features is None:
        return None
    if not text:
        columns = PAIR if columns is None else [column for column in PAIR if column in columns]
    shapes = _shape(features)
    all_text = all(shapes.get(column, str) is str for column in PAIR)
    files = _json_files(source, split)
    mixed = [column for column in PAIR if isinstance(features.get(column), Json)] if text else []
    try:
        first = next(_rows(files))[2] if mixed else {}
        for file, number, row in _rows(files, not all_text or text):
            used = row if columns is None else columns
            if problem := _row_problem(row, shapes, used) or _mixture_problem(row, first, mixed):
                return f"{file}, line {number}: {problem}"
    except ValueError:  # it is no JSON, as may show far on in a stream, or has objects on several lines behind others
        return first_problem(*files, reader="json") if text else None
    return None


def unreadable_line(source: Source, error: BaseException) -> str | None:
    """File, line and reason of the first row that ended reading with the error, where every line is JSON."""
    try:
        if "Value is too big" in str(error):
            found = (item for item in _rows(_json_files(source)) if any(map(_is_big, _values(item[2]))))
            return next((f"{file}, line {number}: a number has more than 64 bits" for file, number, _ in found), None)
        splits = load_dataset(**source, streaming=True)
        features = next(iter(splits.values())).features
        return unlike_line(source, features, text=True)
    except Exception:  # the error that is there already is the one to tell
        return None


def _json_files(source: Source, split: str | None = None) -> list[Path]:
    """The files that `datasets` would read as JSON, and no other of their folder, or for another split."""
    builder = load_dataset_builder(**source)
    files = (builder.config.data_files if isinstance(builder, JsonBuilder) else None) or {}
    named = {part.split("[")[0].strip() for part in split.split("+")} if split else {"all"}
    return [Path(file) for name, of_split in files.items() if {"all", str(name)} & named for file in of_split]


def _rows(files: Iterable[Path], text: bool = True) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    """The objects of the files, and their lines; without `text`, not all of those that have nothing but text."""
    for file in files:
        if _has_object_a_line(file):
            lines = (numbered for numbered in lines_of(file) if text or _MORE_THAN_TEXT.search(numbered[1]))
        else:
            lines = iter([(1, b"".join(line for _, line in lines_of(file, blank=True)))])
        for first, content in lines:
            yield from ((file, number, row) for number, row in _objects(first, content) if isinstance(row, dict))


def _has_object_a_line(file: Path) -> bool:
    _, first = next(lines_of(file), (0, b""))
    try:
        return isinstance(_DECODER.decode(first.removeprefix(BOM_UTF8).decode()), dict)
    except ValueError:
        return False


def _objects(number: int, content: bytes) -> Iterator[tuple[int, Any]]:
    """The objects of a list, or one behind the other, each with the line that it starts in."""
    text, end = content.removeprefix(BOM_UTF8).decode(), 0
    while (start := _BETWEEN.match(text, end).end()) < len(text):
        number += text.count("\n", end, start)
        row, after = _DECODER.raw_decode(text, start)
        yield number, row
        number += text.count("\n", start, after)
        end = after


def _row_problem(row: Mapping[str, Any], shapes: Mapping[str, Any], columns: Collection[str]) -> str | None:
    for column, value in row.items():
        if column not in columns:
            continue
        if column not in shapes:
            return f"it has a column {column!r}, which there is not {_FIRST}"
        if problem := _difference(value, shapes[column], column in PAIR):
            return column + problem
    return None


def _mixture_problem(row: Mapping[str, Any], first: Mapping[str, Any], columns: Collection[str]) -> str | None:
    """Where the row has another format than the first one; a reader of mixed columns takes both, training does not."""
    for column in columns:
        kinds = [_KINDS[type(each.get(column))] for each in (row, first)]
        if kinds[0] != kinds[1] and "null" not in kinds:
            return f"{column} is {kinds[0]}, but {kinds[1]} in the first row"
    return None


def _difference(value: Any, shape: Any, strict: bool) -> str | None:
    """Where the value is of another type, and how; text is what the JSON of all will do for, unless it is strict."""
    if value is None or shape is None or type(value) is shape:
        return None
    if isinstance(value, list) and isinstance(shape, list):
        for inner in value:
            if problem := _difference(inner, shape[0], strict):
                return "[]" + problem
        return None
    if isinstance(value, dict) and isinstance(shape, dict):
        for key, inner in value.items():
            if key not in shape:
                return f" has a key {key!r}, which there is not {_FIRST}"
            if problem := _difference(inner, shape[key], strict):
                return f".{key}{problem}"
        return None
    parsed = isinstance(shape, pa.DataType)
    if (shape is str and not strict) or (parsed and _is_parsed(value, shape)):
        return None
    wanted = _PARSED[shape] if parsed else _KINDS[shape if isinstance(shape, type) else type(shape)]
    return f" is {_KINDS[type(value)]}, but {wanted} {_FIRST}"


def _is_parsed(value: Any, shape: pa.DataType) -> bool:
    """Whether the reader makes the value one of the column's from its JSON, which it takes where types are mixed."""
    if isinstance(value, float) and value.is_integer() and shape == pa.int64():
        value = int(value)
    try:
        pa.scalar(value if isinstance(value, str) else json.dumps(value)).cast(shape)
    except pa.ArrowInvalid:
        return False
    return True


def _shape(feature: Any) -> Any:
    """The types of the column's values, as a value of types; None where several fit, or it is not known which."""
    if isinstance(feature, dict):
        return {key: _shape(inner) for key, inner in feature.items()}
    if hasattr(feature, "feature"):
        return [_shape(feature.feature)]
    kind = feature.pa_type if isinstance(feature, Value) else None
    return kind if kind in _PARSED else {pa.string(): str, pa.large_string(): str, pa.null(): type(None)}.get(kind)


def _values(value: Any) -> Iterator[Any]:
    """The value and all within it."""
    yield value
    if isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _values(inner)


def _is_big(value: Any) -> bool:
    return isinstance(value, int) and not -(2**63) <= value < 2**64
