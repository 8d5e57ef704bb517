"""One trainer class for every method of a study: the same data order, reference and evaluation."""

from typing import Any

import torch
from torch import Tensor

from trl_capo.nonfinite import Suspects
from trl_capo.study.frozen import SequenceMemory, sequence_keys
from trl_capo.study.methods import METHODS, Batch
from trl_capo.trainer import CAPOTrainer


class StudyTrainer(CAPOTrainer):
    """CAPOTrainer that can stand for every method of a study, and keeps the margins of the pairs it evaluates.

    Args:
        method: a key of METHODS, whose `config` options are in `args`.
        own: the values of the method's own options.
        references: where the reference's log-probs are kept, by sequence.
    """

    def __init__(self, *args: Any, method: str, own: dict[str, float], references: SequenceMemory, **kwargs: Any):
        self._study_loss, self._study_own, self._study_state = METHODS[method].loss, own, {}
        self._study_references = references
        self.evaluated: dict[int, float] = {}
        super().__init__(*args, **kwargs)

    def compute_ref_log_probs(self, model, inputs):
        self._study_reference = self._study_ref_log_probs(model, inputs)
        return self._study_reference

    def _study_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        if self.ld_alpha is not None or self.args.sync_ref_model:  # log-probs by more than the sequence
            return super().compute_ref_log_probs(model, inputs)
        completions = inputs["completion_mask"]
        keys = sequence_keys(inputs["input_ids"], inputs["attention_mask"], completions)
        found = None if keys is None else self._study_references.get(keys)
        if found is not None:
            return torch.stack(found).to(completions.device).chunk(2)
        logps = super().compute_ref_log_probs(model, inputs)
        for key, value in zip(keys or [], torch.cat(logps), strict=bool(keys)):
            self._study_references.put(key, value)
        return logps

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self._study_mask = inputs["completion_mask"][:, 1:]
        self._study_reference = inputs.get("ref_chosen_logps"), inputs.get("ref_rejected_logps")  # where precomputed
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _capo_rates(
        self, groups: Tensor, pairs: Tensor | None, margin: Tensor
    ) -> tuple[Tensor | float, Tensor | float]:
        self._study_pairs, own = pairs, self._study_own
        if own.get("one_rate"):
            groups = torch.full_like(groups, -1)
        self._study_rates = super()._capo_rates(groups, pairs, margin)
        if not own.get("first_sight", 1):
            self._study_rates = super()._capo_rates(groups, None, margin)
        return self._study_rates

    def _capo_loss(self, dpo_loss: Tensor, rho: Tensor, scale: Tensor, outputs: Any) -> Tensor:
        if self._study_loss is None or not self.model.training:
            return super()._capo_loss(dpo_loss, rho, scale, outputs)
        rewards = self.beta * (outputs.log_probs.sum(dim=1) - torch.cat(self._study_reference))
        batch = Batch(
            rho,
            self.beta,
            outputs,
            self._study_mask,
            self._study_state,
            temperature=self._capo_temperature,
            rates=self._study_rates,
            rewards=rewards.chunk(2),
            pairs=self._study_pairs,
            calibration=None if self._capo_estimate is None else self._capo_estimate.calibration,
        )
        return self._study_loss(batch, **self._study_own)

    def _capo_record(self, rows: Tensor, suspects: Suspects) -> None:
        super()._capo_record(rows, suspects)
        if not self.model.training:
            gathered = self.accelerator.gather((suspects.pairs, rows[:, 0] - rows[:, 1]))
            self.evaluated.update(zip(*(values.tolist() for values in gathered), strict=True))

    def pair_groups(self, numbers: list[int]) -> list[str]:
        """The group of every pair with these numbers, "" where there are no groups."""
        groups = self._capo_index.groups(torch.tensor(numbers), None, len(numbers), self.accelerator)
        return ["" if group < 0 else self._capo_index.labels[group] for group in groups.tolist()]
