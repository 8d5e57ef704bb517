"""A hash that identifies preference data, and the form of a pair in which it is hashed and trained on."""

import hashlib
import json
from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from datasets import Dataset

COLUMNS = ("prompt", "chosen", "rejected")
_SAMPLE, _SHARE = 1000, 0.1  # rows that are looked at, and how many of them show that text repeats its prompt


def fingerprint(rows: Dataset) -> str:
    """Hash the pairs' texts or messages in their order; how they are stored, or repeat the prompt, is ignored."""
    columns, repeated = [name for name in COLUMNS if name in rows.column_names], repeats_prompt(rows)[0]
    digest = hashlib.sha256()
    for row in rows.select_columns(columns).with_format(None):
        row = separate_prompt(row) if repeated else row
        values = [_bare(row[name]) for name in columns]
        digest.update(json.dumps(values, sort_keys=True, default=repr).encode() + b"\n")
    return digest.hexdigest()


def _bare(value: Any) -> Any:
    """Leave out the keys that tables add to messages which lack them."""
    if isinstance(value, Mapping):
        return {key: _bare(part) for key, part in value.items() if part is not None}
    return [_bare(part) for part in value] if isinstance(value, list) else value


def repeats_prompt(rows: Dataset) -> tuple[int, int]:
    """Return in how many rows of a sample `separate_prompt` is needed (0 if too few to be meant), and its size."""
    if not {*COLUMNS} <= {*rows.column_names}:
        return 0, 0
    rows = rows.select_columns(list(COLUMNS)).with_format(None)
    sample = rows.select(range(0, len(rows), max(1, len(rows) // _SAMPLE))).to_list()
    found = [row for row in sample if separate_prompt(row) != row]
    # The answers to "2 + 2" may begin with it by chance.
    meant = len(found) >= _SHARE * len(sample) or any(not isinstance(row["chosen"], str) for row in found)
    return len(found) if meant else 0, len(sample)


def separate_prompt(pair: Mapping[str, Any]) -> dict[str, Any]:
    """Return the prompt and the answers, without the prompt where both answers begin with it.

    Messages that do not begin with the assistant's are whole conversations: what both share is the prompt, after any
    messages that only the column `prompt` has. Beside messages, a prompt that is text is the user's message.
    """
    prompt, *answers = (pair[name] for name in COLUMNS)
    if all(isinstance(text, str) for text in (prompt, *answers)):
        starts = (start for start in (prompt, prompt.rstrip()) if all(text.startswith(start) for text in answers))
        start = next(starts, "")
        prompt, answers = start or prompt, [text[len(start) :] for text in answers]
    elif all(isinstance(turns, list) and turns and isinstance(turns[0], Mapping) for turns in answers):
        user = dict.fromkeys(answers[0][0]) | {"role": "user", "content": prompt}
        known = [user] if isinstance(prompt, str) else prompt or []
        whole = all(turns[0].get("role") not in ("assistant", "tool") for turns in answers)
        both = zip(answers[0][:-1], answers[1][:-1], strict=False)
        shared = [turn for turn, _ in takewhile(lambda two: _bare(two[0]) == _bare(two[1]), both)] if whole else []
        places = [place for place, turn in enumerate(shared) if known and _bare(turn) == _bare(known[-1])]
        if places:
            prompt = known[: max(0, len(known) - places[-1] - 1)] + shared
        elif isinstance(prompt, str):
            prompt = shared or known
        else:
            shared = []
        answers = [turns[len(shared) :] for turns in answers]
    return dict(zip(COLUMNS, (prompt, *answers), strict=True))
