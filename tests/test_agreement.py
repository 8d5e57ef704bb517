"""The fit of noise rates, against plain NumPy loops and by hand."""

import math

import numpy as np
import pytest
import torch

from trl_capo.agreement import (
    GROUP_PRIOR_PAIRS,
    NOISE_RATES,
    TEMPERATURE_SPREAD,
    TEMPERATURES,
    evidence,
    fit,
    log_likelihood,
)

RATES, HEAT = torch.tensor(NOISE_RATES), torch.tensor(TEMPERATURES)


def test_log_likelihood_by_hand():
    """rho = ln 3, tau = 1: belief 3/4, so e = 0.1 gives 0.1 + 0.8 * 0.75 = 0.7; tau = ln 3 / ln 9: 0.9, so 0.82.

    e = 0.5 gives 0.5 whatever rho; rho = 0 gives 0.5 whatever e; a rho that is not finite says nothing: log 1.
    """
    rho = torch.tensor([math.log(3), 0.0, float("nan"), float("inf")])
    found = log_likelihood(rho, torch.tensor([0.1, 0.5]), torch.tensor([1.0, 0.5])).exp()
    expected = [[[0.7, 0.82], [0.5, 0.5]], [[0.5, 0.5], [0.5, 0.5]], [[1, 1], [1, 1]], [[1, 1], [1, 1]]]
    assert found.tolist() == [[pytest.approx(row) for row in pair] for pair in expected]


def normalised(logs):
    weights = np.exp(np.array(logs) - np.max(logs))
    return weights / weights.sum()


def log_mean_exp(logs, weights):
    return math.log(sum(math.exp(log) * weight for log, weight in zip(logs, weights, strict=True)))


def posterior_means(blocks, count):
    """By plain loops over the grid: the overall rate and the groups', of blocks of (rho, groups)."""
    of_temperature = normalised([-0.5 * (math.log(t) / TEMPERATURE_SPREAD) ** 2 for t in TEMPERATURES])
    known, known_of_group = [0.0] * len(NOISE_RATES), [[0.0] * len(NOISE_RATES) for _ in range(count)]
    for rho, groups in blocks:

        def likelihoods(e, pairs):
            return [sum(math.log(e + (1 - 2 * e) / (1 + math.exp(-r / t))) for r in pairs) for t in TEMPERATURES]

        logs = [
            [before + log + math.log(prior) for log, prior in zip(likelihoods(e, rho), of_temperature, strict=True)]
            for e, before in zip(NOISE_RATES, known, strict=True)
        ]
        of_block = normalised(logs).sum(axis=0)
        known = [
            k + log_mean_exp(likelihoods(e, rho), of_temperature) for e, k in zip(NOISE_RATES, known, strict=True)
        ]
        for group, before in enumerate(known_of_group):
            own = [value for value, g in zip(rho, groups, strict=True) if g == group]
            for row, e in enumerate(NOISE_RATES):
                before[row] += log_mean_exp(likelihoods(e, own), of_block)
    overall = float(normalised(known) @ np.array(NOISE_RATES))
    means, evidence = [], []
    for pairs in GROUP_PRIOR_PAIRS:
        a, b = pairs * overall - 1, pairs * (1 - overall) - 1
        prior = normalised([a * math.log(e) + b * math.log(1 - e) for e in NOISE_RATES])
        posteriors = [normalised(np.log(prior) + np.array(logs)) for logs in known_of_group]
        means.append([float(posterior @ np.array(NOISE_RATES)) for posterior in posteriors])
        evidence.append(sum(log_mean_exp(logs, prior) for logs in known_of_group))
    return [overall, *(normalised(evidence) @ np.array(means))]


def test_fit_equals_a_plain_loop():
    """Two blocks, in the second of which the model is surer of itself, and three groups, one of them noisier."""
    generator = np.random.default_rng(3)
    blocks = []
    for spread in (0.5, 2.0):
        groups = generator.integers(0, 3, 60)
        rho = generator.normal(spread, spread, 60) * np.where((groups == 2) & (generator.random(60) < 0.4), -1, 1)
        blocks.append((rho.tolist(), groups.tolist()))
    past = torch.zeros(4, len(NOISE_RATES), dtype=torch.float64)
    for rho, groups in blocks:
        likelihood = log_likelihood(torch.tensor(rho, dtype=torch.float64), RATES.double(), HEAT.double())
        member = torch.tensor(groups) == torch.arange(3)[:, None]
        block = torch.stack([likelihood.sum(dim=0), *(likelihood[row].sum(dim=0) for row in member)])
        rates, past, of_temperature = fit(past, block, RATES.double(), HEAT.double())
    assert rates.tolist() == pytest.approx(posterior_means(blocks, 3), rel=1e-6)
    assert max(rates.tolist()) - min(rates.tolist()) > 0.05
    assert of_temperature.sum() == pytest.approx(1)


def test_evidence_by_hand():
    """rho = ln 3: belief 3/4 at t = 1 and 9/10 at t = 1/2. Nothing known: 1/2, whatever rho; half of each: 0.825.

    The rest to 1 stands for a belief of 1/2: a share of 0.4 at t = 1 gives 1/2 + 0.4 / 4 = 0.6.
    """
    rho, heat = torch.tensor([math.log(3), -math.log(3), float("nan")]), torch.tensor([1.0, 0.5])
    for shares, belief in (([1.0, 0.0], 0.75), ([0.5, 0.5], 0.825), ([0.0, 0.0], 0.5), ([0.4, 0.0], 0.6)):
        odds = math.log(belief / (1 - belief))
        assert evidence(rho, torch.tensor(shares), heat).tolist() == pytest.approx([odds, -odds, 0], abs=1e-5)
    assert evidence(torch.tensor([50.0]), torch.tensor([1.0, 0.0]), heat).tolist() == [10.0]
