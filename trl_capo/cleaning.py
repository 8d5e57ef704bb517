"""A data set mended by what is known of its labels: pairs flipped, dropped or weighed, with a line for every change.

Decisions by hand come before rules on the scores of an audit. A weight is the expected sign of a label that is wrong
with probability p: (1 - p) - p = 1 - 2 p, and 0 for a label that is more likely wrong than right; where a rule has
flipped it, p is 1 less the score. With the estimated rate the loss has that factor too (docs/method.md, eq. 7).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np
from datasets import Dataset, Value

from trl_capo.noise_checks import IS_NOISY
from trl_capo.row_changes import change_rows, swap_answers
from trl_capo.verdicts import Decision, Suspect
from trl_capo.weights import WEIGHT


@dataclass(frozen=True)
class Rules:
    """What is done with suspects that nobody has decided on. Where rules overlap, pairs are flipped, not dropped.

    Parameters:
        drop_top, flip_top: how many of the worst, as a share of all pairs ("10%", rounded down) or a number ("200").
        drop_above, flip_above: the score in [0, 1) above which pairs are dropped or flipped.
        weight: add a column `weight`.
    """

    drop_top: str | None = None
    flip_top: str | None = None
    drop_above: float | None = None
    flip_above: float | None = None
    weight: bool = False

    def given(self) -> dict[str, Any]:
        """The rules that are set."""
        return {name: value for name, value in vars(self).items() if value is not None and value is not False}

    def problems(self) -> list[str]:
        """Why they cannot be followed, a line each."""
        found = [f"{name}={value!r}: {_NO_TOP}" for name, value in self._given("top") if _parse_top(value) is None]
        above = [(name, value) for name, value in self._given("above") if not 0 <= value < 1]
        found += [f"{name}={value!r}: scores lie in [0, 1]. Give a number in [0, 1)." for name, value in above]
        for action in ("drop", "flip"):
            both = [f"{name}={value!r}" for name, value in self.given().items() if name.startswith(action)]
            if len(both) > 1:
                found.append(f"{' and '.join(both)}: two rules for what to {action}. Give one of them.")
        if not found and self._drops_only_what_is_flipped():
            named = " and ".join(f"{name}={value!r}" for name, value in self._given("top") + self._given("above"))
            found.append(f"{named}: all that would be dropped are flipped. Drop more than you flip, or leave one out.")
        return found

    def _drops_only_what_is_flipped(self) -> bool:
        if self.drop_above is not None and self.flip_above is not None:
            return self.flip_above <= self.drop_above
        if self.drop_top is None or self.flip_top is None:
            return False
        (drop, share), (flip, other) = _parse_top(self.drop_top), _parse_top(self.flip_top)
        return share == other and flip >= drop

    def _given(self, ending: str) -> list[tuple[str, Any]]:
        return [(name, value) for name, value in self.given().items() if name.endswith(ending)]


@dataclass(frozen=True)
class Cleaned:
    """The data set; what was done with every row of the one before ("keep", "flip" or "drop"); a line a change."""

    dataset: Dataset
    done: list[str]
    changes: list[dict[str, Any]]


def clean(
    dataset: Dataset,
    *,
    decisions: Mapping[int, Decision] | None = None,
    suspects: Mapping[int, Suspect] | None = None,
    rules: Rules | None = None,
) -> Cleaned:
    """Flip, drop and weigh pairs.

    Args:
        dataset: preference pairs.
        decisions: by row, as `trl_capo.verdicts.read_decisions` gives them.
        suspects: by row, the likeliest to be wrong first, as `trl_capo.verdicts.read_suspects` gives them.
        rules: for the suspects.

    Returns:
        The rows that were kept or flipped, in their order; answers are swapped with all columns that belong to them
        (docs/noise.md), and what a column `is_noisy` of true and false says of the label turns with it. A line of
        `changes` has pair (the row before), id, decision, why and score.

    Raises:
        ValueError: rules that cannot be followed, or nothing is left.
    """
    decisions, suspects, rules = decisions or {}, suspects or {}, rules or Rules()
    problems = rules.problems()
    if rules.weight and WEIGHT in dataset.column_names:
        problems.append(f"weight: the data have a column {WEIGHT!r} already. Remove or rename it first.")
    if problems:
        raise ValueError("\n".join(problems))
    planned = _by_rules(rules, suspects, len(dataset))
    for row, decision in decisions.items():
        planned[row] = (decision.what, ": ".join(["decided by hand", *filter(None, [decision.note])]))
    done = [planned[row][0] if row in planned else "keep" for row in range(len(dataset))]
    kept = np.flatnonzero(np.array(done) != "drop")
    if not len(kept):
        raise ValueError("every pair would be dropped, and none is left. Drop fewer.")
    cleaned, flipped = dataset.with_format(None), np.flatnonzero(np.array(done) == "flip")
    if len(flipped):
        cleaned, _ = swap_answers(cleaned, flipped, "Flipping", equal_too=True)
        if cleaned.features.get(IS_NOISY) == Value("bool"):
            cleaned, _ = change_rows(cleaned, flipped, _turn_truth, [IS_NOISY], {}, "Flipping")
    if rules.weight:
        weights = [_weight(row, what, decisions, suspects) for row, what in enumerate(done)]
        if not any(weights[row] for row in kept):
            raise ValueError("weight: it would be 0 for every pair that is left, and nothing could be learned.")
        cleaned = cleaned.add_column(WEIGHT, weights)
    ids = dataset.with_format(None)["id"][:] if "id" in dataset.column_names else [None] * len(dataset)
    ids = [name if isinstance(name, int | str | None) else str(name) for name in ids]
    changes = [
        {"pair": row, "id": ids[row], "decision": what, "why": planned[row][1], "score": _score(row, suspects)}
        for row, what in enumerate(done)
        if what != "keep"
    ]
    return Cleaned(cleaned.select(kept), done, changes)


def _turn_truth(row: int, values: Mapping[str, Any]) -> dict[str, bool] | None:
    """What `is_noisy` says of a label the other way round; None where it says nothing."""
    return None if values[IS_NOISY] is None else {IS_NOISY: not values[IS_NOISY]}


def _by_rules(rules: Rules, suspects: Mapping[int, Suspect], rows: int) -> dict[int, tuple[str, str]]:
    """What the rules do with which rows, and why."""
    planned = {}
    for action in ("drop", "flip"):  # the later wins
        top, above = getattr(rules, f"{action}_top"), getattr(rules, f"{action}_above")
        if top is None and above is None:
            continue
        if top is None:
            told = f"{action}_above={above}"
            chosen = [row for row, suspect in suspects.items() if suspect.score > above]
        else:
            count = _count(f"{action}_top", top, rows, len(suspects))
            told, chosen = f"{action}_top={top}, the worst {count:,} of {rows:,} pairs", list(suspects)[:count]
        for row in chosen:
            planned[row] = (action, "; ".join([told, *suspects[row].reasons]))
    return planned


def _weight(row: int, what: str, decisions: Mapping[int, Decision], suspects: Mapping[int, Suspect]) -> float:
    """In [0, 1]; 1 for a label that was looked at, and for one of which nothing is known."""
    if row in decisions or row not in suspects:
        return 1.0
    wrong = suspects[row].score if what == "keep" else 1.0 - suspects[row].score
    return max(0.0, 1.0 - 2.0 * wrong)


def _score(row: int, suspects: Mapping[int, Suspect]) -> float | None:
    return suspects[row].score if row in suspects else None


_NO_TOP = (
    "give a share of the pairs between 0% and 100%, such as '10%', or a whole number of pairs above 0, such as 200."
)


def _parse_top(value: str) -> tuple[Decimal, bool] | None:
    """The number, and whether it is a share in percent; None if it is neither."""
    text = str(value).strip()
    try:
        number = Decimal(text.removesuffix("%"))
    except InvalidOperation:
        return None
    share = text.endswith("%")
    sound = number.is_finite() and number > 0 and (number < 100 if share else number == int(number))
    return (number, share) if sound else None


def _count(option: str, value: str, rows: int, known: int) -> int:
    number, share = _parse_top(value)
    count = int(rows * number / 100 if share else number)
    if not 0 < count <= known:
        raise ValueError(
            f"{option}={value!r}: that is {count:,} of {rows:,} pairs, and there are {known:,} suspects. Give another "
            "share, or suspects for all pairs."
        )
    return count
