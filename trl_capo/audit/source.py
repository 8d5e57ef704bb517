"""What an audit is of: the log of a run, and the pairs that it logged, if they can be found."""

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from trl_capo.data import check_preference_data, load_preference_data, select_split
from trl_capo.groups import find_groups
from trl_capo.noise import inject_noise
from trl_capo.noise_checks import IS_NOISY
from trl_capo.pair_log import INFO, Log, fingerprint, read_log

FOLDER = "pair_log"
"""Of a log, within the folder of a run."""


def find_log(run: str | Path) -> Log:
    """The log in that folder, or in its folder `pair_log`.

    Raises:
        ValueError: there is none, it is empty or damaged.
    """
    try:
        folder = Path(run).expanduser()
        places = [folder, folder / FOLDER]
        found = next((place for place in places if (place / INFO).is_file()), None)
    except (OSError, RuntimeError, ValueError):  # a name too long, a home of nobody, a NUL
        found = None
    if found is None:
        raise ValueError(
            f"{str(run)!r}: there is no pair log, neither there nor in its folder {FOLDER!r}. Give the output folder "
            "of a training with pair_log: true, or the folder of a log."
        )
    return read_log(found)


def find_data(log: Log, name: str | None, config: str | None, split: str | None) -> Dataset | None:
    """The pairs of the log, with the noise that the training put into them; None where the log does not name them.

    Args:
        log: of a training.
        name, config, split: of the data set, in place of what the log says.

    Raises:
        ValueError, OSError: the data set cannot be read, or is not that of the log.
    """
    source = log.info.source or {}
    named = name is not None
    name = name if named else source.get("dataset_name")
    if name is None:
        if config or split:
            given = f"dataset_config={config!r}" if config else f"dataset_train_split={split!r}"
            raise ValueError(f"{given} without a data set, and the log names none. Give dataset_name too.")
        return None
    try:
        splits = load_preference_data(name, config=config or source.get("dataset_config"))
    except FileNotFoundError as error:
        hint = "" if named else " So the log calls its data; if they are elsewhere now, give dataset_name."
        raise FileNotFoundError(f"{error}{hint}") from error
    data = select_split(splits, split or source.get("dataset_train_split") or "train", "dataset_train_split")
    check_preference_data(**{"the data set": data})
    for candidate in _candidates(data, source):
        if fingerprint(candidate) == log.info.fingerprint:
            return candidate
    raise ValueError(_mismatch(log, f"dataset_name={name!r}", len(data)))


def _candidates(data: Dataset, source: dict[str, Any]) -> list[Dataset]:
    """The data as they are, and with the noise that the training put in, where they do not have it already."""
    if not source.get("inject_noise") or IS_NOISY in data.column_names:
        return [data]
    noisy = inject_noise(
        data,
        source["inject_noise"],
        source["inject_rate"],
        seed=source["inject_seed"],
        group_column=source["group_column"],
        score_column=source["inject_score_column"],
    )
    return [noisy, data]


def check_data(log: Log, data: Dataset) -> None:
    """Refuse pairs that are not those of the log.

    Raises:
        ValueError: they are others.
    """
    if fingerprint(data) != log.info.fingerprint:
        raise ValueError(_mismatch(log, "dataset", len(data)))


def _mismatch(log: Log, option: str, rows: int) -> str:
    return (
        f"{option}: its {rows:,} pairs are not the {log.info.pairs:,} that were trained on, or not in that order (the "
        "fingerprints differ). Give the data set and the split as the training had them."
    )


def find_names(data: Dataset | None, group_column: str | None, pairs: np.ndarray) -> tuple[str, np.ndarray | None]:
    """What a group is called, and the group of each of the `pairs`, (N,) row numbers; None for those of the log.

    Args:
        data: the pairs of the log.
        group_column: a column of it, "auto" for the groups of the log, None for no groups.

    Raises:
        ValueError: the column is not there or names no groups, or there are no data.
    """
    if group_column == "auto":
        return "group", None
    if group_column is None:
        return "group", np.full(len(pairs), None, dtype=object)
    if data is None:
        raise ValueError(
            f"group_column={group_column!r}: the log does not name its data set, so there is no column to read. Give "
            "dataset_name, or leave group_column out for the groups of the training."
        )
    column, labels = find_groups(data, group_column, "the data set")
    return column, np.array(labels, dtype=object)[pairs]
