"""What the reference model's own ranking of a pair tells of its label, learned language by language.

A reference that knows a language gives the better answer more probability, and one that does not may do the opposite:
how much its margin says is a slope a, fitted to how often labels agree with it (docs/method.md, eq. 8). A group's
slope is presumed to lie about the mean of all groups', with a variance of 1, and that mean about 0: while its pairs
are few, or their labels noisy, a group is taken to be much like the others. The belief averages over all slopes that
the pairs leave possible, so that few pairs say little.

Everything is a sum over pairs of log-likelihoods on a fixed grid, as in agreement.py. Pure functions of tensors; (E,)
are the noise rates and (A,) the slopes of the grid, (R, ...) stands for all pairs and then every group.
"""

import torch
from torch import Tensor

from trl_capo.agreement import label_log_likelihood

SLOPES = tuple(0.25 * step for step in range(-12, 13))
"""The slopes tried: log-odds by standardised margin. Below 0 the reference prefers what the labels reject."""

MEAN_SLOPES = tuple(0.25 * step for step in range(-8, 9))
"""The means of the groups' slopes that are tried. The mean has a standard normal prior, and the slopes have a normal
one of variance 1 about it, both cut off at the ends of their grids. A slope of 1 is a reference that knows a language
fairly well."""

SURE = 1e-5
"""Bound of a belief, from 0 and from 1."""


def standardised_margin(margin: Tensor, tokens: Tensor) -> Tensor:
    """(B,) the reference's margins on a scale that neither lengths nor outliers stretch: asinh(margin / sqrt(tokens)).

    Args:
        margin: (B,) log pi_ref(chosen) - log pi_ref(rejected) in nats. One that is not finite says nothing: 0.
        tokens: (B,) of both answers together; a sum of so many terms grows with their square root.
    """
    margin = torch.where(margin.isfinite(), margin.float(), 0.0)
    return torch.asinh(margin / tokens.clamp(min=1).sqrt())


def log_likelihood(margin: Tensor, evidence: Tensor, noise_rates: Tensor, slopes: Tensor) -> Tensor:
    """(B, E, A) log-likelihood of every pair's label: log(e + (1-2e) sigmoid(z + a x)).

    Args:
        margin: (B,) x, standardised margins of the reference.
        evidence: (B,) z, log-odds by what the policy thinks of the pair before it has learned from it, so that the
            slopes tell what the reference knows beyond that.
        noise_rates: (E,) in (0, 0.5].
        slopes: (A,).
    """
    return label_log_likelihood(_by_slope(margin, evidence, slopes), noise_rates)


def posteriors(likelihoods: Tensor, rates: Tensor, noise_rates: Tensor, slopes: Tensor, means: Tensor) -> Tensor:
    """(R + 1, A) how likely every slope is for all pairs together, for every group, and for one that was not met yet.

    The mean is learned from the groups, or, where there are none, from all pairs as the only group.

    Args:
        likelihoods: (R, E, A) sums of log-likelihoods over the pairs of all, and of every group.
        rates: (R,) their noise rates, of which the nearest of the grid count.
        noise_rates, slopes: (E,), (A,), the grid.
        means: (M,) the means of the groups' slopes that are tried.
    """
    nearest = (noise_rates - rates[:, None]).abs().argmin(dim=1)
    own = likelihoods[torch.arange(len(rates), device=rates.device), nearest]
    prior = torch.log_softmax(-0.5 * (slopes - means[:, None]) ** 2, dim=1)
    joint = prior[:, None] + torch.cat([own, torch.zeros_like(own[:1])])  # (means, R + 1, A)
    groups = joint[:, 1:-1] if len(rates) > 1 else joint[:, :1]
    of_mean = torch.softmax(torch.logsumexp(groups, dim=2).sum(dim=1) - 0.5 * means**2, dim=0)
    return torch.einsum("m,mra->ra", of_mean, torch.softmax(joint, dim=2))


def belief(margin: Tensor, evidence: Tensor, posterior: Tensor, slopes: Tensor) -> Tensor:
    """(B,) log-odds that the labels are right, of the mean of sigmoid(z + a x) over the slopes a.

    Args:
        margin, evidence: as in `log_likelihood`.
        posterior: (B, A) how likely the slopes are in the pairs' groups.
        slopes: (A,).
    """
    known = torch.sigmoid(evidence)  # apart from the sum, whose rounding would tell something of every pair
    moved = (posterior * (_by_slope(margin, evidence, slopes) - known[:, None])).sum(dim=1)
    return torch.logit(known + moved, eps=SURE)


def _by_slope(margin: Tensor, evidence: Tensor, slopes: Tensor) -> Tensor:
    """(B, A) sigmoid(z + a x): the belief that the labels are right, for every slope."""
    return torch.sigmoid(evidence[:, None] + margin[:, None] * slopes)
