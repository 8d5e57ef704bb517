"""The likelihoods of the noise rates and the fit of a witness, by hand and against a plain loop."""

import math

import numpy as np
import pytest
import torch
from scipy.special import expit, logit, logsumexp, softmax

from trl_capo.core import noise_model
from trl_capo.core.noise_model import GROUP_PRIOR_PAIRS, LOG_TEMPERATURE_STD, NOISE_RATES, TEMPERATURES

RATES, GRID = torch.tensor([0.1, 0.3]), torch.linspace(-3, 3, 13)
QUANTILES = (noise_model.PESSIMISM, 1 - noise_model.PESSIMISM)


def test_agreement_by_hand():
    """rho = ln 3, tau = 1: belief 3/4, so e = 0.1 gives 0.1 + 0.8 * 0.75 = 0.7; tau = ln 3 / ln 9: 0.9, so 0.82.

    e = 0.5 gives 0.5 for any rho; rho = 0 gives 0.5 for any e; a rho that is not finite gives log 1.
    """
    rho, rates = torch.tensor([math.log(3), 0.0, float("nan"), float("inf")]), torch.tensor([0.1, 0.5])
    temperatures, trusted = torch.tensor([1.0, 0.5]), torch.zeros(4, dtype=torch.bool)
    found = noise_model.agreement_log_likelihood(rho, rates, temperatures, trusted).exp()
    expected = [[[0.7, 0.82], [0.5, 0.5]], [[0.5, 0.5], [0.5, 0.5]], [[1, 1], [1, 1]], [[1, 1], [1, 1]]]
    assert found.tolist() == [[pytest.approx(row) for row in pair] for pair in expected]


def test_trusted_labels_have_the_lowest_rate_and_say_nothing_about_rates():
    """Belief 3/4 for rho = ln 3 at t = 1: 0.7 at e = 0.1, which the trusted pair also gives at e = 0.5."""
    rho, trusted, grid = torch.full((2,), math.log(3)), torch.tensor([True, False]), torch.tensor([0.1, 0.5])
    found = [noise_model.agreement_log_likelihood(rho, grid, torch.ones(1), trusted)]
    found.append(noise_model.witness_log_likelihood(rho, grid, torch.ones(1), trusted))
    for logs in found:
        assert logs.exp().tolist() == [[pytest.approx([0.7])] * 2, [pytest.approx([0.7]), pytest.approx([0.5])]]


def test_label_log_odds_by_hand():
    """rho = ln 3: belief 3/4 at t = 1 and 9/10 at t = 1/2. Nothing known: 1/2, for any rho; half of each: 0.825.

    The rest to 1 stands for a belief of 1/2: a probability of 0.4 for t = 1 gives 1/2 + 0.4 / 4 = 0.6.
    """
    rho, temperatures = torch.tensor([math.log(3), -math.log(3), float("nan")]), torch.tensor([1.0, 0.5])
    for posterior, belief in (([1.0, 0.0], 0.75), ([0.5, 0.5], 0.825), ([0.0, 0.0], 0.5), ([0.4, 0.0], 0.6)):
        found = noise_model.label_log_odds(rho, torch.tensor(posterior), temperatures)
        assert found.tolist() == pytest.approx([logit(belief), -logit(belief), 0], abs=1e-5)
    assert noise_model.label_log_odds(torch.tensor([50.0]), torch.tensor([1.0, 0.0]), temperatures).tolist() == [10.0]


def test_witness_likelihood_is_that_of_labels_flipped_at_the_rate():
    witness = torch.tensor([2.0, -0.5])
    found = noise_model.witness_log_likelihood(witness, RATES, GRID, torch.zeros(2, dtype=torch.bool))
    assert found.shape == (2, 2, 13)
    for pair, x in enumerate(witness.tolist()):
        for row, e in enumerate(RATES.tolist()):
            for column, a in enumerate(GRID.tolist()):
                agrees = (1 - e) * expit(a * x) + e * expit(-a * x)
                assert float(found[pair, row, column]) == pytest.approx(math.log(agrees), abs=1e-6)


def beta_prior(strength, overall):
    """Probabilities of RATES, from the density of a beta distribution."""
    a, b = strength * overall - 1, strength * (1 - overall) - 1
    return softmax([a * math.log(e) + b * math.log(1 - e) for e in RATES.tolist()])


