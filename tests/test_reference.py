"""What the reference's margins tell, against numbers by hand and plain sums."""

import math

import numpy as np
import pytest
import torch

from trl_capo.reference import belief, log_likelihood, posteriors, standardised_margin

MEANS = (-0.5, 0.0, 1.5)
RATES, GRID = torch.tensor([0.1, 0.3]), torch.tensor([-1.0, 0.0, 1.0])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_margins_are_standardised_by_lengths_and_outliers_are_held_back():
    """sinh(1) in units of the root of 4, 9 and 1 tokens; a thousandfold margin is not a thousandfold word."""
    margin = math.sinh(1) * torch.tensor([2.0, -3.0, 1000.0])
    found = standardised_margin(margin, torch.tensor([4, 9, 1]))
    assert found.tolist() == pytest.approx([1.0, -1.0, math.asinh(1000 * math.sinh(1))], rel=1e-6)


@pytest.mark.parametrize("margin", [math.nan, math.inf, -math.inf])
def test_margins_that_are_not_finite_say_nothing(margin):
    assert standardised_margin(torch.tensor([margin]), torch.tensor([5])).tolist() == [0.0]


def test_no_tokens_are_no_division_by_zero():
    assert standardised_margin(torch.tensor([0.0]), torch.tensor([0])).tolist() == [0.0]


def test_the_likelihood_is_that_of_labels_flipped_at_the_rate():
    margin, evidence = torch.tensor([2.0, -0.5]), torch.tensor([0.0, 1.0])
    found = log_likelihood(margin, evidence, RATES, GRID)
    assert found.shape == (2, 2, 3)
    for pair, (x, z) in enumerate(zip(margin.tolist(), evidence.tolist(), strict=True)):
        for row, e in enumerate(RATES.tolist()):
            for column, a in enumerate(GRID.tolist()):
                agrees = (1 - e) * sigmoid(z + a * x) + e * sigmoid(-z - a * x)
                assert float(found[pair, row, column]) == pytest.approx(math.log(agrees), abs=1e-6)


def plain_posteriors(sums, rates):
    """The same by loops: a normal prior about every mean, which the groups (all pairs, if there are none) weigh; the
    last row is of no pairs."""
    nearest = [int(np.abs(RATES.numpy() - rate).argmin()) for rate in rates.tolist()]
    found, weights = [], []
    for mean in MEANS:
        prior = np.exp(-((GRID.numpy() - mean) ** 2) / 2)
        prior = prior / prior.sum()
        joint = np.array([prior * np.exp(sums[row, place].numpy()) for row, place in enumerate(nearest)])
        rows = joint[1:] if len(joint) > 1 else joint
        weights.append(np.exp(-(mean**2) / 2) * np.prod(rows.sum(axis=1)))
        found.append(np.vstack([joint / joint.sum(axis=1, keepdims=True), prior]))
    return np.average(found, axis=0, weights=weights)


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_posteriors_are_those_of_a_plain_sum(rows):
    sums = torch.randn(rows, 2, 3, generator=torch.Generator().manual_seed(rows))
    rates = torch.tensor([0.05, 0.29, 0.21, 0.12][:rows])
    found = posteriors(sums, rates, RATES, GRID, torch.tensor(MEANS))
    np.testing.assert_allclose(found.numpy(), plain_posteriors(sums, rates), rtol=1e-5)
    assert found.sum(dim=1).tolist() == pytest.approx([1.0] * (rows + 1))


def test_belief_averages_over_the_slopes():
    """z = 1, x = 2, slopes -1, 0, 1 with 1/4, 1/4, 1/2."""
    found = belief(torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([[0.25, 0.25, 0.5]]), GRID)
    mean = 0.25 * sigmoid(-1) + 0.25 * sigmoid(1) + 0.5 * sigmoid(3)
    assert float(found) == pytest.approx(math.log(mean / (1 - mean)), rel=1e-5)


def test_without_a_margin_the_belief_is_the_evidence():
    z = torch.tensor([-4.0, 0.0, 2.5])
    posterior = torch.tensor([[0.2, 0.3, 0.5]]).expand(3, -1)
    assert belief(torch.zeros(3), z, posterior, GRID).tolist() == pytest.approx(z.tolist(), abs=1e-4)


def test_beliefs_stay_finite():
    found = belief(torch.tensor([50.0, -50.0]), torch.zeros(2), torch.tensor([[0.0, 0.0, 1.0]] * 2), GRID)
    assert found.tolist() == pytest.approx([math.log((1 - 1e-5) / 1e-5), -math.log((1 - 1e-5) / 1e-5)], rel=1e-2)
