"""What noise injection asks of its data: usable pairs, no noise yet, groups and scores where they are needed."""

from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset

from trl_capo.data import refuse_unusable
from trl_capo.draws import Rate, check_rate
from trl_capo.groups import group_labels, resolve_group_column
from trl_capo.plain import first_few

IS_NOISY = "is_noisy"
_TOKENISED = ("chosen_ids", "rejected_ids", "ref_chosen_logps", "ref_rejected_logps")


def checked_dataset(dataset: Any, rate: Rate, replaced: str | None = None) -> Dataset:
    """The data set with plain Python values; refuses what no noise can be injected into, or not at this rate."""
    if isinstance(dataset, IterableDataset):
        raise ValueError(
            "noise cannot be injected into a stream (IterableDataset): rates are per row and group, and need all of "
            "them. Load the data without streaming."
        )
    if not isinstance(dataset, Dataset):
        raise ValueError(f"noise is injected into a datasets.Dataset, not a {type(dataset).__name__}: give one split.")
    dataset = dataset.with_format(None)
    refuse_unusable(dataset=dataset)
    if IS_NOISY in dataset.column_names:
        raise ValueError(
            f"the data set has a column {IS_NOISY!r} already: noise upon noise, of which no column could tell the "
            "truth. Start from the data without it, or remove the column."
        )
    if replaced and (stale := [name for name in _TOKENISED if name in dataset.column_names]):
        raise ValueError(
            f"the data set has the columns {', '.join(map(repr, stale))}, which would not fit a replaced answer. "
            "Remove them, and compute them afterwards."
        )
    check_rate(rate)
    return dataset


def row_labels(dataset: Dataset, group_column: str | None) -> list[str] | None:
    """The group of every row, or None where there are no groups."""
    column = resolve_group_column(dataset.column_names, group_column, "the data set")
    return None if column is None else group_labels(dataset, column, "the data set")


def labels_for(rate: Rate, dataset: Dataset, group_column: str | None) -> list[str] | None:
    """The group of every row where the rate is a mapping, else None; the column must be there in either case."""
    resolve_group_column(dataset.column_names, group_column, "the data set")
    return row_labels(dataset, group_column) if isinstance(rate, Mapping) else None


def row_scores(dataset: Dataset, column: str | None) -> np.ndarray:
    """(N,) the scores of `flip_ambiguous`."""
    if column not in dataset.column_names:
        raise ValueError(
            f"score_column={column!r}: 'flip_ambiguous' needs a column of scores, and the data set has only "
            f"{', '.join(map(repr, dataset.column_names))}. Name one of them, or choose 'flip'."
        )
    values, total = dataset[column][:], len(dataset)
    wrong = [
        index
        for index, value in enumerate(values)
        if not isinstance(value, Real) or isinstance(value, bool) or not np.isfinite(value)
    ]
    if wrong:
        raise ValueError(
            f"score_column={column!r}: {len(wrong):,} of {total:,} rows have no finite number there (row "
            f"{first_few(wrong)}: {values[wrong[0]]!r}). Give every pair a score, or choose another column."
        )
    return np.array(values, dtype=float)