def plain_fit(loglik):
    """The fit of the witness by loops over everything that is averaged out."""

    def slopes_around(mean):
        near = np.exp(-(((GRID.numpy() - mean) / noise_model.SLOPE_STD) ** 2) / 2)
        return (1 - noise_model.OUTLIERS) * near / near.sum() + noise_model.OUTLIERS / len(GRID)

    groups = loglik[1:] if len(loglik) > 1 else loglik
    of_rate, of_slope, overall_loglik = np.zeros(len(RATES)), np.zeros(len(GRID)), np.zeros(len(RATES))
    for place, overall in enumerate(RATES.tolist()):
        for strength in GROUP_PRIOR_PAIRS:
            for mean in GRID.tolist():
                rates, slopes = beta_prior(strength, overall), slopes_around(mean)
                weight = np.prod([rates @ np.exp(own) @ slopes for own in groups])
                overall_loglik[place] += weight
                of_rate += weight * rates
                of_slope += weight * slopes
    of_rate, of_slope, found = of_rate / of_rate.sum(), of_slope / of_slope.sum(), []
    for own in loglik:
        posterior = ((of_rate[:, None] * np.exp(own) * of_slope) / (of_rate @ np.exp(own) @ of_slope)).sum(axis=0)
        reached = [next(a for k, a in enumerate(GRID.tolist()) if posterior[: k + 1].sum() >= q) for q in QUANTILES]
        found.append(max(0.0, reached[0]) or min(0.0, reached[1]))
        if len(found) == 1 and min(posterior[GRID < 0].sum(), posterior[GRID > 0].sum()) >= noise_model.DOUBT:
            return np.zeros((len(loglik), len(RATES))), [0.0] * len(loglik)
    rate_loglik = np.log([np.exp(own) @ of_slope for own in loglik])
    return np.vstack([np.log(overall_loglik), rate_loglik[1:]]) if len(loglik) > 1 else rate_loglik, found


@pytest.mark.parametrize(("rows", "worth"), [(1, 1), (2, 1), (4, 1), (4, 0)])
def test_the_fit_of_a_witness_equals_a_plain_loop(rows, worth):
    """It is worth something where the likelihood rises with the slope."""
    loglik = 2 * torch.randn(rows, 2, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(rows))
    loglik += worth * torch.linspace(0, 20, 13)
    rates, slopes = noise_model.fit_witness(loglik, RATES.double(), GRID.double())
    expected = plain_fit(loglik.numpy())
    assert np.allclose(rates, expected[0], rtol=1e-5)
    assert slopes.tolist() == expected[1]
    assert slopes.any() == bool(worth)


def plain_noise_rates(windows, count: int) -> list[float]:
    """The overall rate and those of the groups, by loops over the grid, from windows of (rho, groups)."""
    prior = softmax([-0.5 * (math.log(t) / LOG_TEMPERATURE_STD) ** 2 for t in TEMPERATURES])
    overall_loglik, group_loglik = [0.0] * len(NOISE_RATES), np.zeros((count, len(NOISE_RATES)))

    def by_temperature(e, pairs):
        return [sum(math.log(e + (1 - 2 * e) * expit(r / t)) for r in pairs) for t in TEMPERATURES]

    for rho, groups in windows:
        own = [np.array(by_temperature(e, rho)) for e in NOISE_RATES]
        posterior = softmax(np.array(own) + np.log(prior) + np.array(overall_loglik)[:, None]).sum(axis=0)
        overall_loglik = [k + logsumexp(logs, b=prior) for k, logs in zip(overall_loglik, own, strict=True)]
        for group in range(count):
            pairs = [value for value, g in zip(rho, groups, strict=True) if g == group]
            group_loglik[group] += [logsumexp(by_temperature(e, pairs), b=posterior) for e in NOISE_RATES]
    overall = float(softmax(overall_loglik) @ np.array(NOISE_RATES))
    means, evidence = [], []
    for strength in GROUP_PRIOR_PAIRS:
        a, b = strength * overall - 1, strength * (1 - overall) - 1
        beta = softmax([a * math.log(e) + b * math.log(1 - e) for e in NOISE_RATES])
        means.append([float(softmax(np.log(beta) + logs) @ np.array(NOISE_RATES)) for logs in group_loglik])
        evidence.append(sum(logsumexp(logs, b=beta) for logs in group_loglik))
    return [overall, *(softmax(evidence) @ np.array(means))]


def test_noise_rates_equal_a_plain_loop():
    """The model is surer in the second of two windows, and one of the three groups is noisier."""
    generator = np.random.default_rng(3)
    grid = torch.tensor(NOISE_RATES, dtype=torch.float64), torch.tensor(TEMPERATURES, dtype=torch.float64)
    carried, windows = torch.zeros(4, len(NOISE_RATES), dtype=torch.float64), []
    for spread in (0.5, 2.0):
        groups = generator.integers(0, 3, 60)
        rho = generator.normal(spread, spread, 60) * np.where((groups == 2) & (generator.random(60) < 0.4), -1, 1)
        windows.append((rho.tolist(), groups.tolist()))
        loglik = noise_model.agreement_log_likelihood(torch.tensor(rho), *grid, torch.zeros(60, dtype=torch.bool))
        parts = [loglik, *(loglik[torch.tensor(groups == row)] for row in range(3))]
        window = torch.stack([part.sum(dim=0) for part in parts])
        of_rates, carried, posterior = noise_model.fit_noise_rates(carried, window, *grid)
    rates = of_rates @ grid[0]
    assert rates.tolist() == pytest.approx(plain_noise_rates(windows, 3), rel=1e-6)
    assert max(rates.tolist()) - min(rates.tolist()) > 0.05
