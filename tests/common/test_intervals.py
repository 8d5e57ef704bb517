"""Intervals and tests against brute force, SciPy and simulations whose answer is known."""

import math

import numpy as np
import pytest
from scipy.stats import permutation_test

from trl_capo.common import intervals
from trl_capo.evaluate.summary import paired_differences


@pytest.mark.parametrize(("successes", "total"), [(0, 1), (1, 1), (0, 40), (40, 40), (3, 5), (50, 100), (719, 1436)])
def test_wilson_bounds_are_where_the_score_statistic_is_the_quantile(successes, total):
    """By definition: |k/n - p| = z sqrt(p (1 - p) / n), but for the bounds 0 and 1."""
    share = successes / total
    for bound, edge in zip(intervals.wilson_interval(successes, total), (0, 1), strict=True):
        if share != edge:
            error = math.sqrt(bound * (1 - bound) / total)
            assert abs(share - bound) == pytest.approx(intervals.Z95 * error, rel=1e-9)
        else:
            assert bound == edge


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (4, 0), (6, 0), (5, 5), (30, 12), (412, 430)])
def test_sign_test_sums_the_two_binomial_tails(wins, losses):
    total = wins + losses
    tail = sum(math.comb(total, count) for count in range(min(wins, losses) + 1)) / 2**total
    assert intervals.sign_test(wins, losses) == pytest.approx(min(1.0, 2 * tail), abs=1e-12)


@pytest.mark.parametrize("sizes", [[4, 3, 2, 1], [1] * 10, [10]], ids=str)
def test_macro_sign_test_is_the_permutation_test(sizes):
    """SciPy enumerates all 1,024 signs of ten changes."""
    changes = np.array([1, 1, -1, 1, 1, 0, 1, 1, 1, -1])
    ends = np.cumsum(sizes)[:-1]

    def macro(values, axis=-1):
        parts = np.split(np.moveaxis(values, axis, 0), ends)
        return np.mean([part.mean(axis=0) for part in parts], axis=0)

    exact = permutation_test((changes,), macro, permutation_type="samples", n_resamples=np.inf, vectorized=True)
    found = intervals.macro_sign_test(np.split(changes, ends), 200_000, np.random.default_rng(0))
    assert found == pytest.approx(exact.pvalue, abs=0.005)


def test_deviations_are_those_of_drawing_pairs_with_replacement():
    """Their variance is larger by n / (n - 1); quantiles agree within the error of 20,000 draws."""
    generator = np.random.default_rng(1)
    values = generator.choice([-1, 0, 1], size=30, p=[0.2, 0.5, 0.3])
    plain = generator.choice(values, (20_000, 30)).mean(axis=1) - values.mean()
    found = intervals.bootstrap_deviations(values, 20_000, generator)
    levels = [0.025, 0.25, 0.75, 0.975]
    assert np.quantile(found, levels) == pytest.approx(np.quantile(plain, levels) * math.sqrt(30 / 29), abs=0.04)
    assert found.std() == pytest.approx(values.std(ddof=1) / math.sqrt(30), rel=0.03)
    assert set(intervals.bootstrap_deviations(np.array([1]), 100, generator)) == {-1.0, 1.0}


def simulate(labels, draw, trials: int, resamples: int) -> list[dict]:
    generator = np.random.default_rng(2)
    return [
        paired_differences(labels, *draw(generator.random((2, len(labels)))), resamples=resamples, seed=trial)
        for trial in range(trials)
    ]


@pytest.mark.parametrize("key", ["overall", "macro"])
def test_intervals_cover_the_true_difference_about_95_times_in_100(key):
    """There are 20 groups of 5 pairs; one model ranks 50 % right, the other 70 %."""
    labels = [f"g{index // 5:02}" for index in range(100)]
    found = simulate(labels, lambda both: (both[0] < 0.5, both[1] < 0.7), trials=200, resamples=400)
    covered = [result[key]["interval_95"][0] <= 0.2 <= result[key]["interval_95"][1] for result in found]
    assert 0.9 <= np.mean(covered) <= 0.99


@pytest.mark.parametrize(("pairs", "groups"), [(1, 60), (5, 20)])
def test_equal_models_are_beyond_chance_at_most_about_5_times_in_100(pairs, groups):
    labels = [f"g{index // pairs:02}" for index in range(pairs * groups)]
    found = simulate(labels, lambda both: tuple(both < 0.6), trials=150, resamples=300)
    for key in ("overall", "macro"):
        assert 0 < np.mean([result[key]["beyond_chance"] for result in found]) <= 0.08


def test_methods_with_the_same_seeds_share_the_draws_in_which_groups_keep_their_sizes():
    """The draws of a difference are the difference of the draws; tests/study compares them with drawing one by one."""
    one, other = np.random.default_rng(4).normal(size=(2, 3, 6))
    labels = np.array(["a"] * 4 + ["b"] * 2)
    bootstrap = intervals.TwoLevelBootstrap(labels)
    assert bootstrap.draws(np.array([labels == "a"]), [1]) == pytest.approx(4 / 6)
    difference = bootstrap.draws(one, [1, 2, 3]) - bootstrap.draws(other, [1, 2, 3])
    assert difference == pytest.approx(bootstrap.draws(one - other, [1, 2, 3]))
