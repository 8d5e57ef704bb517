"""The statistical model of label noise: the label-agreement curve and the witness as evidence.

A label agrees with the model with probability e + (1 - 2e) sigmoid(rho / t) if a share e of the labels is flipped
(docs/method.md, eq. 6). On pairs that the model has not learned from yet, the likelihood of this curve identifies e:
flipped labels disagree however sure the model is; hard pairs disagree only where it is unsure. A model becomes surer
as it learns, so every window of pairs has a temperature t of its own, which is averaged out. A witness is a number x
per pair that speaks for the label if it is positive; its slope a says how much it is worth in a group (eq. 8).

Log-likelihoods are sums over pairs on a fixed grid of (E,) noise rates, (T,) temperatures and (A,) slopes.
The rows of a (1 + G, ...) tensor stand for all pairs together and then for every group.
"""

import torch
from torch import Tensor

NOISE_RATES = (0.005, *(0.02 * step for step in range(1, 26)))  # grid; at 0 a disagreement would be impossible
TEMPERATURES = tuple(1.35**step for step in range(-12, 8))  # grid in units of reward, from 0.03 to 8
LOG_TEMPERATURE_STD = 2.0  # of the normal prior of log t
GROUP_PRIOR_PAIRS = (10.0, 30.0, 100.0, 300.0)  # strengths of a group's beta prior around the overall rate
SLOPES = tuple(0.25 * step for step in range(-12, 13))  # grid: log-odds per unit of the witness
MEAN_SLOPES = tuple(0.25 * step for step in range(-8, 9))  # grid, with a standard normal prior
PESSIMISM = 0.1  # quantile of the slope's posterior that is used, counted from 0
MAX_LOG_ODDS = 10.0  # bound of the log-odds that a pair's first relative reward gives


def _log_agreement(belief: Tensor, noise_rates: Tensor, trusted: Tensor) -> Tensor:
    """Compute log(e + (1-2e) p), (B, E, K), for (B, K) beliefs p; e is the lowest of the grid for trusted labels."""
    rates = torch.where(trusted[:, None], noise_rates[0], noise_rates)[:, :, None]
    return torch.log(rates + (1.0 - 2.0 * rates) * belief[:, None])


def agreement_log_likelihood(rho: Tensor, noise_rates: Tensor, temperatures: Tensor, trusted: Tensor) -> Tensor:
    """Compute each label's log-likelihood log(e + (1-2e) sigmoid(rho / t)), (B, E, T) (eq. 6).

    Args:
        rho: (B,) relative rewards in units of reward, taken before the model learns from the pairs. A value that is
            not finite carries no information: its log-likelihood is 0.
        noise_rates, temperatures: (E,) in (0, 0.5], (T,) positive, the grid.
        trusted: (B,) whether the user has checked the label.
    """
    known = rho.isfinite()
    belief = torch.sigmoid(torch.where(known, rho, 0.0)[:, None] / temperatures)
    return _log_agreement(belief, noise_rates, trusted) * known[:, None, None]


def label_log_odds(rho: Tensor, temperature_posterior: Tensor, temperatures: Tensor) -> Tensor:
    """Compute the log-odds z of the mean of sigmoid(rho / t), (B,), from the model's first view of the pairs.

    Args:
        rho: (B,) relative rewards in units of reward; a value that is not finite gives 0.
        temperature_posterior: (T,) probabilities of the (T,) temperatures; the remainder to 1 stands for an infinite
            temperature, that is, for a belief of 1/2.
    """
    rho = torch.where(rho.isfinite(), rho, 0.0)
    belief = 0.5 + (torch.sigmoid(rho[:, None] / temperatures) - 0.5) @ temperature_posterior
    return torch.logit(belief, eps=1e-6).clamp(-MAX_LOG_ODDS, MAX_LOG_ODDS)


