"""Define the methods that a study compares, and the trainer that runs all of them.

TRL provides DPO, IPO and robust DPO. The other losses are functions of the (B,) relative rewards rho of
`trl_capo.core.losses` that return the mean over a batch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trl_capo.core.metrics import VALUES, PairCallback
from trl_capo.core.trainer import CAPOTrainer
from trl_capo.study.speed import SequenceCache, sequence_keys

BETA_DPO_MOMENTUM, BETA_DPO_MIN = 0.9, 1e-3  # of the running margin; the lowest beta (as in the authors' code)


def dr_dpo_loss(rho: Tensor, *, b: float, **_: Any) -> Tensor:
    """Return the loss of Dr. DPO (Wu et al. 2024, arXiv 2407.07880): `-b log mean_i exp(-l_i / b)`.

    l_i is DPO's pair loss, b > 0. A large b gives DPO's mean, a small b the minimum of the batch; 1 is the paper's.
    """
    return -b * (torch.logsumexp(F.logsigmoid(rho) / b, dim=0) - math.log(len(rho)))


def beta_dpo_loss(rho: Tensor, *, beta: float, alpha: float, state: dict[str, Tensor], **_: Any) -> Tensor:
    """Return the loss of beta-DPO with batch-level beta (Wu et al. 2024, arXiv 2407.08639).

    beta_batch = (1 + alpha (mean margin of the batch - running margin)) beta, without gradient; margins are in nats.
    alpha = 0 is DPO, 0.6 the paper's default. As in the authors' code, the running margin, 0 at first and kept in
    `state`, is updated before it is used. Their random filter of pairs is left out.
    """
    margin = rho.detach().mean() / beta
    state["margin"] = running = BETA_DPO_MOMENTUM * state.get("margin", 0.0) + (1.0 - BETA_DPO_MOMENTUM) * margin
    return -F.logsigmoid((1.0 + alpha * (margin - running)).clamp(min=BETA_DPO_MIN / beta) * rho).mean()


def holder_dpo_loss(rho: Tensor, *, gamma: float, **_: Any) -> Tensor:
    """Return Hoelder-DPO's loss (arXiv 2505.17859), `-(1 + g) p^g + g p^(1 + g)` with p = sigmoid(rho)."""
    p = torch.sigmoid(rho)
    return (-(1.0 + gamma) * p**gamma + gamma * p ** (1.0 + gamma)).mean()


def re_dpo_loss(
    rho: Tensor, *, eta: float, momentum: float, by_group: float, state: dict[int, float], groups: Tensor, **_: Any
) -> Tensor:
    """Return the loss of RE-DPO (arXiv 2509.24159): `-(w log p + (1 - w) log(1 - p))`, p = sigmoid(rho).

    w = r p / (r p + (1 - r) (1 - p)) has no gradient. The reliability r of the labels is `eta` at first and then a
    running mean of w, with weight `momentum` for a batch; with `by_group` every group has its own.
    """
    groups, weight = groups if by_group else torch.zeros_like(groups), torch.empty_like(rho)
    for group in groups.unique().tolist():
        own, reliability = groups == group, state.get(group, eta)
        weight[own] = torch.sigmoid(rho.detach()[own] + math.log(reliability / (1.0 - reliability)))
        state[group] = min((1.0 - momentum) * reliability + momentum * weight[own].mean().item(), 1.0 - 1e-6)
    return -(weight.detach() * F.logsigmoid(rho) + (1.0 - weight.detach()) * F.logsigmoid(-rho)).mean()


def ropo_loss(rho: Tensor, *, alpha: float, **_: Any) -> Tensor:
    """Return the loss of ROPO (arXiv 2404.04102), `4a / (1 + a)^2 (-log p + a (1 - p))` with p = sigmoid(rho)."""
    return (4.0 * alpha / (1.0 + alpha) ** 2 * (alpha * torch.sigmoid(-rho) - F.logsigmoid(rho))).mean()


