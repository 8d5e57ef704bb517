"""The mixture against closed forms, another library's densities and data whose truth is known."""

import numpy as np
import pytest
from audit_data import two_kinds
from scipy.stats import norm

from trl_capo.audit.judgement import combine, suggestions
from trl_capo.audit.mixture import BINS, fit, histograms, log_odds, noise_rates, signed_log


def likelihood(places, counts, rate, wrong, right, variance) -> float:
    density = rate * norm.pdf(places, wrong, variance**0.5) + (1 - rate) * norm.pdf(places, right, variance**0.5)
    return float(counts @ np.log(density))


def test_far_apart_components_are_the_shares_and_means_of_the_bins():
    places, counts = np.array([-101.0, -99.0, 99.0, 101.0]), np.array([10.0, 10.0, 30.0, 30.0])
    found = fit(places, counts)
    assert (found.rate, found.wrong, found.right, found.variance) == pytest.approx((0.25, -100, 100, 1))


def test_no_components_nearby_are_likelier():
    generator = np.random.default_rng(0)
    margins, _ = two_kinds(generator, 3000, 0.3, apart=1.2)
    places, counts = histograms(margins, np.zeros(3000, int), 1)
    found = fit(places, counts[0])
    best = [float(part) for part in (found.rate, found.wrong, found.right, found.variance)]
    top = likelihood(places, counts[0], *best)
    for which in range(4):
        for step in (-0.02, 0.02):
            other = list(best)
            other[which] += step
            assert likelihood(places, counts[0], *other) < top


def test_log_odds_are_those_of_scipys_densities():
    generator = np.random.default_rng(1)
    margins, _ = two_kinds(generator, 500, 0.2)
    places, counts = histograms(margins, np.zeros(500, int), 1)
    found = fit(places, counts[0])
    lower, upper = (norm.logpdf(margins, mean, found.variance**0.5) for mean in (found.wrong, found.right))
    expected = np.log(found.rate / (1 - found.rate)) + lower - upper
    assert found.log_odds(margins) == pytest.approx(expected, rel=1e-6)


def test_a_given_rate_is_kept_and_the_means_are_found():
    places, counts = np.array([-5.0, -4.0, 4.0, 5.0]), np.array([[10.0, 10.0, 10.0, 10.0]])
    found = fit(places, counts, np.array([0.1]))
    assert found.rate == [0.1]
    assert (found.wrong[0], found.right[0]) == pytest.approx((-4.5, 4.5), abs=1e-6)


def test_histograms_count_every_value_in_its_group():
    generator = np.random.default_rng(2)
    values, groups = generator.normal(size=1000), generator.integers(0, 3, 1000)
    places, counts = histograms(values, groups, 3)
    for group in range(3):
        expected = np.histogram(values[groups == group], BINS, (values.min(), values.max()))[0]
        assert counts[group].tolist() == expected.tolist()
    assert places[0] - values.min() == pytest.approx(values.max() - places[-1])


def test_rates_of_groups_and_their_errors_are_found():
    generator = np.random.default_rng(3)
    rates, size = [0.05, 0.2, 0.4], 2000
    margins = np.concatenate([two_kinds(generator, size, rate, apart=5.0)[0] for rate in rates])
    found, errors = noise_rates(margins, np.repeat(np.arange(3), size), 3)
    assert found == pytest.approx(rates, abs=0.03)
    # Where each pair's kind is plain to see, the error is that of a proportion.
    assert errors == pytest.approx([(rate * (1 - rate) / size) ** 0.5 for rate in found], rel=0.25)


def test_a_small_group_looks_to_the_others():
    generator = np.random.default_rng(4)
    margins = np.append(two_kinds(generator, 1000, 0.2)[0], 3.0)
    groups = np.append(np.zeros(1000, int), 1)
    found, _ = noise_rates(margins, groups, 2)
    assert found[1] == pytest.approx((10 * found[0] + 0) / 11, abs=0.02)


@pytest.mark.parametrize("size", [1, 5, 30, 300])
def test_errors_of_small_groups_reach_what_is_true_of_them(size):
    """22 groups of one size beside a large one, of which 1 in 20 may lie outside, 2 by chance."""
    generator = np.random.default_rng(6)
    parts = [two_kinds(generator, count, 0.2, apart=3.0) for count in [2000, *[size] * 22]]
    groups = np.repeat(np.arange(23), [2000, *[size] * 22])
    found, errors = noise_rates(np.concatenate([margins for margins, _ in parts]), groups, 23)
    outside = [
        abs(rate - wrong.mean()) > 1.96 * error
        for rate, error, (_, wrong) in zip(found, errors, parts, strict=True)
        if len(wrong) == size
    ]
    assert sum(outside) <= 2
    if size == 1:  # of eleven pairs that tell of it, ten are others'
        assert (errors[1:] > 10 / 11 * np.sqrt(found[1:] * (1 - found[1:]))).all()


