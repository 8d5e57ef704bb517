"""The likelihoods of the noise rates and the fit of the reference's slopes, by hand and against a plain loop."""

import math

import numpy as np
import pytest
import torch

from trl_capo.core.noise_model import (
    MEAN_SLOPES,
    agreement_log_likelihood,
    fit_slopes,
    label_log_odds,
    margin_log_likelihood,
    margin_log_odds,
    standardised_margin,
)

RATES, GRID = torch.tensor([0.1, 0.3]), torch.tensor([-1.0, 0.0, 1.0])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_agreement_by_hand():
    """rho = ln 3, tau = 1: belief 3/4, so e = 0.1 gives 0.1 + 0.8 * 0.75 = 0.7; tau = ln 3 / ln 9: 0.9, so 0.82.

    e = 0.5 gives 0.5 for any rho; rho = 0 gives 0.5 for any e; a rho that is not finite gives log 1.
    """
    rho = torch.tensor([math.log(3), 0.0, float("nan"), float("inf")])
    found = agreement_log_likelihood(rho, torch.tensor([0.1, 0.5]), torch.tensor([1.0, 0.5])).exp()
    expected = [[[0.7, 0.82], [0.5, 0.5]], [[0.5, 0.5], [0.5, 0.5]], [[1, 1], [1, 1]], [[1, 1], [1, 1]]]
    assert found.tolist() == [[pytest.approx(row) for row in pair] for pair in expected]


def test_label_log_odds_by_hand():
    """rho = ln 3: belief 3/4 at t = 1 and 9/10 at t = 1/2. Nothing known: 1/2, for any rho; half of each: 0.825.

    The rest to 1 stands for a belief of 1/2: a probability of 0.4 for t = 1 gives 1/2 + 0.4 / 4 = 0.6.
    """
    rho, temperatures = torch.tensor([math.log(3), -math.log(3), float("nan")]), torch.tensor([1.0, 0.5])
    for posterior, belief in (([1.0, 0.0], 0.75), ([0.5, 0.5], 0.825), ([0.0, 0.0], 0.5), ([0.4, 0.0], 0.6)):
        found = label_log_odds(rho, torch.tensor(posterior), temperatures)
        assert found.tolist() == pytest.approx([logit(belief), -logit(belief), 0], abs=1e-5)
    assert label_log_odds(torch.tensor([50.0]), torch.tensor([1.0, 0.0]), temperatures).tolist() == [10.0]


def test_margins_are_standardised_by_length_and_outliers_are_compressed():
    """sinh(1) times the root of 4, 9 and 1 tokens; a margin that is a thousand times larger is not so afterwards."""
    margin = math.sinh(1) * torch.tensor([2.0, -3.0, 1000.0, 0.0, math.nan, math.inf])
    found = standardised_margin(margin, torch.tensor([4, 9, 1, 0, 5, 5]))
    assert found.tolist() == pytest.approx([1.0, -1.0, math.asinh(1000 * math.sinh(1)), 0.0, 0.0, 0.0], rel=1e-6)


def test_margin_likelihood_is_that_of_labels_flipped_at_the_rate():
    margin, log_odds = torch.tensor([2.0, -0.5]), torch.tensor([0.0, 1.0])
    found = margin_log_likelihood(margin, log_odds, RATES, GRID)
    assert found.shape == (2, 2, 3)
    for pair, (x, z) in enumerate(zip(margin.tolist(), log_odds.tolist(), strict=True)):
        for row, e in enumerate(RATES.tolist()):
            for column, a in enumerate(GRID.tolist()):
                agrees = (1 - e) * sigmoid(z + a * x) + e * sigmoid(-z - a * x)
                assert float(found[pair, row, column]) == pytest.approx(math.log(agrees), abs=1e-6)


def plain_slope_posteriors(loglik, rates):
    """The same by loops: a normal prior around each mean slope, which the groups weigh (all pairs without groups)."""
    nearest = [int(np.abs(RATES.numpy() - rate).argmin()) for rate in rates.tolist()]
    posteriors, weights = [], []
    for mean in MEAN_SLOPES:
        prior = np.exp(-((GRID.numpy() - mean) ** 2) / 2)
        joint = np.array([prior / prior.sum() * np.exp(loglik[row, e].numpy()) for row, e in enumerate(nearest)])
        groups = joint[1:] if len(joint) > 1 else joint
        weights.append(np.exp(-(mean**2) / 2) * np.prod(groups.sum(axis=1)))
        posteriors.append(joint / joint.sum(axis=1, keepdims=True))
    return np.average(posteriors, axis=0, weights=weights)


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_slope_posteriors_equal_a_plain_loop(rows):
    loglik = torch.randn(rows, 2, 3, generator=torch.Generator().manual_seed(rows))
    rates = torch.tensor([0.05, 0.29, 0.21, 0.12][:rows])
    found = fit_slopes(loglik, rates, RATES, GRID)
    np.testing.assert_allclose(found.numpy(), plain_slope_posteriors(loglik, rates), rtol=1e-5)


def test_log_odds_average_over_the_slopes():
    """z = 1, x = 2, slopes -1, 0, 1 with 1/4, 1/4, 1/2."""
    found = margin_log_odds(torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([[0.25, 0.25, 0.5]]), GRID)
    assert float(found) == pytest.approx(logit(0.25 * sigmoid(-1) + 0.25 * sigmoid(1) + 0.5 * sigmoid(3)), rel=1e-5)
