"""Load preference pairs by hub name, local folder or file, and TRL's mixtures, and check them before a model loads.

A stream is checked by its first rows, since it can be read only once.
"""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset, LargeList, List, Value
from datasets.exceptions import DatasetsError
from trl import DatasetMixtureConfig, get_dataset

from trl_capo.common.fingerprint import repeats_prompt
from trl_capo.common.text import first_few

logger = logging.getLogger(__name__)

STREAM_ROWS = 100
BUILDERS = {".json": "json", ".jsonl": "json", ".ndjson": "json", ".csv": "csv", ".parquet": "parquet"}
_BATCH = 10_000
_COLUMNS, _PROMPT_LIKE = ("prompt", "chosen", "rejected"), ("question", "instruction", "input", "query")
_AS_TEXT = r"^\s*\[\s*\{\s*['\"](role|content|from)['\"]"  # as spreadsheets hold a list of messages
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


def load_pairs(name: str, *, config: str | None = None, streaming: bool = False, option: str = "dataset_name") -> dict:
    """Load the splits of a data set; raise ValueError if nothing can be found or read there.

    `name` is a hub name (`config` selects a configuration), a folder of data files or of `save_to_disk`, or a
    file, also a compressed one, whose split is `train`. `option` is what messages call it.
    """
    path = Path(name).expanduser()
    with _readable(f"{option}={name!r}"):
        if path.is_file():
            splits = datasets.load_dataset(_builder(path), data_files=str(path), streaming=streaming)
        elif (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            saved = datasets.load_from_disk(str(path))
            splits = saved if isinstance(saved, Mapping) else datasets.DatasetDict(train=saved)
        elif path.is_dir():
            splits = datasets.load_dataset(str(path.resolve()), config, streaming=streaming)
        elif path.suffix in (*BUILDERS, *_COMPRESSED) or name.startswith((".", "/", "~")):
            raise FileNotFoundError("there is no such file or folder")
        else:
            splits = datasets.load_dataset(name, config, streaming=streaming)
    return type(splits)({split: _without_repeated_prompt(rows, split) for split, rows in splits.items()})


def _without_repeated_prompt(rows: Any, split: str) -> Any:
    """Drop the column `prompt` if all answers begin with it, since they are whole conversations then."""
    if isinstance(rows, Dataset) and repeats_prompt(rows):
        logger.warning(f"{split}: all answers begin with their prompt, so the column `prompt` is left out.")
        return rows.remove_columns("prompt")
    return rows


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
            file = {"path": _builder(path), "data_files": str(path)} if path.is_file() else {}
            entries.append(dataclasses.replace(entry, **file))
        mixture = get_dataset(DatasetMixtureConfig(entries, streaming))
    mixture = type(mixture)({split: _without_repeated_prompt(rows, split) for split, rows in mixture.items()})
    if size is None:
        return mixture
    with _readable(f"test_split_size={size}"):
        return mixture["train"].train_test_split(test_size=size, seed=seed)


def _builder(path: Path) -> str:
    ending = path.with_suffix("").suffix if path.suffix in _COMPRESSED else path.suffix
    if ending not in BUILDERS:
        raise ValueError(f"the file's name must end in one of {', '.join(BUILDERS)}")
    return BUILDERS[ending]


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
    for number, batch in enumerate(dataset.select_columns(columns).with_format("arrow").iter(_BATCH)):
        arrays = {column: batch[column].combine_chunks() for column in columns}
        texts = {column: _join(array) if pa.types.is_nested(array.type) else array for column, array in arrays.items()}
        for problem, mask in _row_problems(texts):
            found.setdefault(problem, []).extend(np.flatnonzero(mask.fill_null(False)) + number * _BATCH)
    errors, warnings = [], []
    for problem, indices in found.items():
        if indices:
            asks = [name for name in _PROMPT_LIKE if name in dataset.column_names and "no prompt" in problem]
            line = f"{problem} in {len(indices):,} of {len(dataset):,} rows (row {first_few(indices)})"
            line += f"; rename the column {asks[0]!r} to 'prompt'" if asks else ""
            is_error = "null" in problem or len(indices) >= (0.5 if asks else 1) * len(dataset)
            (errors if is_error else warnings).append(line)
    if errors:
        raise ValueError(f"{name} cannot be used: {'; '.join(errors)}.")
    return [f"{name}: {line}" for line in warnings]


def _check_columns(rows: Dataset, name: str) -> None:
    if not len(rows):
        raise ValueError(f"{name}: it has no rows.")
    if missing := " and no column ".join(sorted({"chosen", "rejected"} - set(rows.column_names))):
        raise ValueError(f"{name}: it has no column {missing}, only {', '.join(rows.column_names)}. Rename them.")
    formats = {column: _format(rows.features[column]) for column in _COLUMNS if column in rows.column_names}
    if set(formats.values()) not in ({"text"}, {"messages"}):
        given = f"{name}: " + ", ".join(f"{column} is {form}" for column, form in formats.items())
        raise ValueError(f"{given}. Give text in all three columns, or lists of messages with `role` and `content`.")


def _format(feature: Any) -> str:
    """Return "text", "messages", or any other type's name, such as the Json type of mixed formats."""
    if isinstance(feature, Value) and feature.dtype in ("string", "large_string"):
        return "text"
    message = feature.feature if isinstance(feature, List | LargeList) else None
    is_message = isinstance(message, Mapping) and "role" in message and {"content", "tool_calls"} & set(message)
    return "messages" if is_message else str(feature)


def _row_problems(texts: Mapping[str, pa.Array]) -> Iterator[tuple[str, pa.Array]]:
    """Yield what can be wrong with a row, and the (B,) mask of the rows that have this fault."""
    for column, text in texts.items():
        yield f"{column} is null", text.is_null()
        yield f"{column} is a list of messages written as text", pc.match_substring_regex(text, _AS_TEXT)
    for column in ("chosen", "rejected"):
        yield f"{column} is empty", pc.or_(pc.equal(texts[column], ""), pc.utf8_is_space(texts[column]))
    yield "chosen equals rejected", pc.equal(texts["chosen"], texts["rejected"])
    if "prompt" not in texts:
        starts = [pc.utf8_slice_codeunits(texts[column], 0, 1) for column in ("chosen", "rejected")]
        yield "no prompt (no such column, and both answers share no beginning)", pc.not_equal(*starts)


def _join(lists: pa.Array) -> pa.Array:
    """Return (B,) text: what the messages of each row hold besides their roles."""
    texts = (
        turns and [str(part) for turn in turns for key, part in turn.items() if key != "role" and part]
        for turns in lists.to_pylist()
    )
    return pa.array([None if parts is None else "\n".join(parts) for parts in texts], pa.string())
