"""The column `weight` of preference data: how much each pair counts, as whoever made the data says.

CAPOTrainer multiplies a pair's loss by it, beside the scale (docs/method.md). The weights of a data set are checked
before a model is loaded, those of a stream as it is read.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from numbers import Real
from typing import Any

from datasets import Dataset, IterableDataset

from trl_capo.config import CAPOConfig, sigmoid_weight
from trl_capo.data import STREAM_ROWS, in_rows
from trl_capo.groups import column_names

WEIGHT = "weight"
LARGEST = 1e6
"""Far above it sums of weights and of losses leave the range of float32."""
_REMEDY = f"Give numbers from 0 to {LARGEST:,.0f}, or rename the column."


def weight_problems(args: CAPOConfig | None, dataset: Dataset | IterableDataset) -> list[str]:
    """Why the data set's weights cannot be used, a line for each reason; of a stream, by its first rows.

    Args:
        args: the options of the training; None if they are not known.
        dataset: preference pairs, with a column `weight` or without.
    """
    if WEIGHT not in column_names(dataset):
        return []
    problems = []
    if args is not None and (sigmoid_weight(args) == 0 or args.use_weighting):
        asked = f"use_weighting={args.use_weighting}" if args.use_weighting else f"loss_type={args.loss_type}"
        problems.append(
            f"it has a column {WEIGHT!r}, which weighs the pair losses of 'sigmoid', and with {asked} there are none "
            "that could be weighed. Train with 'sigmoid', or rename the column."
        )
    rows = (dataset.take(STREAM_ROWS) if isinstance(dataset, IterableDataset) else dataset).with_format(None)
    values = rows[WEIGHT][:] if isinstance(rows, Dataset) else list(rows[WEIGHT])
    faults = defaultdict(list)
    for index, value in enumerate(values):
        if fault := _fault(value):
            faults[fault].append(index)
    problems += [f"{in_rows(f'{WEIGHT} {fault}', rows, len(values))}. {_REMEDY}" for fault, rows in faults.items()]
    if not faults and isinstance(dataset, Dataset) and not any(values):
        problems.append(f"{WEIGHT} is 0 in all rows: nothing would be learned from them. {_REMEDY}")
    return problems


def check_as_read(dataset: IterableDataset, name: str) -> IterableDataset:
    """The stream, which ends with a ValueError at a row whose weight cannot be used; `name` is for the message."""
    if WEIGHT not in column_names(dataset):
        return dataset
    return dataset.map(_checked, with_indices=True, fn_kwargs={"name": name})


def _checked(row: Mapping[str, Any], index: int, name: str) -> dict[str, float]:
    if fault := _fault(row[WEIGHT]):
        raise ValueError(f"{name}: {WEIGHT} {fault} in row {index} ({row[WEIGHT]!r}). {_REMEDY}")
    return {WEIGHT: float(row[WEIGHT])}


def _fault(value: Any) -> str | None:
    if value is None:
        return "is null"
    if not isinstance(value, Real) or isinstance(value, bool):
        return f"is {type(value).__name__}, not a number,"
    if not math.isfinite(value):
        return "is not finite"
    if value > LARGEST:
        return f"is more than {LARGEST:,.0f}"
    return "is negative" if value < 0 else None
