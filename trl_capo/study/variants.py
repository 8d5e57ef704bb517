"""Variants of CAPO that were tried on the way to its defaults: a method `capo_variant`, to measure them again.

What was found is in docs/study/README.md; none of it is an option of CAPOConfig. Fixed rates and other temperatures
need no variant: they are options of `capo`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trl_capo.agreement import evidence
from trl_capo.losses import confidence_scale

OWN = {
    **dict.fromkeys(("scale_floor", "running_mean", "length_normalised", "calibrated", "one_rate"), 0.0),
    "first_sight": 1.0,
}
"""The options as in CAPO, the last one on and the others off: 1 is on and 0 off, but for the floor's value.

- scale_floor: the least scale, so that a pair that was given up can come back.
- running_mean: confidence in the mean of the pair's relative rewards so far, of all epochs.
- length_normalised: confidence in the difference of the rewards per token, times the pair's mean length.
- calibrated: the belief p is the mean over the temperatures that the label-agreement curve was fitted with (eq. 6) in
  the last finished block of pairs, instead of sigmoid(rho / tau).
- one_rate: one estimated noise rate, and one opinion of the reference, for all languages.
- first_sight: what the model thought of a pair at first sight tells of its label (docs/method.md, eq. 7).
"""


def per_token(chosen: Tensor, rejected: Tensor, lengths: Tensor) -> Tensor:
    """(B,) relative rewards as they would be if both answers had the pair's mean length.

    Args:
        chosen, rejected: (B,) rewards.
        lengths: (2B,) tokens of the completions, `[chosen; rejected]`.
    """
    of_chosen, of_rejected = lengths.clamp(min=1).chunk(2)
    return (chosen / of_chosen - rejected / of_rejected) * (of_chosen + of_rejected) / 2


def mean_so_far(rho: Tensor, pairs: Tensor, state: dict[str, Tensor]) -> Tensor:
    """(B,) means of the relative rewards of these pairs so far, these included; `state` keeps sums and counts."""
    kept = state.get("sums", rho.new_zeros(0, 2))
    missing = int(pairs.max()) + 1 - len(kept)
    if missing > 0:
        kept = torch.cat([kept, kept.new_zeros(missing, 2)])
    state["sums"] = kept.index_add(0, pairs, torch.stack([rho.detach(), torch.ones_like(rho)], dim=1))
    sums, counts = state["sums"][pairs].unbind(dim=1)
    return sums / counts


def variant_loss(
    batch: Any, *, scale_floor: float, running_mean: float, length_normalised: float, calibrated: float, **_: float
) -> Tensor:
    """Scalar loss of a `trl_capo.study.methods.Batch`, whose rates follow the other options already."""
    belief = batch.rho.detach().float()
    if length_normalised:
        belief = per_token(*batch.rewards, batch.completion_mask.sum(dim=1)).detach()
    if running_mean:
        belief = mean_so_far(belief, batch.pairs, batch.state)
    rates, told = batch.rates
    if calibrated:  # log-odds of the belief, in the place of rho / tau
        belief = batch.temperature * evidence(belief, *batch.calibration)
    scale = told * confidence_scale(belief, noise_rate=rates, temperature=batch.temperature)
    return (scale.clamp(min=scale_floor) * -F.logsigmoid(batch.rho)).mean()
