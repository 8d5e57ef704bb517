"""How often labels agree with a model, by its relative reward: the curve that tells noisy labels from hard pairs.

If a share e of the labels is flipped, and the model's belief sigmoid(rho / tau) in its own ranking is calibrated, a
pair's label agrees with the model with probability e + (1 - 2e) sigmoid(rho / tau) (docs/method.md, eq. 6). On pairs
that the model has not learned from yet, maximum likelihood for this curve finds both e and tau: noise shows as labels
that disagree however sure the model is, hard pairs as disagreement only where it is unsure.

Everything is a sum over pairs of log-likelihoods on a fixed grid, so processes, micro-batches and steps simply add up.
Pure functions of tensors; (E,) are the noise rates and (T,) the temperatures of the grid, (1 + G, ...) stands for all
pairs and then every group.
"""

import torch
from torch import Tensor

NOISE_RATES = (0.005, *(0.02 * step for step in range(1, 26)))
"""The noise rates tried: at 0 one disagreement would be impossible, above 0.5 labels would mean their opposite."""

TEMPERATURES = tuple(1.35**step for step in range(8))
"""The temperatures tried, in units of reward: from 1, the Bradley-Terry model that DPO assumes, to 8."""

PRIOR_PAIRS = 40.0
"""Weight of the prior of the overall noise rate: of so many labels, a share `noise_rate_prior` seen to be wrong."""

GROUP_PRIOR_PAIRS = 40.0
"""Weight of the overall rate in a group's, likewise: groups with fewer pairs are drawn to it."""


def log_likelihood(rho: Tensor, noise_rates: Tensor, temperatures: Tensor) -> Tensor:
    """(B, E, T) log-likelihood of every pair's label: log(e + (1-2e) sigmoid(rho / tau)).

    Args:
        rho: (B,) relative rewards in units of reward, of pairs as the model sees them first. One that is not finite
            says nothing: 0 everywhere.
        noise_rates: (E,) in (0, 0.5].
        temperatures: (T,) positive.
    """
    known = rho.isfinite()
    belief = torch.sigmoid(torch.where(known, rho, 0.0)[:, None, None] / temperatures)
    rates = noise_rates[:, None]
    return torch.log(rates + (1.0 - 2.0 * rates) * belief) * known[:, None, None]


def fit(sums: Tensor, noise_rates: Tensor, temperatures: Tensor, *, rate_prior: float) -> tuple[Tensor, Tensor]:
    """Posterior mean noise rates of all pairs and of every group, and temperature of all pairs.

    The temperature is one for all groups, since the model is one, known as well as all pairs tell it. The prior of the
    overall rate is `rate_prior` with the weight PRIOR_PAIRS, that of a group's rate is the overall one with the weight
    GROUP_PRIOR_PAIRS, and that of log tau is a standard normal distribution.

    Args:
        sums: (1 + G, E, T) sums of log-likelihoods over all pairs, and over each group's.
        noise_rates, temperatures: (E,), (T,), the grid.
        rate_prior: expected overall rate, in (0, 0.5].

    Returns:
        (1 + G,) noise rates, and the scalar temperature (its geometric mean).
    """
    log_temperatures = torch.log(temperatures)
    weights = sums[0] + _rate_prior(noise_rates, rate_prior, PRIOR_PAIRS)[:, None] - 0.5 * log_temperatures**2
    shares = torch.softmax(weights.flatten(), dim=0).view_as(weights)
    overall = (shares.sum(dim=1) * noise_rates).sum()
    of_temperature = shares.sum(dim=0)
    by_rate = torch.logsumexp(sums[1:] + torch.log(of_temperature), dim=2)
    by_rate = by_rate + _rate_prior(noise_rates, overall, GROUP_PRIOR_PAIRS)
    groups = (torch.softmax(by_rate, dim=1) * noise_rates).sum(dim=1)
    return torch.cat([overall[None], groups]), torch.exp((of_temperature * log_temperatures).sum())


def _rate_prior(noise_rates: Tensor, mean: Tensor | float, pairs: float) -> Tensor:
    """(E,) log-density, up to a constant, of having seen `pairs` labels, a share `mean` of them wrong."""
    return pairs * (mean * torch.log(noise_rates) + (1.0 - mean) * torch.log1p(-noise_rates))
