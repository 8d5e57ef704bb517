"""CAPOTrainer: TRL's DPOTrainer, with each pair's loss scaled by the confidence that its label is right.

How it meets TRL (checked by tests/test_trl_contract.py). DPOTrainer computes its loss, its metrics and everything else
in one piece without a per-pair hook, so that piece is left alone and its result corrected: the reference log-probs are
computed first and handed to it as if they were precomputed, the policy's output is recorded on its way through, and
`weight * mean((scale - 1) * pair_loss)` is added to the loss that comes back. One policy forward and one reference
forward a step, as in DPO; every other term of the loss stays as it was.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from datasets import IterableDataset
from torch import Tensor

from trl_capo.citation import PAPER
from trl_capo.config import CAPOConfig, sigmoid_weight
from trl_capo.data import check_preference_data, refuse_empty
from trl_capo.losses import confidence_scale, relative_reward
from trl_capo.noise_rate import NoiseRateEstimate
from trl_capo.nonfinite import Suspects, broken_kinds, non_finite_loss
from trl_capo.pair_logger import make_pair_logger
from trl_capo.pairs import COLUMNS, PairCollator, PairIndex, split_batch
from trl_capo.recorder import PairRecorder, pair_rows
from trl_capo.reference import standardised_margin
from trl_capo.resuming import ResumableDPOTrainer
from trl_capo.seam import FirstOutput, check_agreement, given_ref_logps, policy_log_probs
from trl_capo.weights import weight_problems


class CAPOTrainer(ResumableDPOTrainer):
    """DPOTrainer with confidence-scaled pair losses; nothing else differs.

    Takes exactly the arguments of `trl.DPOTrainer`, with a `CAPOConfig` for `args`. The loss is
    `mean_i s_i * -log sigmoid(rho_i)` (docs/method.md, eq. 5) in place of the "sigmoid" term of `loss_type`; other
    terms, the MoE auxiliary loss and TRL's metrics stay as they are. Where the data, to train on or to evaluate on,
    have a column `weight`, it is `mean_i w_i s_i * -log sigmoid(rho_i)`, still a mean over the pairs, not over the sum
    of the weights. A weight is a number from 0 to 1e6; a pair of weight 0 says nothing of the noise rate.

    Logged beside TRL's metrics, in training and evaluation:

    - `capo/noise_rate`: the rate in use, in [0, 0.5], as a mean over the pairs; "auto" gives each its own (eq. 7);
      in training with the rate "auto" also `capo/noise_rate/<group>`, the estimate for every group of `group_column`;
    - `capo/confidence`: mean confidence c that a label is right, in [0, 1];
    - `capo/scale`, `capo/scale_min`, `capo/scale_max`: the scale s of the pair losses, in [0, 5];
    - `capo/contradicted`: share of the pairs with a negative relative reward, which the model ranks against the label;
    - `capo/weight`: mean of the column `weight`, where there is one; no other metric is weighted;
    - `rewards/accuracies/<group>` and `rewards/margins/<group>` of every group of `group_column`; over the groups, the
      mean `rewards/accuracies/macro` and the lowest `rewards/accuracies/worst`; `rewards/accuracies/ties`, a share.

    Training values cover the logging window. In evaluation these and TRL's own `rewards/*` and `logps/*` cover the
    data set: every pair once, on all processes, whatever the batch size. Every key carries the data set's name.

    A training step with a log-probability or loss that is not a finite number raises `NonFiniteLoss`, which names its
    pairs, before the weights are updated; signs that a training goes nowhere are warned of (degenerate.py).

    Raises:
        TypeError: `args` is not a `CAPOConfig`.
        ValueError: options that cannot be used together, or data that cannot be trained on; before a model is loaded.
    """

    _tag_names = ["trl", "capo"]
    _name = "CAPO"
    _paper = PAPER

    def __init__(
        self,
        model,
        ref_model=None,
        args=None,
        data_collator=None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        compute_metrics=None,
        callbacks=None,
        optimizers=(None, None),
        quantization_config=None,
        peft_config=None,
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = CAPOConfig(f"{name.rstrip('/').split('/')[-1]}-CAPO")
        if not isinstance(args, CAPOConfig):
            raise TypeError(
                f"args is a {type(args).__name__}, which has no noise rate or confidence temperature. Build it with "
                "trl_capo.CAPOConfig, which takes the same options."
            )
        args._capo_check()
        self._capo_check_data = partial(check_preference_data, partial(weight_problems, args))
        self._capo_check_data(train_dataset=train_dataset, eval_dataset=eval_dataset)
        self._capo_index = PairIndex(args.group_column)
        self._capo_pair_logger = make_pair_logger(args, train_dataset, self._capo_index)
        train_dataset = self._capo_index.number(train_dataset, "train_dataset", evaluated=False)
        eval_dataset = self._capo_index.number(eval_dataset, "eval_dataset", evaluated=True)
        super().__init__(
            model,
            ref_model=ref_model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        refuse_empty(args.max_length, train_dataset=self.train_dataset, eval_dataset=self.eval_dataset)
        self._capo_noise_rate, self._capo_temperature = args.noise_rate, args.confidence_temperature
        if args.noise_rate == "auto":
            self.add_callback(NoiseRateEstimate())
        self._capo_sigmoid_weight = sigmoid_weight(args)
        self.data_collator = PairCollator(self.data_collator)
        self._capo_recorder = PairRecorder(self.accelerator, self._capo_index)
        self.add_callback(self._capo_recorder)
        if self._capo_pair_logger is not None:
            self.add_callback(self._capo_pair_logger)
        self._capo_keep_streams_local(eval_dataset)
        self._capo_agrees_with_trl = False

    def _capo_keep_streams_local(self, datasets: Any) -> None:
        """Let every process read streams itself, as TRL does in training: dispatched batches can hold only tensors."""
        parts = datasets.values() if isinstance(datasets, Mapping) else [datasets]
        if any(isinstance(part, IterableDataset) for part in parts):
            self.accelerator.dataloader_config.dispatch_batches = False

    @property
    def _capo_estimate(self) -> NoiseRateEstimate | None:
        """The estimate, or None with a fixed noise rate. Looked up, since resuming may replace the callback."""
        callbacks = self.callback_handler.callbacks
        return next((callback for callback in callbacks if isinstance(callback, NoiseRateEstimate)), None)

    def compute_ref_log_probs(self, model, inputs):
        return super().compute_ref_log_probs(model, split_batch(inputs)[1])

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        (pairs, labels, weights), inputs = split_batch(inputs)
        if not self.precompute_ref_logps:
            chosen, rejected = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
            inputs |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        policy = FirstOutput(model)
        with given_ref_logps(self):
            result = super().compute_loss(policy, inputs, return_outputs, num_items_in_batch)
        dpo_loss, outputs = result if return_outputs else (result, None)

        logps = policy_log_probs(policy.value, inputs, self.ld_alpha)
        references = (inputs["ref_chosen_logps"], inputs["ref_rejected_logps"])
        logratios = [ours - reference for ours, reference in zip(logps, references, strict=True)]
        rho = relative_reward(
            *logratios,
            beta=self.beta,
            f_divergence_type=self.f_divergence_type,
            f_alpha_divergence_coef=self.f_alpha_divergence_coef,
        )
        self._capo_check_agreement(dpo_loss, rho)
        groups = self._capo_index.groups(pairs, labels, len(rho), self.accelerator)
        margin = references[0] - references[1]
        standardised = torch.zeros_like(margin, dtype=torch.float32)
        if self.args.asks_reference:
            standardised = standardised_margin(margin, sum(inputs["completion_mask"].sum(dim=1).chunk(2)))
        rate, told = self._capo_rates(groups, pairs, standardised)
        agreed = confidence_scale(rho, noise_rate=rate, temperature=self._capo_temperature)
        scale = told * agreed
        loss = self._capo_loss(dpo_loss, rho, scale if weights is None else weights * scale, policy.value)

        rewards = tuple(self.beta * logratio for logratio in logratios)
        suspects = Suspects(broken_kinds(logps, references, rho, loss), groups, pairs)
        confidence = agreed * (1.0 - rate)
        self._capo_record(pair_rows(rewards, logps, rho, scale, confidence, rate, weights), suspects)
        estimate = self._capo_estimate
        if self._capo_pair_logger is not None and self.model.training:
            of_group = rate if estimate is None else estimate.rates(groups, self._capo_index.labels)
            self._capo_pair_logger.add(pairs, groups, (rho, confidence, scale, rate, of_group, *logps, margin))
        if estimate is not None and self.model.training:
            counted = rho if weights is None else rho.masked_fill(weights == 0, torch.nan)
            estimate.add(counted, groups, self._capo_index.labels, pairs, standardised)
            if self.accelerator.sync_gradients:
                estimate.end_step(self.accelerator)
        return (loss, outputs) if return_outputs else loss

    def _capo_rates(
        self, groups: Tensor, pairs: Tensor | None, margin: Tensor
    ) -> tuple[Tensor | float, Tensor | float]:
        """The noise rates of a batch's pairs, in training each its own, and how much their labels tell."""
        estimate = self._capo_estimate
        if estimate is None:
            return self._capo_noise_rate, 1.0
        if not self.model.training:
            return estimate.rates(groups, self._capo_index.labels), 1.0
        if pairs is not None:
            estimate.make_room(self._capo_index.numbered, pairs.device)
        return estimate.own_rates(groups, self._capo_index.labels, pairs, margin)

    def _capo_loss(self, dpo_loss: Tensor, rho: Tensor, scale: Tensor, outputs: Any) -> Tensor:
        """DPOTrainer's loss with its "sigmoid" term scaled, (B,); `outputs` is what the policy returned."""
        return dpo_loss + self._capo_sigmoid_weight * ((scale - 1.0) * -F.logsigmoid(rho)).mean()

    def _capo_check_agreement(self, dpo_loss: Tensor, rho: Tensor) -> None:
        """Once a trainer: our pair losses must average to DPOTrainer's loss, where nothing else is part of it."""
        if self._capo_agrees_with_trl:
            return
        self._capo_agrees_with_trl = True
        if self.loss_types == ["sigmoid"] and not self.use_weighting and not self.aux_loss_enabled:
            check_agreement(dpo_loss, self._capo_sigmoid_weight * -F.logsigmoid(rho.detach()).mean())

    def _capo_record(self, rows: Tensor, suspects: Suspects) -> None:
        """Add a batch to the metrics, (B, columns) values; refuse a training step that would spoil the weights."""
        if not self.model.training:
            self._capo_recorder.add_evaluation(rows, suspects.groups, suspects.pairs)
        elif batches := self._capo_recorder.add_training(rows, suspects):
            raise non_finite_loss(self, self._capo_index, batches)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns += [column for column in COLUMNS if column not in self._signature_columns]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training:
            logs.update(self._capo_recorder.take_training())
            rates = {} if self._capo_estimate is None else self._capo_estimate.by_group()
            logs.update({f"capo/noise_rate/{group}": rate for group, rate in rates.items()})
        super().log(logs, start_time)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            self._capo_check_data(eval_dataset=eval_dataset)
            eval_dataset = self._capo_index.number(eval_dataset, "eval_dataset", evaluated=True)
            self._capo_keep_streams_local(eval_dataset)
        # Transformers adds the names when it evaluates all named data sets, but not for one that is asked for by name.
        if isinstance(eval_dataset, str) and not metric_key_prefix.endswith(f"_{eval_dataset}"):
            metric_key_prefix = f"{metric_key_prefix}_{eval_dataset}"
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        self._capo_recorder.start_evaluation()
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        # TRL would log its means of batch means later, under `eval_` whatever the data set's name is.
        metrics = {key: sum(values) / len(values) for key, values in self._metrics["eval"].items()}
        self._metrics["eval"].clear()
        metrics |= self._capo_recorder.take_evaluation()
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output
