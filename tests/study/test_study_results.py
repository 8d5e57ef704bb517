"""Estimates over seeds and test pairs: numbers worked by hand, and intervals against brute force and SciPy."""

from dataclasses import replace

import numpy as np
import pytest

from trl_capo.common.intervals import TwoLevelBootstrap
from trl_capo.study.results import ALL, Cell, estimate, worst_group

LABELS = np.array(["de", "de", "sw", "sw", "sw", "sw"])


def make_cell(margins, labels=LABELS) -> Cell:
    margins = np.array(margins, dtype=np.float32)
    labels = np.array(labels)
    return Cell(tuple(range(len(margins))), margins, labels, [{}] * len(margins), TwoLevelBootstrap(labels))


OURS = make_cell([[1, 1, 1, 1, -1, 1], [1, 2, 3, -4, 5, 0]])
THEIRS = make_cell([[1, -1, 1, -1, -1, 1], [1, -1, 3, 4, -5, -1]])
"""Correct pairs (a tie is an error): 5 and 4 of 6 against 3 and 3; in "de" 2 and 2 of 2 against 1 and 1, in "sw" 3 and
2 of 4 against 2 and 2. Sums of the margins: 4 and 7 against 0 and 1."""


def many(seed, seeds=3, pairs=60, shift=0.3) -> Cell:
    generator = np.random.default_rng(seed)
    margins = generator.normal(shift, 1, (seeds, 1)) * 0.3 + generator.normal(shift, 1, (seeds, pairs))
    return make_cell(margins, labels=["de", "sw", "sw"] * (pairs // 3))


def brute_force(statistic, cells, group=ALL, draws=3000):
    """The 95 % interval of a statistic of (seeds, pairs) arrays: draw seeds, and pairs within groups, one by one."""
    generator = np.random.default_rng(7)
    names, found = np.unique(cells[0].labels), []
    for _ in range(draws):
        seeds = generator.integers(len(cells[0].seeds), size=len(cells[0].seeds))
        members = [np.flatnonzero(cells[0].labels == name) for name in names if group in (ALL, name)]
        pairs = np.concatenate([generator.choice(member, len(member)) for member in members])
        found.append(statistic(*(c.values("accuracy")[seeds][:, pairs] for c in cells)))
    return np.quantile(found, [0.025, 0.975])


def interval(*arguments, **options):
    found = estimate(*arguments, **options)
    return [found.low, found.high]


def test_values_by_hand():
    assert estimate(OURS, "accuracy").value == pytest.approx(9 / 12)
    assert estimate(OURS, "margin").value == pytest.approx(11 / 12)
    assert estimate(OURS, "accuracy", ALL, THEIRS).value == pytest.approx(3 / 12)
    assert estimate(OURS, "accuracy", "sw", THEIRS).value == pytest.approx(1 / 8)
    assert estimate(OURS, "accuracy", ALL, THEIRS, ratio=True).value == pytest.approx(9 / 6)
    assert estimate(OURS, "accuracy", "de", THEIRS, ratio=True).value == pytest.approx(4 / 2)
    assert estimate(OURS, "margin", ALL, THEIRS, ratio=True).value == pytest.approx(11 / 1)
    assert worst_group(OURS) == "sw"


@pytest.mark.parametrize("group", [ALL, "de", "sw"])
def test_intervals_equal_those_of_drawing_one_by_one(group):
    """Within the Monte Carlo error of 3,000 draws; the accuracies of "de" are multiples of 1/60."""
    ours, theirs = many(1, shift=0.8), many(2)
    expected = brute_force(lambda a, b: a.mean() - b.mean(), [ours, theirs], group)
    assert interval(ours, "accuracy", group, theirs) == pytest.approx(expected, abs=0.018)
    expected = brute_force(lambda a, b: a.mean() / b.mean(), [ours, theirs], group)
    assert interval(ours, "accuracy", group, theirs, ratio=True) == pytest.approx(expected, abs=0.05)
    expected = brute_force(np.mean, [ours], group)
    assert interval(ours, "accuracy", group) == pytest.approx(expected, abs=0.018)


def test_only_common_seeds_are_compared():
    """Of the seeds 0, 1 and 1, 5 only 1 is common: 4 of 6 against the 3 of 6 of the other's first row."""
    ours, theirs = replace(OURS, seeds=(0, 1)), replace(THEIRS, seeds=(1, 5))
    assert estimate(ours, "accuracy", ALL, theirs).value == pytest.approx(1 / 6)
    assert estimate(ours, "accuracy", ALL, theirs, ratio=True).value == pytest.approx(4 / 3)
    assert estimate(ours, "accuracy", ALL, replace(THEIRS, seeds=(7, 8))) is None
