"""Preference pairs: where they come from, and whether they can be used.

Every problem of a data set is found before a model is loaded and reported at once, with row numbers. What training can
live with is counted in one warning. Streams are checked by their first rows only, since they can be read only once;
but local files, in which a line could end the process, or not fit the first ones, are read through before.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetNotFoundError
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

from trl_capo.cells import cell_problem, is_empty
from trl_capo.data_files import BUILDERS, builder_of, first_problem, refuse_unsafe_lines
from trl_capo.line_types import Source, unlike_line, unreadable_line
from trl_capo.messages import get_logger
from trl_capo.paths import can_be_on_hub, find_path
from trl_capo.plain import first_few

logger = get_logger(__name__)

_NO_ROWS = ("corresponds to no data", "No columns to parse", "BatchSize must be greater than 0, got 0")
READERS = frozenset(_PACKAGED_DATASETS_MODULES)
"""What `load_dataset` takes for the name of a reader of files, and reads all that stand here with it."""
STREAM_ROWS = 100  # of a stream, which are looked at before it is read
_Data = Dataset | IterableDataset | Mapping[str, Any] | None
_Check = Callable[[Dataset | IterableDataset], list[str]]


def load_preference_data(name: str, *, config: str | None = None, streaming: bool = False) -> DatasetDict:
    """Load a data set by hub name, local folder (data files, or saved with `save_to_disk`) or file.

    Args:
        name: hub name, folder, or a .json, .jsonl, .parquet or .csv file (also compressed); a file becomes the split
            "train".
        config: configuration of a hub data set.
        streaming: read rows as they are needed.

    Returns:
        The splits (an `IterableDatasetDict` when streaming).

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: it is there and cannot be read as preference data.
    """
    path = find_data(name, "dataset_name")
    try:
        if path is not None:
            refuse_unsafe_lines(path)
    except ValueError as error:
        raise ValueError(f"dataset_name={name!r} cannot be read: {error}") from error
    try:
        loaded = _load(path, name, config, streaming)
        if streaming and path is not None:  # what is wrong at the start of a stream shows when it is read
            for part in loaded.values() if isinstance(loaded, Mapping) else [loaded]:
                list(part.take(STREAM_ROWS))
    except (DatasetNotFoundError, FileNotFoundError) as error:
        raise FileNotFoundError(f"dataset_name={name!r}: no data found there: {error}") from error
    except Exception as error:  # every reader of every format has its own errors
        reason = why_unreadable(error, [] if path is None else [path], _source(path, name, config))
        raise ValueError(f"dataset_name={name!r} cannot be read: {reason}") from error
    splits = loaded if isinstance(loaded, Mapping) else DatasetDict(train=loaded)
    if path is not None and not saved_to_disk(path):
        features = next(iter(splits.values())).features
        if problem := unlike_line(_source(path, name, config), features, text=streaming):
            raise ValueError(f"dataset_name={name!r} cannot be used: {problem}")
    return splits


def find_data(name: str, option: str) -> Path | None:
    """The file or folder of data of that name; None for what may be on the hub.

    Raises:
        FileNotFoundError: it is neither; the message names the option.
    """
    path = find_path(name)
    on_hub = can_be_on_hub(name.removeprefix("hf://datasets/")) and name not in READERS
    if path is None and (builder_of(Path(name)) or not on_hub):
        raise FileNotFoundError(f"{option}={name!r}: there is no such file or folder, and none on the hub.")
    if path is not None and not path.is_dir() and not (path.is_file() and builder_of(path)):
        endings = ", ".join(BUILDERS)
        raise FileNotFoundError(f"{option}={name!r}: no data found there; files of data end in {endings}.")
    return path


def why_unreadable(error: Exception, paths: Iterable[Path], source: Source, reader: str | None = None) -> str:
    """Why data cannot be read, for the user: by the error of their reader, and a second look at the local files."""
    paths = list(paths)
    cause = error.__cause__ or error
    if isinstance(cause, StopIteration) or any(words in str(cause) for words in _NO_ROWS):
        return "it has no rows."
    found = first_problem(*paths, reader=reader) or (paths and unreadable_line(source, cause))
    return found or f"{type(cause).__name__}: {cause}"


def _load(path: Path | None, name: str, config: str | None, streaming: bool) -> Any:
    if path is not None and saved_to_disk(path):
        return load_from_disk(str(path))
    return load_dataset(**_source(path, name, config), streaming=streaming)


def _source(path: Path | None, name: str, config: str | None) -> Source:
    if path is not None and path.is_file():
        return {"path": builder_of(path), "data_files": str(path)}
    return {"path": name if path is None else str(path.resolve()), "name": config}


def saved_to_disk(path: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def select_split(splits: Mapping[str, Any], split: str, option: str) -> Any:
    """The split of that name, or an error that lists those there are and names the option that chooses."""
    if split not in splits:
        raise ValueError(f"{option}={split!r}: the data set has no such split, only {', '.join(map(repr, splits))}.")
    return splits[split]


def check_preference_data(more: _Check | None = None, /, **datasets: _Data) -> None:
    """Check data sets, or dictionaries of them, before anything expensive happens; None is left to the caller.

    Args:
        more: gives the problems of a data set or stream that only the caller would see.

    Raises:
        ValueError: a missing column, no rows, or cells that are neither text nor messages; all in one error.
    """
    for warning in refuse_unusable(more, **datasets):
        logger.warning(warning)


def refuse_unusable(more: _Check | None = None, /, **datasets: _Data) -> list[str]:
    """As `check_preference_data`, and returns the warnings."""
    problems, warnings = [], []
    for name, dataset in _named(datasets):
        try:
            found, odd = _examine(dataset)
            found += [] if more is None else more(dataset)
        except Exception as error:  # of the reader of a stream, or of text that is none
            found, odd = [f"its rows cannot be read: {type(error).__name__}: {error.__cause__ or error}"], []
        problems += [f"{name}: {problem}" for problem in found]
        warnings += [f"{name}: {warning}" for warning in odd]
    if problems:
        raise ValueError("the preference data cannot be used:\n" + "\n".join(f"- {line}" for line in problems))
    return warnings


def refuse_empty(max_length: int | None, **datasets: _Data) -> None:
    """Refuse tokenised data sets of which nothing is left: TRL drops the pairs whose prompt fills `max_length`."""
    for name, dataset in _named(datasets):
        if isinstance(dataset, Dataset) and len(dataset) == 0:
            raise ValueError(
                f"max_length={max_length}: every prompt of {name} is at least that long, so no pair is left. Give a "
                "larger max_length."
            )


def _named(datasets: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, dataset in datasets.items():
        if isinstance(dataset, Mapping):
            yield from ((f"{name}[{key!r}]", part) for key, part in dataset.items())
        elif isinstance(dataset, Dataset | IterableDataset):
            yield name, dataset


def _examine(dataset: Dataset | IterableDataset) -> tuple[list[str], list[str]]:
    """What makes the data set unusable, and what is only worth a warning."""
    rows = dataset.take(STREAM_ROWS) if isinstance(dataset, IterableDataset) else dataset
    first = next(iter(rows), None)
    if first is None:
        return ["it has no rows"], []
    missing = [column for column in ("chosen", "rejected") if column not in first]
    if missing:
        columns = ", ".join(map(repr, first))
        return [f"it has no column {' and no column '.join(map(repr, missing))}; its columns are {columns}"], []
    errors, warnings, total = defaultdict(list), defaultdict(list), 0
    for index, (row, found) in enumerate(_with_errors(rows, first)):
        total += 1
        for message in found:
            errors[message].append(index)
        if not errors:
            for message in _row_warnings(row):
                warnings[message].append(index)
    same = warnings.get(_SAME)
    if same and len(same) == total:
        return ["every pair has chosen equal to rejected: there is no preference in it"], []
    return [in_rows(*item, total) for item in errors.items()], [in_rows(*item, total) for item in warnings.items()]


def _with_errors(rows: Dataset | IterableDataset, columns: Iterable[str]) -> Iterator[tuple[Mapping, list[str]]]:
    """Each row of data with these columns, and what makes it unusable."""
    looked_at, format_of_first = [column for column in ("prompt", "chosen", "rejected") if column in columns], None
    for row in rows.select_columns(looked_at):
        found = _row_errors(row)
        if not found:
            format_of_first = format_of_first or _format(row["chosen"])
            if _format(row["chosen"]) != format_of_first:
                found = [f"another format ({_format(row['chosen'])}) than before ({format_of_first})"]
        yield row, found


def usable_rows(dataset: Dataset) -> Dataset:
    """The rows that `check_preference_data` finds nothing wrong with."""
    if not {"chosen", "rejected"} <= set(dataset.column_names):
        return dataset.select([])
    found = enumerate(_with_errors(dataset, dataset.column_names))
    return dataset.select([index for index, (_, errors) in found if not errors])


def in_rows(message: str, indices: list[int], total: int) -> str:
    """The message, with how many of all rows it is true of, and the first of them."""
    return f"{message} in {len(indices):,} of {total:,} rows (row {first_few(indices)})"


_SAME = "chosen equals rejected, which says nothing of a preference,"


def _row_errors(row: Mapping[str, Any]) -> list[str]:
    problems = [f"{column} {problem}" for column, value in row.items() if (problem := cell_problem(value))]
    if not problems and len({isinstance(value, str) for value in row.values()}) > 1:
        kinds = ", ".join(f"{column} is {_format(value)}" for column, value in row.items())
        problems.append(f"one format must serve all columns, but {kinds},")
    return problems


def _format(value: str | list) -> str:
    return "text" if isinstance(value, str) else "messages"


def _row_warnings(row: Mapping[str, Any]) -> list[str]:
    problems = [f"{column} is empty" for column in ("chosen", "rejected") if is_empty(row[column])]
    return problems + ([_SAME] if row["chosen"] == row["rejected"] else [])
