"""Rows of preference data changed one by one: answers swapped, or columns given new values; the others stay.

Columns named alike but for `chosen` and `rejected` belong to the answers, and go with them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from datasets import Dataset, Features

from trl_capo.answers import common_feature, paired_columns

Change = Callable[[int, Mapping[str, Any]], Mapping[str, Any] | None]


def answer_columns(dataset: Dataset) -> list[str]:
    """The columns of the prompt, if there is one, and of both answers."""
    return [name for name in ("prompt", "chosen", "rejected") if name in dataset.column_names]


def swap_answers(
    dataset: Dataset, rows: np.ndarray, desc: str, *, equal_too: bool = False
) -> tuple[Dataset, set[int]]:
    """The data set with the answers of some rows swapped, and all columns that are named after them.

    Args:
        dataset: preference pairs.
        rows: (R,) their numbers.
        desc: what is done, for the progress bar.
        equal_too: whether columns are swapped where the answers themselves are equal.

    Returns:
        The data set, and the rows that changed.
    """
    pairs = paired_columns(dataset.column_names)
    partners = pairs | {rejected: chosen for chosen, rejected in pairs.items()}

    def change(index: int, row: Mapping[str, Any]) -> dict[str, Any] | None:
        if row["chosen"] == row["rejected"] and not equal_too:
            return None
        return {name: row[other] for name, other in partners.items()}

    return change_rows(dataset, rows, change, list(partners), partners, desc)


def change_rows(
    dataset: Dataset, rows: np.ndarray, change: Change, columns: list[str], sources: Mapping[str, str], desc: str
) -> tuple[Dataset, set[int]]:
    """The data set with some rows changed.

    Args:
        dataset: preference pairs.
        rows: (R,) the numbers of those to change.
        change: from a row's number and the row, the new values of all `columns`, or None if it cannot be changed.
        columns: that change.
        sources: columns that get values of another column, with that column.
        desc: as of `swap_answers`.

    Returns:
        The data set, and the rows that changed.
    """
    types = {column: common_feature(dataset.features, column, source) for column, source in sources.items()}
    read = dataset.select(rows).select_columns(sorted({*answer_columns(dataset), *columns}))
    found = zip(rows.tolist(), read, strict=True)
    changes = {index: changed for index, row in found if (changed := change(index, row)) is not None}
    changed = dataset.map(
        _change_batch,
        with_indices=True,
        batched=True,
        fn_kwargs={"changes": changes, "columns": columns},
        features=Features(dataset.features | types),
        desc=desc,
    )
    return changed, set(changes)


def _change_batch(batch: Mapping[str, list], indices: list[int], changes: Mapping, columns: list[str]) -> dict:
    numbered = {name: zip(indices, batch[name], strict=True) for name in columns}
    return {
        name: [changes[index][name] if index in changes else value for index, value in values]
        for name, values in numbered.items()
    }