def gated_loss(rho: Tensor, *, threshold: float, reference_margin: Tensor, **_: Any) -> Tensor:
    """Return DPO's mean loss over the pairs whose reference margin is above `threshold` (nats; 0 to drop more)."""
    kept = (reference_margin > threshold).float()
    return (kept * -F.logsigmoid(rho)).sum() / kept.sum().clamp(min=1.0)


@dataclass(frozen=True)
class Method:
    """Options of `CAPOConfig`; a training loss that replaces DPO's, if any; and defaults of its own options."""

    config: dict[str, Any]
    loss: Callable[..., Tensor] | None = None
    own: dict[str, float] = field(default_factory=dict)
    needs_whole_batch: bool = False


DPO = {"noise_rate": 0.0}
METHODS = {
    "capo": Method({}),
    "dpo": Method(DPO),
    "ipo": Method(DPO | {"loss_type": ["ipo"]}),
    "rdpo": Method(DPO | {"loss_type": ["robust"], "label_smoothing": 0.1}),
    "dr_dpo": Method(DPO, dr_dpo_loss, {"b": 1.0}, needs_whole_batch=True),
    "holder_dpo": Method(DPO, holder_dpo_loss, {"gamma": 2.0}),
    "re_dpo": Method(DPO, re_dpo_loss, {"eta": 0.9, "momentum": 0.1, "by_group": 0}, needs_whole_batch=True),
    "ropo": Method(DPO, ropo_loss, {"alpha": 14.0}),
    "gated": Method(DPO, gated_loss, {"threshold": 0.0}, needs_whole_batch=True),
    "beta_dpo": Method(DPO, beta_dpo_loss, {"alpha": 0.6}, needs_whole_batch=True),
}


class StudyTrainer(CAPOTrainer):
    """Train any of METHODS, `own` being the values of its own options, and cache the reference's log-probabilities."""

    def __init__(self, *args: Any, method: Method, own: dict[str, float], references: SequenceCache, **kwargs: Any):
        self._study_loss, self._study_own, self._study_references = method.loss, {"state": {}, **own}, references
        super().__init__(*args, **kwargs)

    def compute_ref_log_probs(self, model, inputs):
        completions = inputs["completion_mask"]
        keys = sequence_keys(inputs["input_ids"], inputs["attention_mask"], completions)
        if self.ld_alpha is not None or self.args.sync_ref_model:  # not a function of the sequence
            return super().compute_ref_log_probs(model, inputs)
        cached = self._study_references.get(keys)
        if cached is None:
            cached = torch.cat(super().compute_ref_log_probs(model, inputs))
            self._study_references.put(keys, cached)
        return torch.stack([*cached]).to(completions.device).chunk(2)

    def _capo_objective(self, dpo_loss, batch, rho, losses, output, inputs):
        if self._study_loss is None or not batch.training:
            return super()._capo_objective(dpo_loss, batch, rho, losses, output, inputs)
        margin = batch.ref_chosen_logps - batch.ref_rejected_logps
        return self._study_loss(rho, beta=self.beta, groups=batch.groups, reference_margin=margin, **self._study_own)


class EvaluatedPairs(PairCallback):
    """Collect each evaluated pair's margin and group by pair number, and print the progress if `total` is given."""

    def __init__(self, total: int = 0) -> None:
        self.margins: dict[int, tuple[float, str]] = {}
        self._total, self._done = total, 0

    def on_pairs(self, args, state, control, batch, **kwargs) -> None:
        if batch.training:
            return
        margins = batch.values()[:, VALUES.index("rewards/margins")].tolist()
        names = ["" if group < 0 else batch.group_names[group] for group in batch.groups.tolist()]
        self.margins.update(zip(batch.pairs.tolist(), zip(margins, names, strict=True), strict=True))
        self._done += 2 * len(names)
        if self._total:
            print(f"progress {self._done}/{self._total}", flush=True)