def fit_noise_rates(
    carried_loglik: Tensor, window_loglik: Tensor, noise_rates: Tensor, temperatures: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Fit the noise rates of all pairs and of every group.

    All groups share a window's temperature. Priors: the overall rate is uniform, log t is normal, and a group's rate
    has a beta distribution around the overall one.

    Args:
        carried_loglik: (1 + G, E) log-likelihoods of the finished windows, 0 at first.
        window_loglik: (1 + G, E, T) sums over the pairs of the current window.

    Returns:
        (1 + G,) posterior mean rates, 0.25 while nothing is known; (1 + G, E), the `carried_loglik` of the next window
        if this one ends; and (T,) the posterior of this window's temperature.
    """
    prior = torch.log_softmax(-0.5 * (torch.log(temperatures) / LOG_TEMPERATURE_STD) ** 2, dim=0)
    joint = carried_loglik[0][:, None] + window_loglik[0] + prior
    posterior = torch.softmax(joint.flatten(), dim=0).view_as(joint)
    overall = (posterior.sum(dim=1) * noise_rates).sum()
    temperature_posterior = posterior.sum(dim=0)
    of_groups = torch.logsumexp(window_loglik[1:] + torch.log(temperature_posterior), dim=2)
    loglik = carried_loglik + torch.cat([torch.logsumexp(window_loglik[:1] + prior, dim=2), of_groups])
    group_rates = _fit_group_rates(loglik[1:], overall, noise_rates)
    return torch.cat([overall[None], group_rates]), loglik, temperature_posterior


def _fit_group_rates(loglik: Tensor, overall: Tensor, noise_rates: Tensor) -> Tensor:
    """Compute (G,) posterior means; the prior, a mixture of betas around the overall rate, is fitted to all groups."""
    strength = noise_rates.new_tensor(GROUP_PRIOR_PAIRS)[:, None]
    flipped, right = strength * overall - 1.0, strength * (1.0 - overall) - 1.0
    prior = torch.log_softmax(flipped * torch.log(noise_rates) + right * torch.log1p(-noise_rates), dim=1)
    joint = prior[:, None] + loglik  # (priors, G, E)
    prior_posterior = torch.softmax(torch.logsumexp(joint, dim=2).sum(dim=1), dim=0)
    return prior_posterior @ (torch.softmax(joint, dim=2) * noise_rates).sum(dim=2)


def witness_log_likelihood(
    witness: Tensor, log_odds: Tensor, noise_rates: Tensor, slopes: Tensor, trusted: Tensor
) -> Tensor:
    """Compute each label's log-likelihood log(e + (1-2e) sigmoid(z + a x)), (B, E, A) (eq. 8).

    Args:
        witness: (B,) x.
        log_odds: (B,) z of `label_log_odds`, so that the slope measures what the witness knows beyond the policy.
        noise_rates, slopes: (E,), (A,), the grid.
        trusted: (B,) whether the user has checked the label.
    """
    return _log_agreement(torch.sigmoid(log_odds[:, None] + witness[:, None] * slopes), noise_rates, trusted)


def fit_slopes(loglik: Tensor, rates: Tensor, noise_rates: Tensor, slopes: Tensor) -> Tensor:
    """Fit the witness's slope for all pairs together and for every group, (1 + G,).

    The slopes of the groups are normal around their mean, which is learned from them, or from all pairs if there are
    no groups. The quantile `PESSIMISM` of a slope's posterior on the side of 0 is used, or 0 if its sign is in doubt.

    Args:
        loglik: (1 + G, E, A) sums of `witness_log_likelihood`.
        rates: (1 + G,) noise rates; the nearest rate of the grid is used.
    """
    mean_slopes = slopes.new_tensor(MEAN_SLOPES)  # (M,)
    nearest = (noise_rates - rates[:, None]).abs().argmin(dim=1)
    at_rate = loglik[torch.arange(len(rates), device=rates.device), nearest]
    prior = torch.log_softmax(-0.5 * (slopes - mean_slopes[:, None]) ** 2, dim=1)
    joint = prior[:, None] + at_rate  # (M, 1 + G, A)
    groups = joint[:, 1:] if len(rates) > 1 else joint
    mean_posterior = torch.softmax(torch.logsumexp(groups, dim=2).sum(dim=1) - 0.5 * mean_slopes**2, dim=0)
    below = torch.einsum("m,mra->ra", mean_posterior, torch.softmax(joint, dim=2)).cumsum(dim=1)
    low, high = (slopes[(below < quantile).sum(dim=1)] for quantile in (PESSIMISM, 1.0 - PESSIMISM))
    return low.clamp(min=0.0) + high.clamp(max=0.0)
