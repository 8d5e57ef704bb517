"""Log-probabilities and losses that are not finite numbers: which pairs of an optimiser step have them, and the error.

Flags stay on the device and cross to the host as one number an optimiser step, in the gather that the metrics make
anyway; only where that number is not 0 is anything looked up. Gradients are not looked at in every step: with a loss
scaler (`fp16`) theirs may overflow, which the scaler deals with, but log-probabilities and losses are computed before
it. What a gradient that is not finite does to the weights is found when they are to be saved.
"""

from typing import NamedTuple

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

from trl_capo.pairs import PAIR, PairIndex
from trl_capo.plain import first_few

KINDS = ("the policy's log-probability", "the reference's log-probability", "the loss")


class NonFiniteLoss(RuntimeError):
    """A training stopped before an optimiser step, because it would have made the weights useless."""


class Suspects(NamedTuple):
    """A micro-batch: (B, 3) whether each of KINDS is not finite, (B,) groups, (B,) pair numbers (None in streams)."""

    broken: Tensor
    groups: Tensor
    pairs: Tensor | None


def broken_kinds(policy: tuple[Tensor, ...], reference: tuple[Tensor, ...], rho: Tensor, loss: Tensor) -> Tensor:
    """(B, 3) bool, which of KINDS are not finite, of each pair.

    Args:
        policy, reference: log-probs of the chosen and the rejected completions, (B,) each.
        rho: (B,) relative rewards, from which the pair losses are made.
        loss: of the whole batch; where it is not finite, and every rho is, it is every pair's.
    """
    log_probs = [~torch.stack(values).detach().isfinite().all(dim=0) for values in (policy, reference)]
    pairs = ~rho.detach().isfinite()
    of_loss = torch.where(pairs.any(), pairs, ~loss.detach().isfinite()) & ~log_probs[0] & ~log_probs[1]
    return torch.stack([*log_probs, of_loss], dim=1)


def count_broken(batches: list[Suspects]) -> Tensor:
    """(1,) float: how many pairs of the batches are broken in some way."""
    return torch.stack([batch.broken.any(dim=1).sum() for batch in batches]).sum().float()[None]


def non_finite_loss(trainer: Trainer, index: PairIndex, batches: list[Suspects]) -> NonFiniteLoss:
    """The error that names the step and the pairs, the same on all processes, which call it together."""
    found = []
    for number, batch in enumerate(batches):
        for place in batch.broken.any(dim=1).nonzero().flatten().tolist():
            found.append(_describe(trainer, index, batch, place, f"micro-batch {number}"))
    found = gather_object(found)
    checkpoint = get_last_checkpoint(trainer.args.output_dir)
    kept = f"the last checkpoint, {checkpoint}, is kept" if checkpoint else "there is no checkpoint yet"
    return NonFiniteLoss(
        f"step {trainer.state.global_step + 1}: not a finite number for {len(found)} of its pairs: "
        f"{first_few(found, 8, '; ')}. Training stopped before the model was updated with it; {kept}.\n"
        "If the reference's are among them, the model itself overflows: try bf16 in place of fp16, or float32. If "
        "only the policy's are, the training has diverged: lower the learning rate, or warm up for longer. If it is "
        "always the same pairs, look at them."
    )


def refuse_spoilt_weights(trainer: Trainer) -> None:
    """Refuse to save trained weights that are not finite numbers; all processes call it together.

    Raises:
        NonFiniteLoss: they are not; nothing has been saved.
    """
    trained = [weights for weights in trainer.model.parameters() if weights.requires_grad and weights.numel()]
    local = [weights.to_local() if isinstance(weights, DTensor) else weights for weights in trained]
    broken = [~weights.detach().isfinite().all() for weights in local] or [torch.tensor(False)]
    spoilt = torch.stack([flag.to(trainer.accelerator.device) for flag in broken]).any().float()
    if trainer.accelerator.reduce(spoilt, reduction="sum").item():
        raise NonFiniteLoss(
            f"step {trainer.state.global_step}: the weights are no longer finite numbers, and are not saved; earlier "
            "checkpoints are kept. A gradient was not finite: lower the learning rate, warm up for longer, or clip "
            "harder (max_grad_norm)."
        )


def _describe(trainer: Trainer, index: PairIndex, batch: Suspects, place: int, where: str) -> str:
    kinds = [kind for kind, broken in zip(KINDS, batch.broken[place].tolist(), strict=True) if broken]
    group = batch.groups[place].item()
    marks = [] if group < 0 else [f"group {index.labels[group]!r}"]
    if batch.pairs is None:
        name = f"pair {place} of {where} on process {trainer.accelerator.process_index}"
    else:
        number = batch.pairs[place].item()  # the row, as the data to train on are numbered before all others
        name, marks = f"row {number}", _identity(trainer.train_dataset, number) + marks
    return f"{name} ({', '.join([*marks, ' and '.join(kinds)])})"


def _identity(dataset: Dataset, number: int) -> list[str]:
    """What the column `id` calls the pair, where there is one."""
    if "id" not in dataset.column_names or PAIR not in dataset.column_names:
        return []
    return [f"id {dataset[dataset[PAIR][:].index(number)]['id']!r}"]
