"""The methods that a study compares: options of `CAPOConfig` and, for some, a loss put in the place of DPO's.

What TRL has (DPO, IPO, hinge, robust DPO) is TRL's; the others' losses are `trl_capo.study.baselines` and `.variants`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trl_capo.study.baselines import beta_dpo_losses, cdpo_losses, dr_dpo_loss, wpo_weights
from trl_capo.study.variants import OWN, variant_loss


@dataclass
class Batch:
    """What a method's loss is computed from; `state` is empty at first and the method's own from step to step.

    `rates` are CAPO's noise rates and what the labels tell, `rewards` those of both answers, (B,) each; `pairs` (B,)
    pair numbers; `calibration` is `NoiseRateEstimate.calibration`, where rates are estimated.
    """

    rho: Tensor
    beta: float
    outputs: Any
    completion_mask: Tensor
    state: dict[str, Tensor]
    temperature: float = 1.0
    rates: tuple[Tensor | float, Tensor | float] = (0.0, 1.0)
    rewards: tuple[Tensor, Tensor] | None = None
    pairs: Tensor | None = None
    calibration: tuple[Tensor, Tensor] | None = None


def _wpo(batch: Batch) -> Tensor:
    weights = wpo_weights(batch.outputs.log_probs, batch.outputs.log_sum_sq_probs, batch.completion_mask).detach()
    return (weights.clamp(max=1.0) * -F.logsigmoid(batch.rho)).mean()  # TRL 1.16 leaves the authors' clamp out


def _cdpo(batch: Batch, smoothing: float) -> Tensor:
    return cdpo_losses(batch.rho, label_smoothing=smoothing).mean()


def _dr_dpo(batch: Batch, b: float) -> Tensor:
    return dr_dpo_loss(batch.rho, b=b)


def _beta_dpo(batch: Batch, alpha: float) -> Tensor:
    margin = batch.state.get("margin", torch.zeros((), device=batch.rho.device))
    losses, batch.state["margin"] = beta_dpo_losses(batch.rho, beta=batch.beta, alpha=alpha, running_margin=margin)
    return losses.mean()


@dataclass(frozen=True)
class Method:
    """Options of `CAPOConfig`; a loss that replaces DPO's in training, if any, and its own options' defaults."""

    config: dict[str, Any]
    loss: Callable[..., Tensor] | None = None
    own: dict[str, float] = field(default_factory=dict)


PLAIN = {"noise_rate": 0.0}
METHODS = {
    "capo": Method({}),
    "dpo": Method(PLAIN),
    "ipo": Method(PLAIN | {"loss_type": ["ipo"]}),
    "hinge": Method(PLAIN | {"loss_type": ["hinge"]}),
    "rdpo": Method(PLAIN | {"loss_type": ["robust"], "label_smoothing": 0.1}),
    "wpo": Method(PLAIN | {"use_weighting": True}, _wpo),
    "cdpo": Method(PLAIN, _cdpo, {"smoothing": 0.1}),
    "dr_dpo": Method(PLAIN, _dr_dpo, {"b": 1.0}),
    "beta_dpo": Method(PLAIN, _beta_dpo, {"alpha": 0.6}),
    "capo_variant": Method({}, variant_loss, OWN),
}
