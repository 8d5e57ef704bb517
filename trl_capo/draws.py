"""Which rows are drawn for noise: a uniform draw a row, and the probability it is held against.

A row's draw is a function of the seed and the row's number alone, so it is the same on every machine, whatever the
data, the kind of noise or the rate: the rows drawn at one rate are among those drawn at every higher one.
"""

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

AMBIGUITY = 2.0  # by how much the log-odds of a flip fall over one mean |score|
OTHERS = "*"

Rate = float | Mapping[str, float]


def uniform_draws(seed: int, count: int, stream: int = 0) -> np.ndarray:
    """(count,) uniform in [0, 1); the first ones do not depend on how many there are.

    From the bits of PCG64, whose stream NumPy keeps for good, which it does not promise of its distributions.

    Raises:
        ValueError: the seed is not a whole number from 0 on.
    """
    if not isinstance(seed, Integral) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed={seed!r}: the draws are made from it. Give a whole number, 0 or more.")
    bits = np.random.PCG64(np.random.SeedSequence(int(seed), spawn_key=(stream,))).random_raw(count)
    return (bits >> np.uint64(11)) * 2.0**-53


def check_rate(rate: Rate) -> None:
    """Raise one ValueError that names everything that is no share in [0, 1), or a mapping that names no group."""
    named = (
        {f"rate[{group!r}]": share for group, share in rate.items()} if isinstance(rate, Mapping) else {"rate": rate}
    )
    wrong = [f"{name}={share!r}" for name, share in named.items() if not _is_share(share)]
    if wrong or not named:
        raise ValueError(
            f"{', '.join(wrong) or f'rate={rate!r}'}: a rate is the share of pairs to change. "
            "Give a number in [0, 1), or a mapping from groups to such numbers."
        )


def _is_share(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= value < 1  # which NaN is not


def row_rates(rate: Rate, count: int, labels: Sequence[str] | None) -> np.ndarray:
    """(count,) the rate of every row.

    Args:
        rate: as checked by `check_rate`.
        labels: the rows' groups; a mapping needs them.

    Raises:
        ValueError: a mapping without groups, or with groups that are not there.
    """
    if not isinstance(rate, Mapping):
        return np.full(count, float(rate))
    if labels is None:
        raise ValueError(
            f"rate={dict(rate)!r} is a mapping from groups, and the data have no group column. Name it as "
            "group_column, or give one number for all pairs."
        )
    groups = set(labels)
    shares = {str(group): float(share) for group, share in rate.items()}
    unknown = [group for group in rate if str(group) not in groups | {OTHERS}]
    if unknown:
        hint = " YAML reads a bare no, yes, on or off as true or false: put it in quotes."
        raise ValueError(
            f"rate={dict(rate)!r}: there is no group {', '.join(map(repr, unknown))}, only "
            f"{', '.join(map(repr, sorted(groups)))}. Name these, or {OTHERS!r} for all others."
            + (hint if any(isinstance(group, bool) for group in unknown) else "")
        )
    return np.array([shares.get(label, shares.get(OTHERS, 0.0)) for label in labels])


def flip_probabilities(scores: np.ndarray, rates: np.ndarray, labels: Sequence[str] | None) -> np.ndarray:
    """(N,) `sigmoid(a - AMBIGUITY |score| / m)`: m is the mean |score|, and a makes the mean of each group its rate.

    If all scores are 0, the probability is the rate.

    Args:
        scores: (N,) finite, of either sign.
        rates: (N,) in [0, 1), the same within a group.
        labels: N groups, or None for a single one.
    """
    sizes = np.abs(scores)
    fall = AMBIGUITY * sizes / (sizes.mean() or 1.0)
    groups = np.array([""] * len(scores) if labels is None else labels)
    probabilities = np.zeros(len(scores))
    for group in np.unique(groups):
        rows = groups == group
        if rates[rows][0] > 0:
            probabilities[rows] = _calibrated(fall[rows], rates[rows][0])
    return probabilities


def _calibrated(fall: np.ndarray, rate: float) -> np.ndarray:
    """sigmoid(a - fall), with the a, found by bisection, that makes its mean the rate."""
    low = math.log(rate / (1 - rate))  # no probability is above the rate there
    high = low + fall.max()  # and none below it here
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _sigmoid(middle - fall).mean() < rate else (low, middle)
    return _sigmoid(high - fall)


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return (1 + np.tanh(values / 2)) / 2  # which cannot overflow
