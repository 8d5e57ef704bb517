"""Stop a run whose values are no longer finite, and warn about one that does not learn."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import compress

import torch
from accelerate import PartialState
from accelerate.logging import get_logger
from accelerate.utils import gather_object, reduce
from datasets import Dataset, IterableDataset
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from trl_capo.common.text import first_few
from trl_capo.core.metrics import PairBatch, PairCallback
from trl_capo.core.pairs import PAIR

logger = get_logger(__name__)

MIN_PAIRS = 64  # logs are pooled until they cover as many pairs: of 4, all are contradicted by chance now and then


class NonFiniteLoss(RuntimeError):
    """Values of a training step, or the trained weights, are not finite."""


class StopOnNonFinite(PairCallback):
    """Raise NonFiniteLoss, on all processes, before an optimiser step with a log-prob or loss that is not finite.

        CAPOTrainer(..., callbacks=[StopOnNonFinite()])

    Trained weights that are not finite are not saved. Overflowing gradients are left to the loss scaler (`fp16`).
    DeepSpeed steps before it calls callbacks, so that only saving is prevented.
    """

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self._batches, self._saved = [], state.global_step  # a resumed run starts from a checkpoint

    def on_save(self, args, state, control, **kwargs) -> None:
        self._saved = state.global_step

    def on_pairs(self, args, state, control, batch: PairBatch, train_dataset=None, **kwargs) -> None:
        if batch.training:
            self._batches.append((non_finite(batch), batch, train_dataset))

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs) -> None:
        batches, self._batches = self._batches, []
        if _on_any_process(flags for flags, *_ in batches):
            found = gather_object([pair for part in batches for pair in _describe(*part)])
            weights = "are no longer finite, because of an earlier step" if _spoilt(model) else "are still finite"
            saved = f"last checkpoint is of step {self._saved}" if self._saved else "checkpoints: none yet"
            raise NonFiniteLoss(
                f"step {state.global_step + 1}: {len(found)} of its pairs have values that are not finite: "
                f"{first_few(found, 8, '; ')}. The trained weights {weights}. This run's {saved}. "
                "If the reference is affected, use bf16 or float32 instead of fp16. Otherwise lower the learning rate."
            )

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if control.should_save or (control.should_evaluate and args.save_strategy == "best"):
            self.on_train_end(args, state, control, **kwargs)

    on_epoch_end = on_step_end

    def on_train_end(self, args, state, control, model, **kwargs) -> None:
        if _spoilt(model):
            problem = "the trained weights are not finite and are not saved, because a gradient was not"
            raise NonFiniteLoss(f"step {state.global_step}: {problem}. Lower the learning rate or max_grad_norm.")


def _spoilt(model: torch.nn.Module) -> bool:
    """Whether trained weights are not finite on any process; all processes call this together."""
    trained = (weights.detach() for weights in model.parameters() if weights.requires_grad)
    return _on_any_process(~(part.to_local() if isinstance(part, DTensor) else part).isfinite() for part in trained)


def non_finite(batch: PairBatch) -> Tensor:
    """(B, 3) bool: whether the policy's or reference's log-probs, or else the loss, are not finite."""
    policy = ~(batch.chosen_logps + batch.rejected_logps).isfinite()
    reference = ~(batch.ref_chosen_logps + batch.ref_rejected_logps).isfinite()
    finite = batch.rho.isfinite()
    loss = torch.where(finite.all(), ~batch.loss.isfinite(), ~finite) & ~policy & ~reference
    return torch.stack([policy, reference, loss], dim=1)


def _describe(flags: Tensor, batch: PairBatch, dataset: Dataset | IterableDataset) -> Iterator[str]:
    names = ("the policy's log-probability", "the reference's log-probability", "the loss")
    for place in flags.any(dim=1).nonzero().flatten().tolist():
        wrong = " and ".join(compress(names, flags[place]))
        row = {} if batch.pairs is None else dataset[batch.pairs[place].item()]
        known = [f"id {row['id']!r}"] if "id" in row else []
        known += [f"group {batch.group_names[batch.groups[place]]!r}"] if batch.groups[place] >= 0 else []
        yield f"{f'row {row[PAIR]}' if row else 'a pair of the stream'} ({', '.join([*known, wrong])})"


def _on_any_process(flags: Iterable[Tensor]) -> bool:
    """Whether a flag is set on any process; all processes call this together."""
    device = PartialState().device
    own = torch.stack([torch.zeros((), device=device), *(flag.any().to(device).float() for flag in flags)])
    return reduce(own.max(), reduction="max").item() > 0


class TrainingHealth(TrainerCallback):
    """Warn, once per sign, if a run does not learn: `CAPOTrainer(..., callbacks=[TrainingHealth()])`."""

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self._logs, self._step, self._warned = [], state.global_step, set()

    def on_log(self, args, state, control, logs: Mapping[str, float], **kwargs) -> None:
        if "capo/scale" not in logs:  # an evaluation, or the summary at the end
            return
        self._logs.append(logs)
        steps = state.global_step - self._step
        pairs = steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        if pairs >= MIN_PAIRS:
            means = {key: sum(log.get(key, 0.0) for log in self._logs) / len(self._logs) for key in logs}
            for sign in set(warning_signs(means)) - self._warned:
                logger.warning(f"Over the last {pairs:,} pairs, {sign}")
                self._warned.add(sign)
            self._logs, self._step = [], state.global_step


def warning_signs(means: Mapping[str, float]) -> Iterator[str]:
    """Yield what is wrong with the logged means, and what to do. The study's runs stay clear of the thresholds."""
    rate, confidence = means["capo/noise_rate"], means["capo/confidence"]
    chosen, rejected = means["rewards/chosen"], means["rewards/rejected"]
    if means["capo/contradicted"] >= 0.95:
        yield "the model contradicts nearly all labels. Are chosen and rejected swapped? Is ref_model the right model?"
    if rate >= 0.05 and confidence >= 0.999:  # at lower rates, unknown pairs have confidences above 0.95 already
        yield "nearly all labels are trusted. The model may have memorised flipped ones: train for fewer epochs."
    if chosen <= -10.0 and rejected <= -10.0 and chosen <= rejected / 2:
        yield "the rewards of both answers fall (arXiv 2410.08847). Lower the learning rate, or add the loss_type sft."
