"""The figures of a study, by hand and against brute force and scipy."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from trl_capo.study import table
from trl_capo.study.table import Bootstrap, Cell

LABELS = np.array(["de", "de", "sw", "sw", "sw", "sw"])


def cell(margins, seeds=None, labels=LABELS, curve=((2, 0.5), (4, 0.75))) -> Cell:
    margins = np.array(margins, dtype=np.float32)
    result = {"curve": [{"step": step, "accuracy": value, "margin": 0.1} for step, value in curve]}
    return Cell(tuple(seeds or range(len(margins))), margins, np.array(labels), [result] * len(margins))


OURS = cell([[1, 1, 1, 1, -1, 1], [1, 2, 3, -4, 5, 0]])
THEIRS = cell([[1, -1, 1, -1, -1, 1], [1, -1, 3, 4, -5, -1]])
"""Right, a tie not being so: 5 and 4 of 6 against 3 and 3; in de 2 and 2 of 2 against 1 and 1, in sw 3 and 2 of 4
against 2 and 2. Sums of the margins: 4 and 7 against 0 and 1."""


def brute_force(statistic, cells, group=None, draws=3000):
    """The 95 % interval of a statistic of (seeds, pairs) arrays: seeds and, in each group, pairs drawn one by one."""
    generator = np.random.default_rng(7)
    labels, found = cells[0].labels, []
    for _ in range(draws):
        seeds = generator.integers(len(cells[0].seeds), size=len(cells[0].seeds))
        rows = [generator.choice(np.flatnonzero(labels == name), (labels == name).sum()) for name in np.unique(labels)]
        pairs = np.concatenate([r for r, name in zip(rows, np.unique(labels), strict=True) if group in (None, name)])
        found.append(statistic(*(c.right[seeds][:, pairs] for c in cells)))
    return np.quantile(found, [0.025, 0.975])


def many(seed, seeds=3, pairs=60, shift=0.3) -> Cell:
    generator = np.random.default_rng(seed)
    margins = generator.normal(shift, 1, (seeds, 1)) * 0.3 + generator.normal(shift, 1, (seeds, pairs))
    return cell(margins, labels=["de", "sw", "sw"] * (pairs // 3))


def ends(found):
    return [found.low, found.high]


def test_values_by_hand():
    bootstrap = Bootstrap(LABELS)
    assert table.accuracy(OURS, bootstrap).value == pytest.approx(9 / 12)
    assert table.accuracy(THEIRS, bootstrap).value == pytest.approx(6 / 12)
    assert table.difference(OURS, THEIRS, bootstrap).value == pytest.approx(3 / 12)
    assert table.difference(OURS, THEIRS, bootstrap, "sw").value == pytest.approx(1 / 8)
    assert table.ratio(OURS, THEIRS, bootstrap).value == pytest.approx(9 / 6)
    assert table.ratio(OURS, THEIRS, bootstrap, "de").value == pytest.approx(4 / 2)
    assert table.margin(OURS, bootstrap).value == pytest.approx((4 + 7) / 12)
    assert table.margin_ratio(OURS, THEIRS, bootstrap).value == pytest.approx(11 / 1)
    group, worst = table.worst_group(OURS, bootstrap)
    assert (group, worst.value) == ("sw", pytest.approx(5 / 8))


@pytest.mark.parametrize("group", [None, "de", "sw"])
def test_intervals_are_those_of_drawing_one_by_one(group):
    """Within the Monte Carlo error of 3,000 draws."""
    ours, theirs = many(1, shift=0.8), many(2)
    bootstrap = Bootstrap(ours.labels)
    found = table.difference(ours, theirs, bootstrap, group)
    assert ends(found) == pytest.approx(
        brute_force(lambda a, b: a.mean() - b.mean(), [ours, theirs], group), abs=0.015
    )
    found = table.ratio(ours, theirs, bootstrap, group)
    assert ends(found) == pytest.approx(brute_force(lambda a, b: a.mean() / b.mean(), [ours, theirs], group), abs=0.05)
    if group is None:
        assert ends(table.accuracy(ours, bootstrap)) == pytest.approx(brute_force(np.mean, [ours]), abs=0.015)


def test_the_interval_of_one_seed_and_group_is_scipys():
    one = cell(np.random.default_rng(3).normal(0.2, 1, (1, 200)), labels=["de"] * 200)
    expected = stats.bootstrap((one.right[0],), np.mean, method="percentile", n_resamples=4000, rng=5)
    found = ends(table.accuracy(one, Bootstrap(one.labels)))
    assert found == pytest.approx(list(expected.confidence_interval), abs=0.006)


def test_equal_methods_differ_by_nothing_at_all():
    """Seeds and pairs are drawn alike for both: the interval has no width, though accuracy's own has."""
    one = many(4)
    bootstrap = Bootstrap(one.labels)
    assert ends(table.difference(one, one, bootstrap)) == [0, 0]
    assert ends(table.ratio(one, one, bootstrap)) == [1, 1]
    assert table.accuracy(one, bootstrap).high - table.accuracy(one, bootstrap).low > 0.05


def test_only_common_seeds_are_compared():
    """Seeds 0, 1 against 1, 5: only seed 1 counts, 4 of 6 against the 3 of 6 of their first row."""
    ours, theirs = replace(OURS, seeds=(0, 1)), replace(THEIRS, seeds=(1, 5))
    bootstrap = Bootstrap(LABELS)
    assert table.difference(ours, theirs, bootstrap).value == pytest.approx(1 / 6)
    assert table.ratio(ours, theirs, bootstrap).value == pytest.approx(4 / 3)
    for compare in (table.difference, table.ratio, table.margin_ratio):
        assert compare(ours, replace(THEIRS, seeds=(7, 8)), bootstrap) is None


def test_what_cannot_be_divided_by_is_left_out():
    bootstrap, none = Bootstrap(LABELS), cell([[-1, -1, -1, -1, -1, -1]] * 2)
    assert table.ratio(OURS, none, bootstrap) is None
    assert table.margin_ratio(OURS, none, bootstrap) is None
    rare = cell([[-1, -1, 1, -1, -1, -1]] * 2)  # in some draws it is never right
    assert table.ratio(OURS, rare, bootstrap).value == pytest.approx(9 / 2)
    assert table.ratio(OURS, rare, bootstrap).high == np.inf


def test_steps_to_a_target():
    one = cell([[1] * 6] * 2, curve=((10, 0.5), (20, 0.7), (30, 0.6)))
    assert [table.steps_to(one, target) for target in (0.4, 0.7, 0.71)] == [10, 20, None]
