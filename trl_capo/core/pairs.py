"""Columns that a trainer carries for each preference pair: its number, group, weight, trust and witness.

Pair numbers are row numbers of the data set; like group numbers, they are columns that survive mapping, filtering and
shuffling. A stream has neither: its pairs have no groups and cannot be recognised.
"""

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch
from accelerate.logging import get_logger
from datasets import ClassLabel, Dataset, IterableDataset
from torch import Tensor

PAIR, GROUP, WITNESS, WEIGHT, TRUSTED = "capo_pair", "capo_group", "capo_witness", "weight", "trusted"
SWAPPED = "trusted_swapped"  # whether the check of a trusted label swapped the answers; null if that is not known
COLUMNS = {PAIR: torch.long, GROUP: torch.long, WEIGHT: torch.float32, TRUSTED: torch.bool, WITNESS: torch.float32}
"""The batch keys that neither the model nor DPOTrainer may see."""

logger = get_logger(__name__)
DEFAULT_COLUMN = "language"
MISSING = "(none)"  # the group of pairs whose value is missing
PROBE = "probe"  # the witness whose columns `trl-capo annotate` writes
RESERVED = ("macro", "worst", "ties")  # metrics that stand beside the groups' own


def parse_column(value: str | None) -> str | None:
    """Return the option's value; on a command line and in YAML, `none` stands for None."""
    return None if isinstance(value, str) and value.lower() in ("none", "null", "") else value


def find_groups(
    dataset: Dataset, group_column: str | None, name: str, option: str = "group_column"
) -> tuple[str | None, list[str] | None]:
    """Return the name of the group column and the group of every row, or None and None if there are no groups.

    `group_column` is a column, "auto" for `language` if there is one, or None; `name` and `option` are for errors.

    Raises:
        ValueError: if the column is missing, holds neither text nor numbers, or contains a group name in RESERVED.
    """
    columns = dataset.column_names
    column = DEFAULT_COLUMN if group_column == "auto" and "auto" not in columns else group_column
    if column not in columns:
        if column is None or group_column == "auto":
            return None, None
        raise ValueError(f"{option}={column!r}: {name} has no such column, only {', '.join(map(repr, columns))}.")
    values, feature = dataset.with_format(None)[column][:], dataset.features[column]
    if isinstance(feature, ClassLabel):
        values = [None if value in (None, -1) else feature.int2str(value) for value in values]  # -1: no label
    values = [int(v) if isinstance(v, float) and v.is_integer() else v for v in values]  # pandas' integers with gaps
    labels = [MISSING if value in (None, "") or value != value else str(value) for value in values]
    wrong = next((row for row, value in enumerate(values) if not isinstance(value, str | int | float | None)), None)
    if wrong is not None:
        raise ValueError(f"{option}={column!r}: row {wrong} of {name} holds neither text nor a number.")
    if reserved := sorted(set(labels) & set(RESERVED)):
        raise ValueError(f"{option}={column!r}: {name} has a group {reserved[0]!r}, which names a metric; rename it.")
    return column, labels


class PairIndex:
    """Adds the CAPO columns to a trainer's data sets; `group_names` holds the groups by their numbers."""

    def __init__(self, group_column: str | None, witness: str, noise_rate: float | str) -> None:
        self.group_column, self.witness = group_column, witness
        self.changing = {WEIGHT} if noise_rate == 0 else {WEIGHT, TRUSTED}
        self.group_names: list[str] = []

    def add_columns(self, datasets: Any, name: str) -> Any:
        """Return the data set, or the dictionary of data sets, with the columns; None and streams stay as they are."""
        if isinstance(datasets, Mapping):
            return {key: self.add_columns(dataset, f"{name}[{key!r}]") for key, dataset in datasets.items()}
        columns = () if datasets is None else datasets.column_names or next(iter(datasets), ())  # of a stream
        for column in self.changing.intersection(columns):
            logger.warning(f"{name}: its column {column!r} changes the loss. Rename the column to turn this off.")
        needs_witness = name == "train_dataset" and self.witness != "none"
        if not isinstance(datasets, Dataset):
            if isinstance(datasets, IterableDataset) and (needs_witness or self.group_column not in (None, "auto")):
                options = f"group_column={self.group_column!r}, witness={self.witness!r}"
                raise ValueError(f"{options}: {name} is a stream, and streams have neither groups nor a witness.")
            return datasets
        _check_numbers(datasets, name)
        labels = find_groups(datasets, self.group_column, name)[1] or []
        self.group_names += [label for label in dict.fromkeys(labels) if label not in self.group_names]
        number_of = {label: number for number, label in enumerate(self.group_names)}
        groups = [number_of[label] for label in labels] or [-1] * len(datasets)
        columns = {PAIR: np.arange(len(datasets)), GROUP: np.array(groups, dtype=np.int64)}
        columns |= {WITNESS: read_witness(datasets, self.witness)} if needs_witness else {}
        datasets = datasets.remove_columns([column for column in columns if column in datasets.column_names])
        for column, values in columns.items():
            datasets = datasets.add_column(column, values)
        return datasets


