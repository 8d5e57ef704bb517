"""How often labels agree with a model, by its relative reward: the curve that tells noisy labels from hard pairs.

If a share e of the labels is flipped, and the model's belief sigmoid(rho / t) in its own ranking is calibrated, a
pair's label agrees with the model with probability e + (1 - 2e) sigmoid(rho / t) (docs/method.md, eq. 6). On pairs
that the model has not learned from yet, the likelihood of this curve tells e, whatever t is: noise shows as labels
that disagree however sure the model is, hard pairs as disagreement only where it is unsure.

How sure the model is changes as it learns, so t is an unknown of its own for every block of pairs, and averaged out.
Everything is a sum over pairs of log-likelihoods on a fixed grid, so processes, micro-batches and steps simply add up.
Pure functions of tensors; (E,) are the noise rates and (T,) the temperatures of the grid, (1 + G, ...) stands for all
pairs and then every group.
"""

import torch
from torch import Tensor

NOISE_RATES = (0.005, *(0.02 * step for step in range(1, 26)))
"""The noise rates tried: at 0 one disagreement would be impossible, above 0.5 labels would mean their opposite."""

TEMPERATURES = tuple(1.35**step for step in range(-12, 8))
"""The temperatures tried, in units of reward, from 0.03 to 8: how sure of itself the model turns out to be."""

TEMPERATURE_SPREAD = 2.0
"""Standard deviation of log t: a model may be seven times surer, or less sure, of itself than Bradley-Terry says."""

GROUP_PRIOR_PAIRS = (10.0, 30.0, 100.0, 300.0)
"""Weights of the overall rate in a group's, in pairs: how alike the groups are is not known beforehand either."""

MOST_EVIDENCE = 10.0
"""Bound of the log-odds that one pair's relative reward gives."""


def label_log_likelihood(belief: Tensor, noise_rates: Tensor) -> Tensor:
    """(B, E, K) log P(label agrees) = log(e + (1-2e) p).

    Args:
        belief: (B, K) probabilities p that the labels are right, were none flipped.
        noise_rates: (E,) in (0, 0.5].
    """
    rates = noise_rates[:, None]
    return torch.log(rates + (1.0 - 2.0 * rates) * belief[:, None])


def log_likelihood(rho: Tensor, noise_rates: Tensor, temperatures: Tensor) -> Tensor:
    """(B, E, T) log-likelihood of every pair's label: log(e + (1-2e) sigmoid(rho / t)).

    Args:
        rho: (B,) relative rewards in units of reward, of pairs as the model sees them first. One that is not finite
            says nothing: 0 everywhere.
        noise_rates: (E,) in (0, 0.5].
        temperatures: (T,) positive.
    """
    known = rho.isfinite()
    belief = torch.sigmoid(torch.where(known, rho, 0.0)[:, None] / temperatures)
    return label_log_likelihood(belief, noise_rates) * known[:, None, None]


def evidence(rho: Tensor, shares: Tensor, temperatures: Tensor) -> Tensor:
    """(B,) log-odds of the model's belief that the labels are right, from what it thought before it learned from them.

    The belief is the mean of sigmoid(rho / t) over the temperatures t.

    Args:
        rho: (B,) relative rewards in units of reward, of pairs as the model sees them first. Not finite: says nothing.
        shares: (T,) how likely the temperatures are; the rest to 1 stands for an infinite one, a belief of 1/2.
        temperatures: (T,) positive.

    Returns:
        (B,) log-odds in [-MOST_EVIDENCE, MOST_EVIDENCE].
    """
    rho = torch.where(rho.isfinite(), rho, 0.0)
    belief = 0.5 + (torch.sigmoid(rho[:, None] / temperatures) - 0.5) @ shares
    return torch.logit(belief, eps=1e-6).clamp(-MOST_EVIDENCE, MOST_EVIDENCE)


def fit(past: Tensor, block: Tensor, noise_rates: Tensor, temperatures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Posterior mean noise rates of all pairs and of every group, and what to carry on to the next block.

    A block's temperature is one for all groups, since the model is one: the groups' likelihoods are means over what
    all pairs of the block tell of it. Priors: every overall rate is as likely as any other, log t is normal, and a
    group's rate has a beta distribution around the overall one, which weighs like one of GROUP_PRIOR_PAIRS: like many
    pairs as far as the groups turn out to be alike.

    Args:
        past: (1 + G, E) log-likelihoods of all pairs in finished blocks, and of each group's: what this function
            returned at their ends, 0 at first.
        block: (1 + G, E, T) sums of log-likelihoods over the pairs of the present block.
        noise_rates, temperatures: (E,), (T,), the grid.

    Returns:
        (1 + G,) rates, 0.25 while nothing is known; (1 + G, E), the `past` of the next block if this one ends; and
        (T,) how likely the temperatures are in this block.
    """
    prior = torch.log_softmax(-0.5 * (torch.log(temperatures) / TEMPERATURE_SPREAD) ** 2, dim=0)
    joint = past[0][:, None] + block[0] + prior
    shares = torch.softmax(joint.flatten(), dim=0).view_as(joint)
    overall = (shares.sum(dim=1) * noise_rates).sum()
    of_temperature = shares.sum(dim=0)
    in_block = torch.logsumexp(block[1:] + torch.log(of_temperature), dim=2)
    likelihoods = past + torch.cat([torch.logsumexp(block[:1] + prior, dim=2), in_block])
    by_group = _group_rates(likelihoods[1:], overall, noise_rates)
    return torch.cat([overall[None], by_group]), likelihoods, of_temperature


def _group_rates(likelihoods: Tensor, overall: Tensor, noise_rates: Tensor) -> Tensor:
    """(G,) posterior means under a mixture of beta priors around the overall rate, weighed by all groups."""
    weights = noise_rates.new_tensor(GROUP_PRIOR_PAIRS)[:, None]
    wrong, right = weights * overall - 1.0, weights * (1.0 - overall) - 1.0
    prior = torch.log_softmax(wrong * torch.log(noise_rates) + right * torch.log1p(-noise_rates), dim=1)
    joint = prior[:, None] + likelihoods  # (priors, G, E)
    of_prior = torch.softmax(torch.logsumexp(joint, dim=2).sum(dim=1), dim=0)
    return of_prior @ (torch.softmax(joint, dim=2) * noise_rates).sum(dim=2)
