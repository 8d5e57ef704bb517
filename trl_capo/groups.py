"""Groups of preference pairs, by a column such as `language`.

A group's label is text. Missing values form a group of their own, `(none)`, and are counted; a value that is neither
text nor a number names nothing and is refused with its row. Labels stand in metric keys and tables as they are, so a
label that would read like something else there is changed here, once.
"""

import re
from collections.abc import Iterable
from typing import Any

from datasets import Dataset, IterableDataset

from trl_capo.messages import get_logger
from trl_capo.metrics import SUMMARIES
from trl_capo.plain import first_few
from trl_capo.statistics import ALL_PAIRS, MACRO, WORST

logger = get_logger(__name__)

MISSING = "(none)"
EMPTY = "(empty)"
RESERVED = (*SUMMARIES, ALL_PAIRS, MACRO, WORST, MISSING, EMPTY)
"""Labels that mean something other than a group of that name."""
DEFAULT_COLUMN = "language"


def parse_group_column(value: str | None) -> str | None:
    """The option's value: on a command line and in YAML, `none` is how to write None."""
    return None if isinstance(value, str) and value.lower() in ("none", "null", "") else value


def resolve_group_column(
    columns: Iterable[str], group_column: str | None, name: str, option: str = "group_column"
) -> str | None:
    """The column that groups a data set with these columns: None for no groups.

    Args:
        columns: the data set's columns.
        group_column: a column, `"auto"` for `language` where there is one, or None for no groups.
        name: the data set's name, for the error.
        option: what gave the column, for the error.

    Raises:
        ValueError: the column is asked for by name and is not there.
    """
    columns = list(columns)
    if group_column is None or group_column in columns:
        return group_column
    if group_column == "auto":
        return DEFAULT_COLUMN if DEFAULT_COLUMN in columns else None
    raise ValueError(
        f"{option}={group_column!r}: {name} has no such column, only {', '.join(map(repr, columns))}. Name one of "
        "them, or None for no groups."
    )


def group_label(value: Any) -> str | None:
    """A cell's group, or None if the cell cannot name one.

    `(none)` is the group of missing values, `(empty)` that of text without a visible character. Text that reads like
    one of RESERVED gets ` (group)` behind it, and so does such text that has it already: no two texts share a label.
    """
    if value is None or value != value:  # NaN, as tables read with pandas have it
        return MISSING
    if not isinstance(value, str | int | float):
        return None
    label = str(value)
    if not label.strip():
        return EMPTY
    plain = re.fullmatch(r"(.*?)( \(group\))*", label, re.DOTALL)[1]
    return f"{label} (group)" if plain in RESERVED else label


def group_labels(dataset: Dataset, column: str, name: str, option: str = "group_column") -> list[str]:
    """The group of every row, in order.

    Raises:
        ValueError: rows whose cell cannot name a group.
    """
    values = dataset[column][:] if isinstance(dataset, Dataset) else list(dataset[column])
    labels = [group_label(value) for value in values]
    wrong = [index for index, label in enumerate(labels) if label is None]
    if wrong:
        raise ValueError(
            f"{option}={column!r}: {name} has {len(wrong):,} rows whose value is neither text nor a number "
            f"(row {first_few(wrong)}: {type(values[wrong[0]]).__name__}). Give each pair one group, or choose "
            "another column."
        )
    return labels


def find_groups(
    dataset: Dataset, group_column: str | None, name: str, option: str = "group_column"
) -> tuple[str | None, list[str] | None]:
    """The column that groups the data set and the group of every row; None and None for no groups.

    With `"auto"`, a column that cannot name groups is left alone with a warning.

    Raises:
        ValueError: a column that is asked for by name is not there, or cannot name groups.
    """
    column = resolve_group_column(dataset.column_names, group_column, name, option)
    if column is None:
        return None, None
    try:
        labels = group_labels(dataset, column, name, option)
    except ValueError as error:
        if group_column != "auto":
            raise
        logger.warning(f"no metrics per group: {error}")
        return None, None
    missing = labels.count(MISSING)
    if missing:
        logger.warning(
            f"{name}: {missing:,} of {len(labels):,} pairs have no {column!r}; they are the group {MISSING!r}"
        )
    return column, labels


def column_names(dataset: Dataset | IterableDataset) -> list[str]:
    """The columns of a data set; of a stream that does not declare them, those of its first row."""
    return dataset.column_names or list(next(iter(dataset), {}))