def test_the_share_of_all_groups_that_is_added_is_ten_pairs():
    """Two values far apart, so that rates are shares: 30 of 100 and 1 of 4 are wrong, 31 of 104 of both together."""
    margins = np.repeat([-5.0, 5.0, -5.0, 5.0], [30, 70, 1, 3])
    found, _ = noise_rates(margins, np.repeat([0, 1], [100, 4]), 2)
    shared = 10 * 31 / 104
    assert found == pytest.approx([(30 + shared) / 110, (1 + shared) / 14], abs=1e-6)


def test_log_odds_fall_with_the_margin_within_a_group_and_average_to_its_rate():
    generator = np.random.default_rng(5)
    margins, wrong = two_kinds(generator, 4000, 0.3)
    odds = log_odds(margins, np.zeros(4000, int), np.array([0.3]))
    assert (np.diff(odds[np.argsort(margins)]) <= 0).all()
    scores = 1 / (1 + np.exp(-odds))
    assert scores.mean() == pytest.approx(wrong.mean(), abs=0.02)
    assert ((scores > 0.5) == wrong).mean() > 0.98


@pytest.mark.parametrize("outlier", [20.0, 2000.0, -2000.0])
@pytest.mark.parametrize("others", [0, 400])
def test_a_margin_far_out_leaves_the_scores_of_its_group(outlier, others):
    """Of a small group alone, and beside a large one: 4 wrong labels and 15 right ones, well apart, and the margin."""
    generator = np.random.default_rng(0)
    own = np.concatenate([generator.normal(-1.5, 0.5, 4), generator.normal(2.0, 0.5, 15), [outlier]])
    margins = np.concatenate([own, two_kinds(generator, others, 0.2)[0]]) if others else own
    groups = (np.arange(len(margins)) >= 20).astype(int)
    odds = log_odds(margins, groups, np.full(groups.max() + 1, 0.2))[:20]
    assert ((odds > 0) == (own < 0)).all()
    assert odds[19] == (odds.max() if outlier < 0 else odds.min())


@pytest.mark.parametrize("margins", [np.zeros(7), np.full(7, 3.0), np.array([2.0]), -np.arange(1.0, 8.0)], ids=str)
def test_margins_without_two_kinds_give_finite_numbers(margins):
    """But of margins that are all one nothing is known, and the error says so."""
    groups = np.zeros(len(margins), int)
    rates, errors = noise_rates(margins, groups, 1)
    assert 0 < rates[0] < 1
    assert errors[0] == np.inf if len(set(margins)) == 1 else 0 < errors[0] < 1
    assert np.isfinite(log_odds(margins, groups, rates)).all()
    rates, intervals = combine(rates, errors, np.full(1, np.nan), one_pass=False)
    assert intervals.tolist() == [[0, 1]] or len(set(margins)) > 1


def test_the_signed_logarithm_is_in_units_of_the_median():
    margins = np.array([-2.0, 1.0, 2.0, 4.0])
    assert signed_log(margins, 0.5) == pytest.approx(np.arcsinh(margins / 1.0))
    assert signed_log(1000 * margins, 0.5) == pytest.approx(signed_log(margins, 0.5))


def test_two_estimates_are_averaged_and_their_difference_widens_the_interval():
    mixed, error, trained = np.array([0.1, 0.1, 0.01]), np.array([0.03, 0.03, 0.03]), np.array([0.18, np.nan, 0.01])
    rates, intervals = combine(mixed, error, trained, one_pass=False)
    assert rates == pytest.approx([0.14, 0.1, 0.01])
    assert intervals[0] == pytest.approx([0.14 - 1.96 * 0.05, 0.14 + 1.96 * 0.05], abs=1e-5)  # 3, 4, 5
    assert intervals[1] == pytest.approx([0.1 - 1.96 * 0.03, 0.1 + 1.96 * 0.03], abs=1e-5)
    assert intervals[2][0] == 0
    assert combine(mixed, error, trained, one_pass=True)[0] == pytest.approx([0.18, 0.1, 0.01])


def test_suggestions_by_threshold():
    assert suggestions(np.array([1.0, 0.9, 0.89, 0.3, 0.29])).tolist() == ["flip", "flip", "look", "look", "keep"]
