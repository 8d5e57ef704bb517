"""Intervals and tests against brute force, SciPy and simulations whose answer is known."""

import math

import numpy as np
import pytest

from trl_capo.common.intervals import Z95, TwoLevelBootstrap, sign_test, wilson_interval
from trl_capo.evaluate.summary import paired_differences


@pytest.mark.parametrize(("successes", "total"), [(0, 1), (1, 1), (0, 40), (40, 40), (3, 5), (50, 100), (719, 1436)])
def test_wilson_bounds_are_where_the_score_statistic_is_the_quantile(successes, total):
    """By definition: |k/n - p| = z sqrt(p (1 - p) / n), but for the bounds 0 and 1."""
    share = successes / total
    for bound, edge in zip(wilson_interval(successes, total), (0, 1), strict=True):
        if share != edge:
            error = math.sqrt(bound * (1 - bound) / total)
            assert abs(share - bound) == pytest.approx(Z95 * error, rel=1e-9)
        else:
            assert bound == edge


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (4, 0), (6, 0), (5, 5), (30, 12), (412, 430)])
def test_sign_test_sums_the_two_binomial_tails(wins, losses):
    total = wins + losses
    tail = sum(math.comb(total, count) for count in range(min(wins, losses) + 1)) / 2**total
    assert sign_test(wins, losses) == pytest.approx(min(1.0, 2 * tail), abs=1e-12)


def simulate(labels, draw) -> list[dict]:
    generator = np.random.default_rng(2)
    return [paired_differences(labels, *draw(generator.random((2, len(labels))))) for _ in range(400)]


@pytest.mark.parametrize("key", ["overall", "macro"])
def test_intervals_cover_the_true_difference_about_95_times_in_100(key):
    """There are 20 groups of 5 pairs; one model ranks 50 % right, the other 70 %."""
    labels = [f"g{index // 5:02}" for index in range(100)]
    found = simulate(labels, lambda both: (both[0] < 0.5, both[1] < 0.7))
    covered = [result[key]["interval_95"][0] <= 0.2 <= result[key]["interval_95"][1] for result in found]
    assert 0.92 <= np.mean(covered) <= 0.98


@pytest.mark.parametrize(("pairs", "groups"), [(1, 60), (5, 20)])
def test_equal_models_are_beyond_chance_at_most_about_5_times_in_100(pairs, groups):
    labels = [f"g{index // pairs:02}" for index in range(pairs * groups)]
    found = simulate(labels, lambda both: tuple(both < 0.6))
    for key in ("overall", "macro"):
        assert 0 < np.mean([result[key]["beyond_chance"] for result in found]) <= 0.08


def test_methods_with_the_same_seeds_share_the_draws_in_which_groups_keep_their_sizes():
    """The draws of a difference are the difference of the draws; tests/study compares them with drawing one by one."""
    one, other = np.random.default_rng(4).normal(size=(2, 3, 6))
    labels = np.array(["a"] * 4 + ["b"] * 2)
    bootstrap = TwoLevelBootstrap(labels)
    assert bootstrap.draws(np.array([labels == "a"]), [1]) == pytest.approx(4 / 6)
    difference = bootstrap.draws(one, [1, 2, 3]) - bootstrap.draws(other, [1, 2, 3])
    assert difference == pytest.approx(bootstrap.draws(one - other, [1, 2, 3]))
