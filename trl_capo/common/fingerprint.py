"""A hash that identifies preference data."""

import hashlib
import json
from typing import Any

from datasets import Dataset

COLUMNS = ("prompt", "chosen", "rejected")


def fingerprint(rows: Dataset) -> str:
    """Hash the pairs' texts or messages in their order; it does not matter how they are stored.

    A column `prompt` that all answers repeat does not count, since commands leave it out.
    """
    columns = [name for name in COLUMNS if name in rows.column_names][repeats_prompt(rows) :]
    digest = hashlib.sha256()
    for batch in rows.select_columns(columns).with_format(None).iter(1000):
        for row in zip(*map(batch.get, columns), strict=True):
            digest.update(json.dumps(row, sort_keys=True, default=repr).encode() + b"\n")
    return digest.hexdigest()


def repeats_prompt(rows: Dataset) -> bool:
    """Whether every answer begins with its prompt, as text, as messages, or as a first message with this text."""
    if not len(rows) or not {*COLUMNS} <= {*rows.column_names}:
        return False
    texts = rows.select_columns(list(COLUMNS)).with_format(None)
    return all(_continues(row["prompt"], row[side]) for row in texts for side in COLUMNS[1:])


def _continues(prompt: Any, answer: Any) -> bool:
    if isinstance(prompt, str) and isinstance(answer, list):
        prompt = answer[:1] if answer and answer[0].get("content") == prompt else None
    return bool(prompt and answer) and type(prompt) is type(answer) and answer[: len(prompt)] == prompt != answer
