"""Define the methods that a study compares, and the trainer that runs all of them.

TRL provides DPO, IPO, hinge and robust DPO. The other losses are functions of the (B,) relative rewards rho of
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


def cdpo_loss(rho: Tensor, *, smoothing: float, **_: Any) -> Tensor:
    """Return the loss of conservative DPO (Mitchell 2023, "A note on DPO with noisy preferences", eq. 3).

    `-(1 - s) log sigmoid(rho) - s log sigmoid(-rho)`: s in [0, 0.5] is the share of flipped labels; 0 is DPO.
    """
    return (-(1.0 - smoothing) * F.logsigmoid(rho) - smoothing * F.logsigmoid(-rho)).mean()


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


def wpo_loss(rho: Tensor, *, outputs: Any, completion_mask: Tensor, **_: Any) -> Tensor:
    """Return the loss of WPO (Zhou et al. 2024, arXiv 2406.11827, eq. 2) with its authors' clamp of weights at 1.

    The weight of a completion is the geometric mean over its tokens of p(token) / sum_v p(v)^2, that of a pair the
    product of both. TRL 1.16 leaves out the clamp. Rows of (2B, T) `completion_mask` are `[chosen; rejected]`.
    """
    mask = completion_mask[:, 1:]
    aligned = ((outputs.log_probs - outputs.log_sum_sq_probs) * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    weights = torch.exp(sum(aligned.detach().chunk(2))).clamp(max=1.0)
    return (weights * -F.logsigmoid(rho)).mean()


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
    "hinge": Method(DPO | {"loss_type": ["hinge"]}),
    "rdpo": Method(DPO | {"loss_type": ["robust"], "label_smoothing": 0.1}),
    "wpo": Method(DPO | {"use_weighting": True}, wpo_loss),
    "cdpo": Method(DPO, cdpo_loss, {"smoothing": 0.1}),
    "dr_dpo": Method(DPO, dr_dpo_loss, {"b": 1.0}, needs_whole_batch=True),
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
        mask = inputs["completion_mask"]
        return self._study_loss(rho, beta=self.beta, outputs=output, completion_mask=mask, **self._study_own)


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
