"""Losses of other noise-robust methods that TRL 1.16 does not have, as pure functions, to compare CAPO with.

Notation as in `trl_capo.losses`: rho is the relative reward, beta times the difference of log-ratios, (B,). Those that
reduce over the batch depend on what shares it, so they are compared without gradient accumulation.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

BETA_DPO_MEMORY = 0.9
"""Weight of the past in beta-DPO's running margin (its authors' default)."""

BETA_DPO_LEAST = 1e-3
"""Least beta of beta-DPO (its authors' code): a batch far below the running margin would turn it negative."""


def cdpo_losses(rho: Tensor, *, label_smoothing: float) -> Tensor:
    """(B,) losses of conservative DPO (Mitchell 2023, "A note on DPO with noisy preferences", eq. 3).

    `-(1-eps) log sigmoid(rho) - eps log sigmoid(-rho)`: cross-entropy against labels that are right with probability
    1 - eps. eps = `label_smoothing` in [0, 0.5]; 0 is DPO.
    """
    if not 0.0 <= label_smoothing <= 0.5:
        raise ValueError(f"label_smoothing={label_smoothing} must lie in [0, 0.5]: it is a share of flipped labels")
    return -(1.0 - label_smoothing) * F.logsigmoid(rho) - label_smoothing * F.logsigmoid(-rho)


def dr_dpo_loss(rho: Tensor, *, b: float) -> Tensor:
    """Scalar loss of Dr. DPO (Wu et al. 2024, arXiv 2407.07880): `-b log mean_i exp(-l_i / b)`.

    l_i is DPO's pair loss. A large b is DPO's mean, a small b the batch's least loss. The paper's default is 1.
    """
    if not 0 < b < math.inf:
        raise ValueError(f"b={b} must be positive and finite: pair losses are divided by it")
    return -b * (torch.logsumexp(F.logsigmoid(rho) / b, dim=0) - math.log(len(rho)))


def beta_dpo_losses(rho: Tensor, *, beta: float, alpha: float, running_margin: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) losses of beta-DPO with its batch-level beta (Wu et al. 2024, arXiv 2407.08639).

    beta_batch = (1 + alpha (mean margin of the batch - running margin)) beta, at least BETA_DPO_LEAST and without
    gradient; margins are differences of log-ratios in nats. The running margin takes in the batch before it is used,
    as in the authors' code. Its filter of pairs is left out: it draws at random which pairs of a batch count.

    Args:
        rho: (B,) relative rewards at `beta`.
        beta: positive; units of reward per nat.
        alpha: how far beta follows the batch; 0 is DPO, 0.6 the paper's default.
        running_margin: scalar, in nats; 0 at the start.

    Returns:
        The losses, and the new running margin.
    """
    if not (beta > 0 and alpha >= 0):
        raise ValueError(f"beta={beta} must be positive and alpha={alpha} not negative")
    margins = rho.detach() / beta
    running_margin = BETA_DPO_MEMORY * running_margin + (1.0 - BETA_DPO_MEMORY) * margins.mean()
    factor = (1.0 + alpha * (margins.mean() - running_margin)).clamp(min=BETA_DPO_LEAST / beta)
    return -F.logsigmoid(factor * rho), running_margin


def wpo_weights(token_log_probs: Tensor, log_sum_sq_probs: Tensor, completion_mask: Tensor) -> Tensor:
    """(B,) weights of the pairs in WPO (Zhou et al. 2024, arXiv 2406.11827, eq. 2), before its authors' clamp at 1.

    A completion's weight is the geometric mean over its tokens of p(token) / sum_v p(v)^2; a pair's is the product of
    its two completions'.

    Args:
        token_log_probs, log_sum_sq_probs: (2B, T), zero outside the completions; rows are `[chosen; rejected]`.
        completion_mask: (2B, T), 1 on the completion's tokens.
    """
    lengths = completion_mask.sum(dim=1).clamp(min=1)
    aligned = ((token_log_probs - log_sum_sq_probs) * completion_mask).sum(dim=1) / lengths
    chosen, rejected = aligned.chunk(2)
    return torch.exp(chosen + rejected)
