"""The mixture against closed forms, the densities of SciPy, and data whose label errors are known."""

import math

import numpy as np
import pytest
from audit_logs import odd_pairs, two_kinds
from scipy.special import expit
from scipy.stats import norm

from trl_capo.audit import mislabels


def test_the_fit_is_the_likeliest_and_its_log_odds_are_those_of_scipys_densities():
    margins, _ = two_kinds(np.random.default_rng(0), 3000, 0.3, distance=1.2)
    bins, (counts,), _ = mislabels.histograms(margins, np.zeros(3000, int), 1)

    def densities(rate, wrong, right, variance):
        return rate * norm.pdf(bins, wrong, variance**0.5), (1 - rate) * norm.pdf(bins, right, variance**0.5)

    best = [float(part) for part in mislabels.fit(bins, counts)]
    lower, upper = densities(*best)
    assert mislabels.component_log_odds(bins, *best) == pytest.approx(np.log(lower / upper), rel=1e-6)
    for place in range(4):
        for step in (-0.02, 0.02):
            other = sum(densities(*best[:place], best[place] + step, *best[place + 1 :]))
            assert counts @ np.log(other) < counts @ np.log(lower + upper)


def test_rates_and_their_errors_are_found():
    """Where the two kinds are far apart, the error is that of a proportion."""
    generator, rates, size = np.random.default_rng(3), [0.05, 0.2, 0.4], 2000
    margins = np.concatenate([two_kinds(generator, size, rate, distance=5.0)[0] for rate in rates])
    found, errors = mislabels.mixture_rates(margins, np.repeat(np.arange(3), size), 3)
    assert found == pytest.approx(rates, abs=0.03)
    assert errors == pytest.approx([(rate * (1 - rate) / size) ** 0.5 for rate in found], rel=0.25)


def test_errors_of_small_groups_cover_their_true_rates():
    """Of 22 small groups beside a large one, 1 in 20 may lie outside, or 2 by chance."""
    generator, sizes = np.random.default_rng(6), [2000, *[1, 30] * 11]
    parts = [two_kinds(generator, size, 0.2) for size in sizes]
    margins, groups = np.concatenate([margins for margins, _ in parts]), np.repeat(np.arange(23), sizes)
    found, errors = mislabels.mixture_rates(margins, groups, 23)
    true = np.array([wrong.mean() for _, wrong in parts])
    assert (np.abs(found - true) > 1.96 * errors)[1:].sum() <= 2


def test_every_group_gets_ten_shared_pairs():
    """Two values far apart, so that rates are shares: 30 of 100 and 1 of 4 labels are wrong, 31 of 104 together."""
    margins = np.repeat([-5.0, 5.0, -5.0, 5.0], [30, 70, 1, 3])
    found, _ = mislabels.mixture_rates(margins, np.repeat([0, 1], [100, 4]), 2)
    shared = 10 * 31 / 104
    assert found == pytest.approx([(30 + shared) / 110, (1 + shared) / 14], abs=1e-6)


def test_log_odds_fall_with_the_margin_and_average_to_the_rate():
    margins, wrong = two_kinds(np.random.default_rng(5), 4000, 0.3)
    log_odds = mislabels.label_log_odds(margins, np.zeros(4000, int), np.array([0.3]))
    assert (np.diff(log_odds[np.argsort(margins)]) <= 0).all()
    scores = expit(log_odds)
    assert scores.mean() == pytest.approx(wrong.mean(), abs=0.02)
    assert ((scores > 0.5) == wrong).mean() > 0.98


@pytest.mark.parametrize("outlier", [20.0, 2000.0, -2000.0])
def test_an_outlier_does_not_change_the_scores_of_its_group(outlier):
    """4 wrong labels and 15 right ones, well apart, and the outlier."""
    generator = np.random.default_rng(0)
    margins = np.concatenate([generator.normal(-1.5, 0.5, 4), generator.normal(2.0, 0.5, 15), [outlier]])
    log_odds = mislabels.label_log_odds(margins, np.zeros(20, int), np.array([0.2]))
    assert ((log_odds > 0) == (margins < 0)).all()
    assert log_odds[19] == (log_odds.max() if outlier < 0 else log_odds.min())


@pytest.mark.parametrize("margins", [np.zeros(7), np.full(7, 3.0), np.array([2.0]), -np.arange(1.0, 8.0)], ids=str)
def test_margins_of_one_kind_give_finite_numbers(margins):
    """If all margins are equal, nothing is known, and the interval says so."""
    groups = np.zeros(len(margins), int)
    rates, errors = mislabels.mixture_rates(margins, groups, 1)
    assert np.isfinite(mislabels.label_log_odds(margins, groups, rates)).all()
    rates, intervals = mislabels.combine(rates, errors, np.full(1, np.nan), single_pass=False)
    assert 0 < rates[0] < 1
    assert (intervals.T.tolist() == [[0, 1]]) == (len(set(margins)) == 1)


def test_two_estimates_are_averaged_and_their_difference_widens_the_interval():
    """Errors 0.03 and half a difference of 0.04 combine to 0.05."""
    mixture, error, trained = np.array([0.1, 0.1, 0.01]), np.full(3, 0.03), np.array([0.18, np.nan, 0.01])
    rates, (low, high) = mislabels.combine(mixture, error, trained, single_pass=False)
    assert rates == pytest.approx([0.14, 0.1, 0.01])
    assert (low[0], high[0]) == pytest.approx((0.14 - 1.96 * 0.05, 0.14 + 1.96 * 0.05), abs=1e-5)
    assert (low[1], low[2]) == (pytest.approx(0.1 - 1.96 * 0.03, abs=1e-5), 0)
    assert mislabels.combine(mixture, error, trained, single_pass=True)[0] == pytest.approx([0.18, 0.1, 0.01])


def test_wrong_labels_come_first_and_suggestions_follow_the_scores(tmp_path):
    dynamics, _, wrong = odd_pairs(tmp_path / "log")
    pairs = mislabels.estimate_label_errors(dynamics).pairs
    assert pairs["score"].is_monotonic_decreasing
    assert wrong[pairs.index[: wrong[1:].sum()]].mean() > 0.95
    for score, suggestion in zip(pairs["score"], pairs["suggestion"], strict=True):
        assert suggestion == ("keep", "look", "flip")[(score >= 0.3) + (score >= 0.9)]


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    """Wrong labels with scores of 3 and 2 beside right ones with 2 and 1: three comparisons and a half of four."""
    scores = np.array([3.0, 2.0, 2.0, 1.0])
    assert mislabels.auroc(scores, np.array([True, True, False, False])) == 3.5 / 4
    assert math.isnan(mislabels.auroc(scores, np.ones(4, dtype=bool)))
