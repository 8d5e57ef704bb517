"""What an audit is of: the log of a run, and the pairs that it logged, if they can be found."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from trl_capo.data import check_preference_data, load_preference_data, select_split
from trl_capo.groups import DEFAULT_COLUMN, find_groups
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


def find_data(log: Log, name: str | None, config: str | None, split: str | None) -> tuple[Dataset | None, bool]:
    """The pairs of the log, None where it does not name them, and whether the noise of the training was put in here.

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
        return None, False
    try:
        splits = load_preference_data(name, config=config or source.get("dataset_config"))
    except FileNotFoundError as error:
        hint = "" if named else " So the log calls its data; if they are elsewhere now, give dataset_name."
        raise FileNotFoundError(f"{error}{hint}") from error
    data = select_split(splits, split or source.get("dataset_train_split") or "train", "dataset_train_split")
    check_preference_data(**{"the data set": data})
    for candidate in _candidates(data, source):
        if fingerprint(candidate) == log.info.fingerprint:
            return candidate, candidate is not data
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


def cleaning_commands(log: Log, options: Mapping[str, str | None], put_noise: bool, suspects: Path) -> list[str]:
    """How `trl-capo clean` is told of these pairs: for decisions, and for a rule on the suspects.

    Args:
        log: of a training.
        options: dataset_name, dataset_config and dataset_split, where they are not what the log says.
        put_noise: whether the training put noise into the pairs, which has to be put in again.
        suspects: the file.
    """
    source = log.info.source or {}
    logged = {name: source.get(name) for name in ("dataset_name", "dataset_config")}
    data = logged | {"dataset_split": source.get("dataset_train_split")}
    data = {name: options.get(name) or value for name, value in data.items()}
    data |= {"dataset_name": data["dataset_name"] or "PAIRS"}
    if data["dataset_split"] == "train":
        data["dataset_split"] = None
    commands = []
    if put_noise:
        group = source["group_column"] or "none"
        noise = {"output_dir": "noisy", "kind": source["inject_noise"]}
        noise |= {name: source[f"inject_{name}"] for name in ("rate", "seed", "score_column")}
        noise["group_column"] = None if group == "auto" else group
        commands.append(_command("noise", data | noise))
        data |= {"dataset_name": "noisy", "dataset_config": None}
    data["output_dir"] = "cleaned"
    rule = {"suspects": str(suspects), "drop_top": "10%"}
    return [*commands, _command("clean", data | {"decisions": "decisions.jsonl"}), _command("clean", data | rule)]


def _command(name: str, options: Mapping[str, Any]) -> str:
    words = ["trl-capo", name]
    for option, value in options.items():
        if value is not None:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            words += [f"--{option}", shlex.quote(text)]
    return " ".join(words)


def find_truth(data: Dataset | None, pairs: np.ndarray) -> np.ndarray | None:
    """(N,) which of the `pairs`, (N,) row numbers, have a wrong label, if the data say true or false of each."""
    if data is None or IS_NOISY not in data.column_names:
        return None
    values = data.with_format(None)[IS_NOISY][:]
    return np.array(values)[pairs] if all(isinstance(value, bool) for value in values) else None


def find_names(
    log: Log, data: Dataset | None, group_column: str | None, pairs: np.ndarray
) -> tuple[str, np.ndarray | None]:
    """What a group is called, and the group of each of the `pairs`, (N,) row numbers; None for those of the log.

    Args:
        log: of a training.
        data: the pairs of the log.
        group_column: a column of it, "auto" for the groups of the log, None for no groups.

    Raises:
        ValueError: the column is not there or names no groups, or there are no data.
    """
    if group_column == "auto":
        logged = (log.info.source or {}).get("group_column") or "group"
        named = data is not None and DEFAULT_COLUMN in data.column_names
        return (DEFAULT_COLUMN if named else "group") if logged == "auto" else logged, None
    if group_column is None:
        return "group", np.full(len(pairs), None, dtype=object)
    if data is None:
        raise ValueError(
            f"group_column={group_column!r}: the log does not name its data set, so there is no column to read. Give "
            "dataset_name, or leave group_column out for the groups of the training."
        )
    column, labels = find_groups(data, group_column, "the data set")
    return column, np.array(labels, dtype=object)[pairs]
