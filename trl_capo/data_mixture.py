"""TRL's mixture of data sets (`datasets:` in a YAML): loaded, or refused with all that is wrong, entry by entry."""

import dataclasses
import math
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import Any, get_type_hints

from datasets import Dataset, DatasetDict, IterableDataset
from trl import DatasetMixtureConfig, get_dataset

from trl_capo.data import READERS, STREAM_ROWS, find_data, saved_to_disk, why_unreadable
from trl_capo.data_files import builder_of, refuse_unsafe_lines
from trl_capo.line_types import Source, unlike_line
from trl_capo.paths import find_path
from trl_capo.value_types import type_problems


def load_mixture(args: DatasetMixtureConfig, seed: int) -> DatasetDict:
    """Load a mixture, whose entries are what `load_dataset` takes, or files as `load_preference_data` takes them.

    Args:
        args: TRL's; with its `test_split_size`, that share of the rows becomes the split "test".
        seed: of that split. TRL draws it anew in every process, so that processes would train on each other's test
            pairs, and a resumed training on its own.

    Raises:
        ValueError: one of them cannot be read, or they do not fit together; all in one error.
    """
    if args.streaming and args.test_split_size is not None:
        raise ValueError("test_split_size: a stream cannot be split. Give a mixture of the pairs to train on alone.")
    refused = {index: problem for index in range(len(args.datasets)) if (problem := _before_loading(args, index))}
    together = None
    if not refused:
        try:
            mixed = _load(list(map(_with_reader, args.datasets)), args.streaming)
        except Exception as error:  # every reader of every format has its own errors
            together = error
        else:
            _refuse_unlike(args, mixed)
            return DatasetDict(train=mixed) if args.test_split_size is None else _split(mixed, args, seed)
    for index in range(len(args.datasets)):
        if index not in refused and (problem := _when_loaded(args, index)):
            refused[index] = problem
    if not refused:
        raise ValueError(f"datasets: they cannot be mixed: {type(together).__name__}: {together}") from together
    raise ValueError("\n".join(refused[index] for index in sorted(refused))) from together


def local_files(args: DatasetMixtureConfig) -> list[Path]:
    """The files and folders of this machine that a mixture is of."""
    return [path for entry in args.datasets for path in _local(entry)]


def _split(mixed: Dataset, args: DatasetMixtureConfig, seed: int) -> DatasetDict:
    try:
        return mixed.train_test_split(test_size=args.test_split_size, seed=seed)
    except ValueError as error:
        raise ValueError(f"test_split_size={args.test_split_size!r} of {len(mixed):,} rows: {error}") from error


def _load(entries: list[Any], streaming: bool) -> Dataset | IterableDataset:
    mixed = get_dataset(DatasetMixtureConfig(entries, streaming))["train"]
    if streaming:  # what is wrong at the start of a stream shows when it is read
        list(mixed.take(STREAM_ROWS))
    return mixed


def _refuse_unlike(args: DatasetMixtureConfig, mixed: Dataset | IterableDataset) -> None:
    """Raise ValueError for local rows of other types than the mixture's columns, which all entries share."""
    problems = []
    for index, entry in enumerate(map(_with_reader, args.datasets)):
        if any(_local(entry)):
            used = {"columns": entry.columns, "split": entry.split}
            found = unlike_line(_source(entry), mixed.features, text=args.streaming, **used)
            problems += [f"{_named(args, index)} cannot be used: {found}"] if found else []
    if problems:
        raise ValueError("\n".join(problems))


def _before_loading(args: DatasetMixtureConfig, index: int) -> str | None:
    """What is wrong with an entry, of what no reader should be given."""
    entry = args.datasets[index]
    try:
        if problems := _entry_problems(entry):
            return "\n".join(f"datasets[{index}]: {problem}" for problem in problems)
        for path in _local(entry):
            refuse_unsafe_lines(path, _reader(entry))
    except FileNotFoundError as error:
        return f"datasets[{index}]: {error}"
    except (TypeError, ValueError, OSError) as error:
        return f"{_named(args, index)} cannot be read: {error}"
    return None


def _entry_problems(entry: Any) -> list[str]:
    """Why the values of an entry cannot be, or not together."""
    # TRL declares less for data_files than `load_dataset` takes.
    values = {name: value for name, value in vars(entry).items() if name != "data_files"}
    if problems := type_problems(values, get_type_hints(type(entry))):
        return problems
    if entry.fraction is not None and not 0 < entry.fraction < math.inf:
        return [f"fraction={entry.fraction!r}: give a positive number."]
    place = None if _is_reader(entry) else find_data(entry.path, "path")
    if place is not None and place.is_file() and (entry.data_files or entry.data_dir):
        return [f"path={entry.path!r} is a file: leave out data_files and data_dir."]
    if place is not None and saved_to_disk(place):
        return [f"path={entry.path!r}: a mixture takes no folder of save_to_disk. Write Parquet."]
    return []


def _when_loaded(args: DatasetMixtureConfig, index: int) -> str | None:
    """What is wrong with an entry by itself."""
    entry = dataclasses.replace(_with_reader(args.datasets[index]), fraction=None)
    try:
        _load([entry], args.streaming)
    except Exception as error:  # as above
        reason = why_unreadable(error, _local(entry), _source(entry), _reader(entry))
        return f"{_named(args, index)} cannot be read: {reason}"
    return None


def _source(entry: Any) -> Source:
    return {name: getattr(entry, name) for name in ("path", "name", "data_dir", "data_files")}


def _named(args: DatasetMixtureConfig, index: int) -> str:
    entry = args.datasets[index]
    given = [f"{key}={value!r}" for key in ("path", "data_dir", "data_files") if (value := getattr(entry, key))]
    return f"datasets[{index}] ({', '.join(given)})"


def _is_reader(entry: Any) -> bool:
    """Whether the path is the name of a reader of files, which stand elsewhere."""
    return entry.path in READERS and bool(entry.data_files or entry.data_dir)


def _reader(entry: Any) -> str | None:
    """The reader of all the entry's files; None where it is by their names."""
    return entry.path if _is_reader(entry) else None


def _place(entry: Any) -> Path | None:
    """The file or folder of the path; None for a reader, or what may be on the hub."""
    return None if _is_reader(entry) else find_path(entry.path)


def _with_reader(entry: Any) -> Any:
    """The entry with a path that TRL does not look for on the hub, or take for a reader's name."""
    path = _place(entry)
    if path is None:
        return entry
    if path.is_dir():
        return dataclasses.replace(entry, path=str(path.resolve()))
    return dataclasses.replace(entry, path=builder_of(path), data_files=str(path))


def _local(entry: Any) -> Iterator[Path]:
    """The files and folders of this machine that the entry names."""
    place = _place(entry)
    if place is None and not _is_reader(entry):
        return
    if place is not None and place.is_file():
        yield place
        return
    folder = (place or Path()) / (entry.data_dir or "")
    if entry.data_files:
        yield from (
            Path(path) for name in _flat(entry.data_files) for path in glob(str(folder / name), recursive=True)
        )
    else:
        yield folder


def _flat(names: Any) -> Iterator[str]:
    """`data_files` as `load_dataset` takes them: a name, or lists and mappings of names."""
    if isinstance(names, str):
        yield names
    else:
        for inner in names.values() if isinstance(names, dict) else names:
            yield from _flat(inner)
