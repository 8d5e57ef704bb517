"""How often labels agree with a model, by its relative reward: the curve that tells noisy labels from hard pairs.

If a share e of the labels is flipped, and the model's belief sigmoid(rho / tau) in its own ranking is calibrated, a
pair's label agrees with the model with probability e + (1 - 2e) sigmoid(rho / tau) (docs/method.md, eq. 6). On pairs
that the model has not learned from yet, the likelihood of this curve tells e, whatever tau is: noise shows as labels
that disagree however sure the model is, hard pairs as disagreement only where it is unsure.

Everything is a sum over pairs of log-likelihoods on a fixed grid, so processes, micro-batches and steps simply add up.
Pure functions of tensors; (E,) are the noise rates and (T,) the temperatures of the grid, (1 + G, ...) stands for all
pairs and then every group.
"""

import torch
from torch import Tensor

NOISE_RATES = (0.005, *(0.02 * step for step in range(1, 26)))
"""The noise rates tried: at 0 one disagreement would be impossible, above 0.5 labels would mean their opposite."""

TEMPERATURES = tuple(1.35**step for step in range(-8, 8))
"""The temperatures tried, in units of reward, from 0.09 to 8: how sure of itself the model turns out to be."""

GROUP_PRIOR_PAIRS = 10.0
"""Weight of the overall rate in a group's, in pairs: groups with few pairs are drawn to it."""


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


def fit(sums: Tensor, noise_rates: Tensor, temperatures: Tensor) -> Tensor:
    """(1 + G,) posterior mean noise rates of all pairs and of every group; 0.25 while nothing is known.

    The temperature is unknown too, and one for all groups, since the model is one: the rates are means over what all
    pairs tell of it. Priors: every overall rate is as likely as any other, log tau has a standard normal distribution,
    and a group's rate a beta distribution around the overall one that weighs like GROUP_PRIOR_PAIRS.

    Args:
        sums: (1 + G, E, T) sums of log-likelihoods over all pairs, and over each group's.
        noise_rates, temperatures: (E,), (T,), the grid.
    """
    shares = torch.softmax((sums[0] - 0.5 * torch.log(temperatures) ** 2).flatten(), dim=0).view_as(sums[0])
    overall = (shares.sum(dim=1) * noise_rates).sum()
    right, wrong = (GROUP_PRIOR_PAIRS * share - 1.0 for share in (1.0 - overall, overall))
    prior = wrong * torch.log(noise_rates) + right * torch.log1p(-noise_rates)
    by_rate = torch.logsumexp(sums[1:] + torch.log(shares.sum(dim=0)), dim=2) + prior
    return torch.cat([overall[None], (torch.softmax(by_rate, dim=1) * noise_rates).sum(dim=1)])