def read_witness(dataset: Dataset, name: str) -> np.ndarray:
    """Return asinh(x / median of |x|), (N,), of the column `name` or of `name`_chosen - `name`_rejected, 0 for none.

    Raises ValueError if there are no such columns, or they hold no numbers.
    """
    names = [name] if name in dataset.column_names else [f"{name}_chosen", f"{name}_rejected"]
    try:
        columns = [np.array(dataset.with_format(None)[column][:], dtype=float) for column in names]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"witness={name!r}: the data have no numbers in {' and '.join(names)}.") from error
    values = columns[0] if len(columns) == 1 else columns[0] - columns[1]
    values = np.where(np.isfinite(values), values, 0.0)
    sizes = np.abs(values[values != 0])
    return np.arcsinh(values / (np.median(sizes) if len(sizes) else 1.0))


def read_trust(dataset: Dataset) -> np.ndarray:
    """Return (N,) codes: 1 for a trusted label, 2 if its check is known to have kept it, 3 if swapped; else 0."""
    rows, none = dataset.with_format(None), [None] * len(dataset)
    columns = [rows[name][:] if name in dataset.column_names else none for name in (TRUSTED, SWAPPED)]
    return np.array([{None: 1, False: 2, True: 3}[swap] if trust else 0 for trust, swap in zip(*columns, strict=True)])


def evidence(dataset: Dataset) -> tuple[Tensor, Tensor, Tensor]:
    """Return the (N,) group numbers, trust and witness of the pairs, but no evidence of those with weight 0."""
    rows = dataset.with_format(None).select_columns([name for name in COLUMNS if name in dataset.column_names])[:]
    columns = {WEIGHT: [1.0] * len(dataset), WITNESS: [0.0] * len(dataset)} | rows
    groups, weight, witness = (torch.tensor(columns[name]) for name in (GROUP, WEIGHT, WITNESS))
    return groups, torch.tensor(read_trust(dataset)) * (weight > 0), witness.float() * (weight > 0)


def _check_numbers(dataset: Dataset, name: str) -> None:
    rows = dataset.with_format(None)
    if WEIGHT in dataset.column_names:
        values = rows[WEIGHT][:]
        wrong = [row for row, value in enumerate(values) if not (isinstance(value, Real) and 0 <= value < math.inf)]
        if wrong or not any(values):
            fault = f"row {wrong[0]} holds {values[wrong[0]]!r}" if wrong else "all are 0"
            rule = "'weight' multiplies losses; give finite numbers of 0 or more, or rename the column"
            raise ValueError(f"{name}: {rule}: {fault}.")
    if TRUSTED in dataset.column_names and set(rows[TRUSTED][:]) - {True, False}:
        raise ValueError(f"{name}: 'trusted' says whether a label has been checked; give true or false in every row.")


def split_batch(batch: Mapping[str, Any]) -> tuple[list[Tensor | None], dict[str, Any]]:
    """Return the batch's (B,) values of COLUMNS (None where it has none), and the rest of it."""
    return [batch.get(column) for column in COLUMNS], {key: batch[key] for key in batch if key not in COLUMNS}


class PairCollator:
    """Wraps a collator and adds the CAPO columns to its output."""

    def __init__(self, collate: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = dict(self.collate([{k: v for k, v in example.items() if k not in COLUMNS} for example in examples]))
        for column, dtype in COLUMNS.items():
            if column in examples[0]:
                batch[column] = torch.tensor([example[column] for example in examples], dtype=dtype)
        return batch
