"""The statistical model of label noise: the label-agreement curve and the witness as evidence.

A label agrees with the model with probability e + (1 - 2e) sigmoid(rho / t) if a share e of the labels is flipped
(docs/method.md, eq. 6), where t belongs to a window of pairs. A witness is a number x per pair, known before training,
that speaks for the label if it is positive; its slope a says how much it is worth in a group (eq. 8).

Log-likelihoods are sums over pairs on a fixed grid of (E,) noise rates, (T,) temperatures and (A,) slopes.
The rows of a (1 + G, ...) tensor stand for all pairs together and then for every group.
"""

import torch
from torch import Tensor

NOISE_RATES = (0.005, *(0.02 * step for step in range(1, 26)))  # grid; at 0 a disagreement would be impossible
TEMPERATURES = tuple(1.35**step for step in range(-12, 8))  # grid in units of reward, from 0.03 to 8
LOG_TEMPERATURE_STD = 2.0  # of the normal prior of log t
GROUP_PRIOR_PAIRS = (10.0, 30.0, 100.0, 300.0)  # strengths of a group's beta prior around the overall rate
SLOPES = tuple(0.25 * step for step in range(-12, 25))  # grid: log-odds per unit of the witness
SLOPE_STD, OUTLIERS = 0.5, 0.02  # of the groups' slopes around their mean; the share that may lie anywhere
PESSIMISM, DOUBT = 0.1, 1e-4  # quantile of a slope that is used; probability of the other sign that is too high
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
        (1 + G, E) posteriors of the rates, of mean 0.25 for all pairs while nothing is known; (1 + G, E), the
        `carried_loglik` of the next window if this one ends; and (T,) the posterior of this window's temperature.
    """
    prior = torch.log_softmax(-0.5 * (torch.log(temperatures) / LOG_TEMPERATURE_STD) ** 2, dim=0)
    joint = carried_loglik[0][:, None] + window_loglik[0] + prior
    posterior = torch.softmax(joint.flatten(), dim=0).view_as(joint)
    overall = posterior.sum(dim=1)
    temperature_posterior = posterior.sum(dim=0)
    of_groups = torch.logsumexp(window_loglik[1:] + torch.log(temperature_posterior), dim=2)
    loglik = carried_loglik + torch.cat([torch.logsumexp(window_loglik[:1] + prior, dim=2), of_groups])
    group_posteriors = _fit_group_rates(loglik[1:], (overall * noise_rates).sum(), noise_rates)
    return torch.cat([overall[None], group_posteriors]), loglik, temperature_posterior


def _group_prior(overall: Tensor, noise_rates: Tensor) -> Tensor:
    """Compute the log-priors of a group's rate around (O,) overall rates, for every strength, (strengths, O, E)."""
    strength, overall = noise_rates.new_tensor(GROUP_PRIOR_PAIRS)[:, None, None], overall[:, None]
    flipped, right = strength * overall - 1.0, strength * (1.0 - overall) - 1.0
    return torch.log_softmax(flipped * torch.log(noise_rates) + right * torch.log1p(-noise_rates), dim=2)


def _fit_group_rates(loglik: Tensor, overall: Tensor, noise_rates: Tensor) -> Tensor:
    """Compute (G, E) posteriors; the prior, a mixture of betas around the overall rate, is fitted to all groups."""
    joint = _group_prior(overall[None], noise_rates) + loglik  # (strengths, G, E)
    prior_posterior = torch.softmax(torch.logsumexp(joint, dim=2).sum(dim=1), dim=0)
    return torch.einsum("s,sge->ge", prior_posterior, torch.softmax(joint, dim=2))


def witness_log_likelihood(witness: Tensor, noise_rates: Tensor, slopes: Tensor, trusted: Tensor) -> Tensor:
    """Compute each label's log-likelihood log(e + (1-2e) sigmoid(a x)), (B, E, A), for (B,) x and trust (eq. 8)."""
    return _log_agreement(torch.sigmoid(witness[:, None] * slopes), noise_rates, trusted)


def fit_witness(loglik: Tensor, noise_rates: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Fit the noise rates and the witness's slopes together, from all pairs, before training.

    A group's rate has the prior of `fit_noise_rates`. Its slope is normal around a mean, except that it may be any
    with probability `OUTLIERS`. The overall rate and the mean slope are uniform on the grid and are averaged out.

    Args:
        loglik: (1 + G, E, A) sums of `witness_log_likelihood` over all pairs, and over every group.

    Returns:
        (1 + G, E) log-likelihoods of the rates, for `fit_noise_rates`, and (1 + G,) slopes: the quantile `PESSIMISM`
        of a slope's posterior on the side of 0, or 0 if its sign is in doubt. All are 0 if for all pairs together
        either sign has a probability of `DOUBT` or more: the witness may know nothing.
    """
    groups = loglik[1:] if len(loglik) > 1 else loglik
    near = torch.softmax(-0.5 * ((slopes - slopes[:, None]) / SLOPE_STD) ** 2, dim=1)
    slope_prior = (1.0 - OUTLIERS) * near + OUTLIERS / len(slopes)  # (A mean slopes, A)
    rate_prior = _group_prior(noise_rates, noise_rates)  # (strengths, E overall rates, E)
    of_rates = torch.logsumexp(torch.log(slope_prior)[:, None, None] + groups, dim=3)  # (A, G, E)
    evidence = torch.logsumexp(rate_prior[:, :, None, None] + of_rates, dim=4).sum(dim=3)  # (strengths, E, A)
    posterior = torch.softmax(evidence.flatten(), dim=0).view_as(evidence)
    slope_prior = torch.log(posterior.sum(dim=(0, 1)) @ slope_prior)  # (A,)
    rate_prior = torch.log(torch.einsum("so,soe->e", posterior.sum(dim=2), rate_prior.exp()))  # (E,)
    rate_loglik = torch.logsumexp(loglik + slope_prior, dim=2)
    if len(loglik) > 1:
        rate_loglik[0] = torch.logsumexp(evidence, dim=(0, 2))
    joint = torch.softmax((loglik + rate_prior[:, None] + slope_prior).flatten(1), dim=1).view_as(loglik)
    of_slopes = joint.sum(dim=1)
    known = torch.minimum(of_slopes[0, slopes < 0].sum(), of_slopes[0, slopes > 0].sum()) < DOUBT
    below = of_slopes.cumsum(dim=1)
    low, high = (slopes[(below < quantile).sum(dim=1)] for quantile in (PESSIMISM, 1.0 - PESSIMISM))
    return torch.where(known, rate_loglik, 0.0), torch.where(known, low.clamp(min=0.0) + high.clamp(max=0.0), 0.0)
