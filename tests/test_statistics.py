"""Intervals and summaries against SciPy, by hand, and on constructed data where the answer is known."""

import numpy as np
import pytest
from scipy.stats import binomtest

from trl_capo.statistics import by_group, macro_and_worst, paired_differences, sign_test, summarise, wilson_interval


@pytest.mark.parametrize(("successes", "total"), [(0, 1), (1, 1), (0, 40), (40, 40), (3, 5), (50, 100), (719, 1436)])
def test_wilson_interval_is_scipys(successes, total):
    expected = binomtest(successes, total).proportion_ci(method="wilson")
    assert wilson_interval(successes, total) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_interval_of_nothing_is_refused():
    with pytest.raises(ValueError, match="total=0"):
        wilson_interval(0, 0)


def test_summary_by_hand():
    """Margins 2, -1, 0, 5: two of four right, one tie, mean 1.5, median 1; per token 1, 1, -1, 0: two of four."""
    figures = summarise(np.array([2.0, -1.0, 0.0, 5.0]), np.array([1.0, 1.0, -1.0, 0.0]))
    low, high = wilson_interval(2, 4)
    assert figures == {
        "pairs": 4,
        "accuracy": 0.5,
        "accuracy_95": [low, high],
        "ties": 0.25,
        "margin_mean": 1.5,
        "margin_median": 1.0,
        "reference_free_accuracy": 0.5,
        "reference_free_accuracy_95": [low, high],
    }


def test_all_ties_have_no_accuracy():
    figures = summarise(np.zeros(3), np.array([1.0, -1.0, 1.0]))
    assert (figures["accuracy"], figures["ties"]) == (None, 1.0)
    assert figures["reference_free_accuracy"] == pytest.approx(2 / 3)


def test_without_a_reference_there_are_no_rewards():
    figures = summarise(None, np.array([1.0]))
    assert all(figures[key] is None for key in ("accuracy", "ties", "margin_mean", "margin_median"))


def test_groups_are_summarised_apart():
    groups = by_group(["b", "a", "b"], np.array([1.0, -1.0, -3.0]), np.ones(3))
    assert list(groups) == ["a", "b"]
    assert [(groups[g]["pairs"], groups[g]["accuracy"], groups[g]["margin_mean"]) for g in "ab"] == [
        (1, 0.0, -1.0),
        (2, 0.5, -1.0),
    ]


def test_macro_and_worst_by_hand():
    assert macro_and_worst({"b": 0.2, "a": 0.2, "c": 0.8}) == (pytest.approx(0.4), "a")


def test_difference_is_found_where_it_is_and_only_there():
    """Group x: the other model is right on 60 pairs more, of 200; group y: both alike."""
    labels = ["x"] * 200 + ["y"] * 200
    baseline = np.arange(400) % 2 == 0
    other = baseline.copy()
    other[np.flatnonzero(~baseline[:200])[:60]] = True
    found = paired_differences(labels, baseline, other)
    x, y = found["group", "x"], found["group", "y"]
    assert (x["difference"], x["beyond_chance"]) == (pytest.approx(0.3), True)
    assert (y["difference"], y["interval_95"], y["beyond_chance"]) == (0.0, [0.0, 0.0], False)
    assert found["summary", "overall"]["difference"] == found["summary", "macro"]["difference"] == pytest.approx(0.15)


@pytest.mark.parametrize(("wins", "losses"), [(1, 0), (4, 0), (6, 0), (5, 5), (30, 12)])
def test_sign_test_is_scipys(wins, losses):
    assert sign_test(wins, losses) == pytest.approx(binomtest(wins, wins + losses).pvalue, abs=1e-12)


@pytest.mark.parametrize(("wins", "marked"), [(1, False), (4, False), (6, True)])
def test_few_pairs_are_not_beyond_chance(wins, marked):
    """Of 100 pairs, so many won and none lost: p = 2 / 2^wins is 1, 0.125 and 0.031."""
    baseline = np.zeros(100, dtype=bool)
    other = np.arange(100) < wins
    assert paired_differences(["g"] * 100, baseline, other)["group", "g"]["beyond_chance"] is marked


def test_interval_is_that_of_resampling_the_pairs_themselves():
    """Against a plain bootstrap that draws pairs with replacement: quantiles within the error of 10,000 draws."""
    generator = np.random.default_rng(1)
    baseline, other = generator.random(150) < 0.6, generator.random(150) < 0.75
    low, high = paired_differences(["g"] * 150, baseline, other)["summary", "overall"]["interval_95"]
    drawn = [
        (other[chosen].mean() - baseline[chosen].mean())
        for chosen in (generator.integers(0, 150, 150) for _ in range(10_000))
    ]
    assert (low, high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.012)


def test_intervals_cover_the_true_difference_about_95_times_in_100():
    generator = np.random.default_rng(2)
    covered = 0
    for trial in range(300):
        both = generator.random(200)
        baseline, other = both < 0.6, (both < 0.5) | (both > 0.85)  # true difference 0.65 - 0.6
        interval = paired_differences(["g"] * 200, baseline, other, resamples=1000, seed=trial)
        low, high = interval["summary", "overall"]["interval_95"]
        covered += low <= 0.05 <= high
    assert 0.91 <= covered / 300 <= 0.99


def test_resampling_is_a_function_of_the_seed():
    baseline, other = np.arange(5000) % 2 == 0, np.arange(5000) % 3 == 0
    one, same, another = (
        paired_differences(["g"] * 5000, baseline, other, resamples=99, seed=seed) for seed in (3, 3, 4)
    )
    assert one == same
    assert one != another
