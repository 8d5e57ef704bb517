"""Load preference pairs by hub name, local folder or file, and TRL's mixtures, and check them before a model loads.

A stream is checked by its first rows, since it can be read only once.
"""

import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, IterableDataset, Json, LargeList, List, Value
from datasets.exceptions import DatasetsError
from trl import DatasetMixtureConfig, get_dataset

from trl_capo.common.fingerprint import repeats_prompt, separate_prompt
from trl_capo.common.text import first_few

logger = logging.getLogger(__name__)

STREAM_ROWS, _BATCH = 100, 10_000
BUILDERS = {".json": "json", ".jsonl": "json", ".ndjson": "json", ".csv": "csv", ".parquet": "parquet"}
_COLUMNS, _ASKS = ("prompt", "chosen", "rejected"), ("question", "instruction", "input", "query")
_AS_TEXT = r"^\s*\[\s*\{\s*['\"](role|content|from)['\"]"  # as spreadsheets hold a list of messages
_NO_PROMPT = "no prompt (no such column, and the answers do not share one)"
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


def load_pairs(name: str, *, config: str | None = None, streaming: bool = False, option: str = "dataset_name") -> dict:
    """Load the splits of a data set; raise ValueError if nothing can be found or read there.

    `name` is a hub name (`config` selects a configuration), a folder of data files or of `save_to_disk`, or a
    file, also a compressed one, whose split is `train`. `option` is what messages call it.
    """
    path = Path(name).expanduser()
    with _readable(f"{option}={name!r}"):
        if path.is_file():
            file = _file(path)
            cells = {"keep_default_na": False, "na_values": [""]} if file["path"] == "csv" else {}  # `NA` is a text
            splits = datasets.load_dataset(**file, **cells, streaming=streaming)
        elif (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            saved = datasets.load_from_disk(str(path))
            splits = saved if isinstance(saved, Mapping) else datasets.DatasetDict(train=saved)
        elif path.is_dir():
            splits = datasets.load_dataset(str(path.resolve()), config, streaming=streaming)
        elif path.suffix in (*BUILDERS, *_COMPRESSED) or name.startswith((".", "/", "~")):
            raise FileNotFoundError("there is no such file or folder")
        else:
            splits = datasets.load_dataset(name, config, streaming=streaming)
    return type(splits)({split: _normal_form(rows, split) for split, rows in splits.items()})


def _normal_form(rows: Dataset | IterableDataset, split: str) -> Any:
    """Cut prompts off the answers that repeat them, as in ultrafeedback_binarized, and give messages one type."""
    sample = rows if isinstance(rows, Dataset) else Dataset.from_list(list(rows.take(STREAM_ROWS)))
    found, size = repeats_prompt(sample)
    if found:
        logger.warning(f"{split}: the prompt is cut off the answers that repeat it ({found:,} of {size:,} rows seen).")
    features = dict(rows.features or {})
    if found and _format(features.get("chosen")) == "messages":
        features["prompt"] = features["chosen"]
    names = [name for name in _COLUMNS if _format(features.get(name)) == "messages"]
    if mixed := [features[name] for name in names if isinstance(features[name].feature, Json)]:
        features |= dict.fromkeys(names, mixed[0])
    if not found and features == (rows.features or {}):
        return rows
    return rows.map(separate_prompt if found else None, features=Features(features) if features else None)


def select_split(splits: Mapping[str, Any], split: str, option: str) -> Dataset | IterableDataset:
    """Return a split; if it is missing, raise ValueError with the option and the existing splits."""
    if split not in splits:
        raise ValueError(f"{option}={split!r}: the data set has no such split. Choose from {', '.join(splits)}.")
    return splits[split]


def load_mixture(dataset_args: DatasetMixtureConfig, seed: int) -> Mapping[str, Any]:
    """Load a mixture as `trl.get_dataset` does, except that entries may be files and that the test split is seeded.

    TRL draws the split of `test_split_size` without a seed, so every process, and every resumed run, gets another one.
    """
    size, streaming, entries = dataset_args.test_split_size, dataset_args.streaming, []
    if streaming and size is not None:
        raise ValueError(f"test_split_size={size}: a stream cannot be split. Leave out one of the two options.")
    with _readable("datasets"):
        for entry in dataset_args.datasets:
            path = Path(entry.path).expanduser()
            file = _file(path) if path.is_file() or path.suffix in BUILDERS else {}
            entries.append(dataclasses.replace(entry, **file))
        mixture = get_dataset(DatasetMixtureConfig(entries, streaming))
    mixture = type(mixture)({split: _normal_form(rows, split) for split, rows in mixture.items()})
    if size is None:
        return mixture
    with _readable(f"test_split_size={size}"):
        return mixture["train"].train_test_split(test_size=size, seed=seed)


def _file(path: Path) -> dict[str, Any]:
    ending = path.with_suffix("").suffix if path.suffix in _COMPRESSED else path.suffix
    if ending not in BUILDERS:
        raise ValueError(f"the file's name must end in one of {', '.join(BUILDERS)}")
    return {"path": BUILDERS[ending], "data_files": str(path)}


@contextmanager
def _readable(option: str) -> Iterator[None]:
    """Turn errors of `datasets` into a ValueError of one line that starts with the option."""
    try:
        yield
    except StopIteration as error:  # what `datasets` raises for a JSON file without rows
        raise ValueError(f"{option}: the file has no rows.") from error
    except (DatasetsError, ValueError, OSError, RuntimeError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"{option} cannot be used: {reason}") from error


def check_pairs(dataset: Dataset | IterableDataset, name: str) -> list[str]:
    """Raise ValueError for pairs that cannot be used, and return warnings about pairs that can.

    A null is an error. An empty answer, equal answers, or no prompt are a warning, and an error if all rows have them.
    `chosen`, `rejected` and usually `prompt` must all be text, or all lists of messages.
    """
    if isinstance(dataset, IterableDataset):
        dataset = Dataset.from_list(list(dataset.take(STREAM_ROWS)))
    _check_columns(dataset, name)
    columns, found = [column for column in _COLUMNS if column in dataset.column_names], {}
    asks = [] if "prompt" in columns else [name for name in _ASKS if _format(dataset.features.get(name)) == "text"]
    for number, batch in enumerate(dataset.select_columns(columns + asks).with_format("arrow").iter(_BATCH)):
        arrays = {column: batch[column].combine_chunks() for column in columns + asks}
        texts = {column: _join(array) if pa.types.is_nested(array.type) else array for column, array in arrays.items()}
        for problem, mask in _row_problems(texts):
            found.setdefault(problem, []).extend(np.flatnonzero(mask.fill_null(False)) + number * _BATCH)
    errors, warnings = [], []
    for problem, indices in found.items():
        if indices:
            line = f"{problem} in {len(indices):,} of {len(dataset):,} rows (row {first_few(indices)})"
            asked = asks if problem == _NO_PROMPT else []
            line += f"; put the text of {' and '.join(map(repr, asked))} into a column 'prompt'" if asked else ""
            is_error = "null" in problem or len(indices) >= (0.5 if asked else 1) * len(dataset)
            (errors if is_error else warnings).append(line)
    if errors:
        raise ValueError(f"{name} cannot be used: {'; '.join(errors)}.")
    return [f"{name}: {line}" for line in warnings]


def _check_columns(rows: Dataset, name: str) -> None:
    if not len(rows):
        raise ValueError(f"{name}: it has no rows.")
    if missing := " and no column ".join(sorted({"chosen", "rejected"} - set(rows.column_names))):
        fault = "Separate the columns by commas" if set(";\t") & {*rows.column_names[0]} else "Rename them"
        raise ValueError(f"{name}: it has no column {missing}, only {', '.join(rows.column_names)}. {fault}.")
    formats = {column: _format(rows.features[column]) for column in _COLUMNS if column in rows.column_names}
    if set(formats.values()) not in ({"text"}, {"messages"}):
        given = f"{name}: " + ", ".join(f"{column} is {form}" for column, form in formats.items())
        raise ValueError(f"{given}. Give text in all three columns, or lists of messages with `role` and `content`.")


def _format(feature: Any) -> str:
    """Return "text", "messages" (Json where they have different keys), or any other type's name."""
    if isinstance(feature, Value) and feature.dtype in ("string", "large_string"):
        return "text"
    message = feature.feature if isinstance(feature, List | LargeList) else None
    is_message = isinstance(message, Mapping) and "role" in message and {"content", "tool_calls"} & set(message)
    return "messages" if is_message or isinstance(message, Json) else str(feature)


def _row_problems(texts: Mapping[str, pa.Array]) -> Iterator[tuple[str, pa.Array]]:
    """Yield what can be wrong with a row, and the (B,) mask of the rows that have this fault."""
    for column in (column for column in _COLUMNS if column in texts):
        text = texts[column]
        yield f"{column} is null", text.is_null()
        yield f"{column} is a list of messages written as text", pc.match_substring_regex(text, _AS_TEXT)
        yield f"{column} is empty", pc.or_(pc.equal(text, ""), pc.utf8_is_space(text))
    yield "chosen equals rejected", pc.equal(texts["chosen"], texts["rejected"])
    if "prompt" not in texts:
        rows = zip(*(text.fill_null("").to_pylist() for text in list(texts.values())[:3]), strict=True)
        yield _NO_PROMPT, pa.array([_lacks_prompt(*row) for row in rows], pa.bool_())


def _lacks_prompt(chosen: str, rejected: str, ask: str = "") -> bool:
    """Whether the answers do not both hold `ask`, and share a shorter beginning than that (none without `ask`)."""
    most = max(1, len(ask := ask.strip()))
    return chosen[:most] != rejected[:most] and not (ask and ask in chosen and ask in rejected)


def _join(lists: pa.Array) -> pa.Array:
    """Return (B,) text: what the messages of each row hold besides their roles."""
    joined = []
    for turns in lists.to_pylist():
        # Json is stored as text.
        turns = turns and [json.loads(turn) if isinstance(turn, str) else turn for turn in turns]
        parts = turns and [str(part) for turn in turns for key, part in turn.items() if key != "role" and part]
        joined.append(parts if parts is None else "\n".join(parts))
    return pa.array(joined, pa.string())
