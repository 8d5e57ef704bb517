"""Intervals and summaries against SciPy, by hand, and on constructed data where the answer is known."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, permutation_test

from trl_capo.metrics import PairWindow, group_metrics
from trl_capo.statistics import (
    by_group,
    macro_and_worst,
    macro_sign_test,
    model_differences,
    model_figures,
    paired_differences,
    sign_test,
    summarise,
    wilson_interval,
)


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


def scores(margins: list[float]) -> dict:
    return {"margins": np.array(margins), "normalised": np.ones(len(margins)), "reference": "r"}


def test_a_model_of_ties_only_has_no_accuracy():
    figures = model_figures(["a", "b", "b"], {"also": ["x", "x", "y"]}, **scores([0.0, 0.0, 0.0]))
    parts = [figures["overall"], *figures["groups"].values(), *figures["also_by"]["also"].values()]
    assert len(parts) == 5
    assert all((part["accuracy"], part["accuracy_95"], part["ties"]) == (None, None, 1.0) for part in parts)
    assert (figures["macro"], figures["worst"]) == (
        {"reference_free_accuracy": 1.0},
        {"reference_free_accuracy": {"group": "a", "value": 1.0}},
    )


def test_a_group_of_ties_only_counts_as_0_everywhere():
    """Group a: one of two right; b: two ties. Macro 1/4, worst b; against all right: -1/2, -1, -3/4; so in training.

    The trainer's figures are those of metrics.py, whose rows are the strict comparison's 1 and 0.
    """
    labels, tied, right = ["a", "a", "b", "b"], scores([1.0, -1.0, 0.0, 0.0]), scores([1.0, 1.0, 1.0, 1.0])
    figures = model_figures(labels, {}, **tied)
    assert (figures["groups"]["b"]["accuracy"], figures["groups"]["b"]["ties"]) == (0.0, 1.0)
    assert figures["macro"]["accuracy"] == 0.25
    assert figures["worst"]["accuracy"] == {"group": "b", "value": 0.0}
    found = model_differences(labels, {"right": right, "tied": tied}, 0)["tied"]
    assert [found["groups"][group]["difference"] for group in "ab"] == [-0.5, -1.0]
    assert (found["macro"]["difference"], found["overall"]["difference"]) == (-0.75, -0.75)
    window = PairWindow(["rewards/accuracies", "rewards/margins"])
    margins = torch.tensor([1.0, -1.0, 0.0, 0.0])
    window.add(torch.stack([(margins > 0).float(), margins], dim=1), torch.tensor([0, 0, 1, 1]), 2)
    trained = group_metrics(window.means()[1], ["a", "b"])
    assert trained["rewards/accuracies/macro"] == figures["macro"]["accuracy"]
    assert trained["rewards/accuracies/worst"] == figures["worst"]["accuracy"]["value"]


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


SIZES = [[4, 3, 2, 1], [1] * 10, [10]]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_macro_means_test_is_scipys_permutation_test(sizes):
    """All 1,024 signs of ten changes."""
    changes = np.array([1, 1, -1, 1, 1, 0, 1, 1, 1, -1])
    ends = np.cumsum(sizes)[:-1]

    def macro(values, axis=-1):
        parts = np.split(np.moveaxis(values, axis, 0), ends)
        return np.mean([part.mean(axis=0) for part in parts], axis=0)

    exact = permutation_test((changes,), macro, permutation_type="samples", n_resamples=np.inf, vectorized=True)
    found = macro_sign_test(np.split(changes, ends), 200_000, np.random.default_rng(0))
    assert found == pytest.approx(exact.pvalue, abs=0.005)


@pytest.mark.parametrize(("pairs", "groups"), [(1, 60), (3, 20), (5, 20), (40, 3)])
def test_equal_models_are_marked_about_5_times_in_100(pairs, groups):
    """Both are right on 60 % of the pairs, each by itself; no more than 7 % may be marked, and some must be."""
    generator, labels = np.random.default_rng(4), [f"g{index // pairs:02}" for index in range(pairs * groups)]
    marked = {"macro": 0, "overall": 0}
    for trial in range(400):
        baseline, other = generator.random((2, len(labels))) < 0.6
        found = paired_differences(labels, baseline, other, resamples=400, seed=trial)
        for name in marked:
            marked[name] += found["summary", name]["beyond_chance"]
    assert 0.01 <= marked["macro"] / 400 <= 0.07
    assert marked["overall"] / 400 <= 0.07


@pytest.mark.parametrize("pairs", [1, 3])
def test_a_difference_in_many_small_groups_is_beyond_chance(pairs):
    """60 pairs of which the other model wins 20 and loses 4, in groups of 1 or 3; with 60 groups of one, all agree."""
    baseline, other = np.zeros((2, 60), dtype=bool)
    other[:40:2], baseline[41:48:2] = True, True
    found = paired_differences([f"g{index // pairs:02}" for index in range(60)], baseline, other)
    macro = found["summary", "macro"]
    assert macro["beyond_chance"]
    assert macro["difference"] == pytest.approx(16 / 60)
    assert macro["interval_95"][0] == pytest.approx(16 / 60 - 1.96 * np.sqrt(24) / 60, abs=0.05)


def test_the_interval_of_a_macro_mean_covers_it_about_95_times_in_100():
    """20 groups of 3 pairs, in which the other model is right on 70 % and the first on 50 %."""
    generator, labels, covered = np.random.default_rng(5), [f"g{index // 3:02}" for index in range(60)], 0
    for trial in range(300):
        baseline, other = generator.random(60) < 0.5, generator.random(60) < 0.7
        low, high = paired_differences(labels, baseline, other, resamples=400, seed=trial)["summary", "macro"][
            "interval_95"
        ]
        covered += low <= 0.2 <= high
    assert 0.91 <= covered / 300 <= 0.99


def test_a_single_pair_says_nothing_of_the_sign():
    """One pair won: between no difference and all the difference there can be."""
    found = paired_differences(["g"], np.array([False]), np.array([True]))["group", "g"]
    assert (found["difference"], found["interval_95"], found["beyond_chance"]) == (1.0, [0.0, 1.0], False)
