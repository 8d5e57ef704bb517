"""How long pairs are in tokens, per group, and which of them `max_length` cuts: scripts differ by a factor of ten.

A pair's length is that of the longer of its two sequences, prompt and completion, as DPOTrainer tokenises them.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset

from trl_capo.fonts import one_line
from trl_capo.plain import first_few
from trl_capo.scoring import tokenise_rows
from trl_capo.statistics import ALL_PAIRS

SHOWN_GROUPS = 24
CUT_SHARE = 0.01
"""A group is named in the warning from this share of cut pairs on."""


@dataclass
class Lengths:
    """Of the pairs of a group: lengths in tokens, dropped pairs, tokens and characters of the completions."""

    pairs: list[int] = field(default_factory=list)
    dropped: int = 0
    tokens: int = 0
    characters: int = 0

    def add(self, other: "Lengths") -> None:
        self.pairs += other.pairs
        self.dropped += other.dropped
        self.tokens += other.tokens
        self.characters += other.characters

    def cut(self, max_length: int | None) -> float:
        """Share of the pairs of which `max_length` cuts something off."""
        return 0.0 if max_length is None else sum(size > max_length for size in self.pairs) / len(self.pairs)

    @property
    def per_character(self) -> float:
        return self.tokens / max(1, self.characters)


def measure_lengths(
    rows: Dataset,
    labels: Sequence[str] | None,
    tokenizer: Any,
    name: str,
    *,
    max_length: int | None,
    drops: bool,
) -> dict[str, Lengths]:
    """Tokenise all pairs; the lengths of every group, of ALL_PAIRS last.

    Args:
        rows: preference pairs.
        labels: their groups, or None.
        tokenizer: the model's.
        name: of the model, for errors.
        max_length: as DPOConfig's.
        drops: whether pairs whose prompt alone fills `max_length` are left out of the training, as TRL does unless
            it keeps the end.

    Raises:
        ValueError: a row cannot be tokenised.
    """
    groups: dict[str, Lengths] = defaultdict(Lengths)
    for index, (row, pair) in enumerate(zip(rows, tokenise_rows(rows, tokenizer, name), strict=True)):
        found = Lengths([len(pair.prompt) + max(len(pair.chosen), len(pair.rejected))])
        found.dropped = int(drops and max_length is not None and len(pair.prompt) >= max_length)
        found.tokens = len(pair.chosen) + len(pair.rejected)
        found.characters = count_characters(row["chosen"]) + count_characters(row["rejected"])
        if "prompt" not in row:  # it stands before both completions
            found.tokens += 2 * len(pair.prompt)
        groups[ALL_PAIRS if labels is None else labels[index]].add(found)
    if labels is not None:
        everything = Lengths()
        for group in groups.values():
            everything.add(group)
        groups[ALL_PAIRS] = everything
    return dict(groups)


def count_characters(answer: Any) -> int:
    """Of a text, or of the texts in messages."""
    if isinstance(answer, str):
        return len(answer)
    contents = [message.get("content") or "" for message in answer]
    parts = [part for content in contents for part in ([content] if isinstance(content, str) else content)]
    return sum(len(part if isinstance(part, str) else part.get("text") or "") for part in parts)


def length_rows(lengths: Mapping[str, Lengths], group_name: str, max_length: int | None) -> list[list[str]]:
    """Headings and a row a group, those first of which most is cut; the rest of very many groups is left out."""
    groups = {name: found for name, found in lengths.items() if name != ALL_PAIRS}
    best = min((found.per_character for found in groups.values()), default=lengths[ALL_PAIRS].per_character)
    largest = sorted(groups, key=lambda name: -len(groups[name].pairs))[:SHOWN_GROUPS]
    order = sorted(largest, key=lambda name: (-groups[name].cut(max_length), -groups[name].per_character))
    rows = [[group_name, "pairs", "median", "p95", "longest", "cut, %", "tokens/char", "x best"]]
    for name in [*order, ALL_PAIRS]:
        found = lengths[name]
        median, high = np.percentile(found.pairs, [50, 95], method="lower")
        ratio = f"{found.per_character / best:.1f}" if groups and name != ALL_PAIRS and best else ""
        cells = [f"{len(found.pairs):,}", f"{median:,}", f"{high:,}", f"{max(found.pairs):,}"]
        rows.append([name, *cells, f"{100 * found.cut(max_length):.1f}", f"{found.per_character:.2f}", ratio])
    return rows


def length_warnings(lengths: Mapping[str, Lengths], max_length: int | None) -> list[str]:
    """What `max_length` costs, where it costs anything worth a line."""
    warnings, everything = [], lengths[ALL_PAIRS]
    shares = {name: found.cut(max_length) for name, found in lengths.items() if name != ALL_PAIRS}
    worst = sorted(shares, key=lambda name: -shares[name])
    named = [f"{one_line(name)} {shares[name]:.1%}" for name in worst if shares[name] >= CUT_SHARE]
    if named or everything.cut(max_length) >= CUT_SHARE:
        fitting = max(fitting_length(found) for found in lengths.values())
        warnings.append(
            f"max_length={max_length} cuts {everything.cut(max_length):.1%} of the pairs{_some(named)}: what is cut "
            f"off is not learned from. A max_length of {fitting:,} would leave at least 99 % of every group whole."
        )
    if everything.dropped:
        named = [f"{one_line(name)} {lengths[name].dropped:,}" for name in worst if lengths[name].dropped]
        warnings.append(
            f"max_length={max_length}: {everything.dropped:,} of {len(everything.pairs):,} pairs{_some(named)} are "
            "left out of the training, because the prompt alone fills it"
        )
    return warnings


def _some(named: list[str]) -> str:
    return f" ({first_few(named, 8)})" if named else ""


def fitting_length(lengths: Lengths) -> int:
    """The length that 99 % of the pairs do not exceed."""
    return int(np.percentile(lengths.pairs, 99, method="higher"))
