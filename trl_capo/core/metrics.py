"""Per-pair values of a batch, the callback that receives them, and the exact means that are logged.

The means are over pairs, however these are split into micro-batches, steps and processes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import pad_across_processes
from torch import Tensor
from transformers import TrainerCallback

LOGGED_BY_TRL = ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins")
LOGGED_BY_TRL += ("logps/chosen", "logps/rejected")
VALUES = (*LOGGED_BY_TRL, "rewards/accuracies/ties")
VALUES += ("capo/noise_rate", "capo/confidence", "capo/scale", "capo/contradicted", "capo/weight")


@dataclass
class PairBatch:
    """Per-pair values of a micro-batch. Tensors are detached, and of shape (B,) unless noted."""

    training: bool  # whether it belongs to a training step or to an evaluation
    pairs: Tensor | None  # row numbers in the data set; None for a stream
    groups: Tensor  # places in `group_names`, -1 for no group
    weight: Tensor | None  # the column `weight`
    chosen_logps: Tensor  # log-probs in nats, under the policy and under the reference
    rejected_logps: Tensor
    ref_chosen_logps: Tensor
    ref_rejected_logps: Tensor
    rho: Tensor  # relative rewards, in units of reward
    noise_rate: Tensor  # of each pair, in [0, 0.5]
    group_noise_rate: Tensor  # of each pair's group, in [0, 0.5]
    confidence: Tensor  # posterior probability that the label is right, in [0, 1]
    scale: Tensor  # of the pair loss, including the label weight of eq. 7, but not the column `weight`
    group_names: list[str]
    beta: float  # units of reward per nat
    loss: Tensor  # scalar, of the micro-batch

    def values(self) -> Tensor:
        """Return the (B, len(VALUES)) values that are averaged; the weights are NaN if the data have none."""
        chosen = self.beta * (self.chosen_logps - self.ref_chosen_logps)
        rejected = self.beta * (self.rejected_logps - self.ref_rejected_logps)
        rewards = [chosen, rejected, chosen > rejected, chosen - rejected]
        logps = [self.chosen_logps, self.rejected_logps, chosen == rejected]
        weight = torch.full_like(self.rho, torch.nan) if self.weight is None else self.weight
        capo = [self.noise_rate, self.confidence, self.scale, self.rho < 0, weight]
        return torch.stack([value.float() for value in [*rewards, *logps, *capo]], dim=1)


class PairCallback(TrainerCallback):
    """A callback that also receives every micro-batch's pairs. Pass it to CAPOTrainer like any other callback."""

    def on_pairs(self, args, state, control, batch: PairBatch, **kwargs) -> None:
        """Called after the loss of each micro-batch, in training and evaluation, with `model` and `train_dataset`."""


class PairMetrics:
    """Collects the values of pairs on each process, and averages over those of all processes."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._rows: list[tuple[Tensor, Tensor]] = []
        self._group_names: list[str] = []

    def add(self, batch: PairBatch) -> None:
        pairs = torch.full_like(batch.groups, -1) if batch.pairs is None or batch.training else batch.pairs
        self._rows.append((torch.stack([batch.groups, pairs], dim=1), batch.values()))
        self._group_names = batch.group_names

    def take(self) -> dict[str, float]:
        """Return the means over all pairs since the last call, and forget these pairs. All processes call it together.

        Besides VALUES there are `capo/scale_min` and `_max`; for every group `rewards/accuracies/<group>` and
        `rewards/margins/<group>`; and the `macro` mean and the `worst` of the groups' accuracies.
        """
        if not self._rows:
            return {}
        rows = tuple(torch.cat(part) for part in zip(*self._rows, strict=True))
        self._rows = []
        if self._accelerator.num_processes > 1:
            rows = self._accelerator.gather(pad_across_processes(rows, pad_index=-2))
        (groups, pairs), values = rows[0].cpu().unbind(dim=1), rows[1].double().cpu()
        pairs = torch.where(pairs < 0, -1 - torch.arange(len(pairs)), pairs)  # none of these occurs twice
        first = torch.from_numpy(np.sort(np.unique(pairs, return_index=True)[1]))  # samplers repeat pairs in the end
        kept = first[groups[first] > -2]
        groups, values = groups[kept], values[kept]
        means = dict(zip(VALUES, values.mean(dim=0).tolist(), strict=True))
        if values[:, -1].isnan().all():
            del means["capo/weight"]
        scales = values[:, VALUES.index("capo/scale")]
        means |= {"capo/scale_min": scales.min().item(), "capo/scale_max": scales.max().item()}
        accuracies = {}
        for number, name in enumerate(self._group_names):
            if len(own := values[groups == number]):
                accuracies[name] = own[:, VALUES.index("rewards/accuracies")].mean().item()
                means[f"rewards/accuracies/{name}"] = accuracies[name]
                means[f"rewards/margins/{name}"] = own[:, VALUES.index("rewards/margins")].mean().item()
        if accuracies:
            means["rewards/accuracies/macro"] = sum(accuracies.values()) / len(accuracies)
            means["rewards/accuracies/worst"] = min(accuracies.values())
        return means
