"""How often labels agree with a model, by its relative reward: the curve that tells noisy labels from hard pairs.

If a share e of the labels is flipped, and the model's belief sigmoid(rho / tau) in its own ranking is calibrated, a
pair's label agrees with the model with probability e + (1 - 2e) sigmoid(rho / tau) (docs/method.md, eq. 6). On pairs
that the model has not learned from yet, maximum likelihood for this curve finds both e and tau: noise shows as labels
that disagree however sure the model is, hard pairs as disagreement only where it is unsure.

Everything is a sum over pairs of log-likelihoods on a fixed grid, so processes, micro-batches and steps simply add up.
Pure functions of tensors; (E,) are the noise rates and (T,) the temperatures of the grid.
"""

import torch
from torch import Tensor

NOISE_RATES = (0.005, *(0.02 * step for step in range(1, 26)))
"""The noise rates tried: at 0 one disagreement would be impossible, above 0.5 labels would mean their opposite."""

TEMPERATURES = tuple(2.0 ** (step / 3) for step in range(-11, 10))
"""The temperatures tried, in units of reward: from 0.08 to 8."""

TEMPERATURE_SPREAD = 1.5
"""Standard deviation of the prior of log tau, whose centre is 1, the Bradley-Terry model that DPO assumes."""

PRIOR_PAIRS = 1.0
"""Weight of the prior of the overall noise rate, in pairs of which a share `noise_rate_prior` disagree for sure."""

GROUP_PRIOR_PAIRS = 40.0
"""Weight of the overall rate in a group's, likewise: groups with fewer pairs are drawn to it."""


def log_likelihood(rho: Tensor, noise_rates: Tensor, temperatures: Tensor) -> Tensor:
    """(B, E, T) log-likelihood of every pair's label: log(e + (1-2e) sigmoid(rho / tau)).

    Args:
        rho: (B,) relative rewards in units of reward, of pairs as the model sees them first.
        noise_rates: (E,) in (0, 0.5].
        temperatures: (T,) positive.

    A pair with a rho that is not finite says nothing: 0 everywhere.
    """
    known = rho.isfinite()
    belief = torch.sigmoid(torch.where(known, rho, 0.0)[:, None, None] / temperatures)
    rates = noise_rates[:, None]
    return torch.log(rates + (1.0 - 2.0 * rates) * belief) * known[:, None, None]


def prior(noise_rates: Tensor, mean: Tensor | float, pairs: float) -> Tensor:
    """(..., E) log-density, up to a constant, of having seen `pairs` labels, a share `mean` (...) of them wrong."""
    mean = torch.as_tensor(mean, device=noise_rates.device)[..., None]
    return pairs * (mean * torch.log(noise_rates) + (1.0 - mean) * torch.log1p(-noise_rates))


def temperature_prior(temperatures: Tensor) -> Tensor:
    """(T,) log-density, up to a constant: normal in log tau around tau = 1."""
    return -0.5 * (torch.log(temperatures) / TEMPERATURE_SPREAD) ** 2


def fit_temperature(surface: Tensor, noise_rates: Tensor, temperatures: Tensor, rate_prior: float) -> Tensor:
    """Scalar tau: the geometric posterior mean, given (E, T) sums of log-likelihoods."""
    weights = surface + prior(noise_rates, rate_prior, PRIOR_PAIRS)[:, None] + temperature_prior(temperatures)
    shares = torch.softmax(weights.flatten(), dim=0).view_as(weights).sum(dim=0)
    return torch.exp((shares * torch.log(temperatures)).sum())


def fit_noise_rates(sums: Tensor, noise_rates: Tensor, rate_prior: float) -> Tensor:
    """(1 + G,) posterior mean noise rates: of all pairs, then of every group, drawn to the overall one.

    Args:
        sums: (1 + G, E) sums of log-likelihoods over all pairs, then over each group's.
        noise_rates: (E,).
        rate_prior: mean of the prior of the overall rate.
    """
    overall = _mean(sums[0] + prior(noise_rates, rate_prior, PRIOR_PAIRS), noise_rates)
    groups = _mean(sums[1:] + prior(noise_rates, overall, GROUP_PRIOR_PAIRS), noise_rates)
    return torch.cat([overall[None], groups])


def _mean(log_weights: Tensor, values: Tensor) -> Tensor:
    return (torch.softmax(log_weights, dim=-1) * values).sum(dim=-1)
