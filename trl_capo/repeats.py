"""Pairs that occur more than once, as they are or the other way round."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from datasets import Dataset

from trl_capo.plain import first_few


def find_repeats(rows: Iterable[Mapping[str, Any]]) -> tuple[list[int], list[int]]:
    """The rows that repeat an earlier one, and those whose chosen and rejected an earlier one has swapped.

    Two pairs are the same if their prompts (if they have any of their own) and both answers are.
    """
    seen, repeated, contradicting = set(), [], []
    for index, row in enumerate(rows):
        prompt, chosen, rejected = (_text(row.get(column)) for column in ("prompt", "chosen", "rejected"))
        if (prompt, chosen, rejected) in seen:
            repeated.append(index)
        elif (prompt, rejected, chosen) in seen:
            contradicting.append(index)
        seen.add((prompt, chosen, rejected))
    return repeated, contradicting


def _text(value: Any) -> int:
    """A number that stands for the text or messages, so that a large data set needs no second copy in memory."""
    return hash(value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str))


def repeat_warnings(rows: Dataset) -> list[str]:
    """A line for each kind of repetition that there is."""
    repeated, contradicting = find_repeats(rows)
    kinds = {
        "repeats an earlier pair, which counts as often as it is there": repeated,
        "contradicts an earlier pair (the same prompt, chosen and rejected swapped), so one of them is wrong": (
            contradicting
        ),
    }
    return [
        f"train_dataset: {len(found):,} of {len(rows):,} rows: {kind} (row {first_few(found)})"
        for kind, found in kinds.items()
        if found
    ]
