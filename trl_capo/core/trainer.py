"""CAPOTrainer: TRL's DPOTrainer with a confidence-scaled loss and exact metrics per group.

DPOTrainer has no hook for the losses of pairs. Its code is left alone, and its result is corrected: the
reference log-probs are computed first and handed over as if they were precomputed, the policy's output is recorded as
it passes through, and `weight * mean(capo_losses - dpo_losses)` is added to the loss. A step takes one forward pass of
the policy and one of the reference, as in DPO. tests/core/test_trl_contract.py checks these assumptions about TRL.
"""

import textwrap
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import trl
from datasets import Dataset
from torch import Tensor
from trl import DPOTrainer

from trl_capo.core.config import CAPOConfig, check_adapters, sigmoid_weight
from trl_capo.core.losses import capo_loss, confidence_scale, relative_reward
from trl_capo.core.metrics import LOGGED_BY_TRL, PairBatch, PairCallback, PairMetrics
from trl_capo.core.noise_rate import NoiseRateEstimator
from trl_capo.core.packing import PaddingFree
from trl_capo.core.pairs import COLUMNS, SWAPPED, PairCollator, PairIndex, evidence, split_batch


def sequence_log_probs(token_log_probs: Tensor, completion_mask: Tensor, *, ld_alpha: float | None = None) -> Tensor:
    """Sum (2B, T) token log-probs, with rows `[chosen; rejected]`, to (2B,) log-probs of the completions, in nats.

    Args:
        token_log_probs: zero outside the completion.
        completion_mask: (2B, T), 1 on the completion's tokens.
        ld_alpha: weight in [0, 1] of the tokens beyond the shorter completion's length (LD-DPO, arXiv 2409.06411).
    """
    if ld_alpha is None:
        return token_log_probs.sum(dim=1)
    shared = torch.minimum(*completion_mask.sum(dim=1).chunk(2)).repeat(2).unsqueeze(1)
    position = completion_mask.cumsum(dim=1)
    weight = torch.where(position <= shared, 1.0, ld_alpha) * (position > 0)
    return (token_log_probs * weight).sum(dim=1)


class CAPOTrainer(DPOTrainer):
    """DPOTrainer with the sigmoid loss scaled by label confidence, and exact metrics per group.

    It takes the arguments of `trl.DPOTrainer`, with a `CAPOConfig` for `args`. It differs as follows:

    - The "sigmoid" term of `loss_type` is `mean_i w_i s_i * -log sigmoid(rho_i)` (docs/method.md, eq. 5), where w_i is
      the column `weight` (default 1). Labels whose column `trusted` is true count as right. Other terms are unchanged.
    - Training logs also hold `capo/*` and, by group, `capo/noise_rate/<group>`, `rewards/accuracies/<group>` and
      `rewards/margins/<group>`; docs/metrics.md lists them.
    - Evaluation metrics are means over pairs: every pair counts once, for any batch size and number of processes,
      whereas TRL averages the means of batches. The keys are TRL's, and some more.
    - Callbacks that subclass `PairCallback` receive every micro-batch.
    - `padding_free=True`, which TRL 1.16 ignores, skips padding and computes each pair's common beginning once.
    - Data sets get the columns `capo_pair` and `capo_group`, and checkpoints hold the noise-rate estimate.
    - `args` that are not a `CAPOConfig` raise TypeError; groups or weights that cannot be used raise ValueError.
    """

    _tag_names = ["trl", "dpo", "capo"]
    _name = "CAPO"
    _paper = {
        "title": "CAPO: Confidence Aware Preference Optimization Learning for Multilingual Preferences",
        "id": "2511.07691",
        "citation": textwrap.dedent("""\
            @inproceedings{pokharel2025capo,
                title     = {{CAPO: Confidence Aware Preference Optimization Learning for Multilingual Preferences}},
                author    = {Rhitabrat Pokharel and Yufei Tao and Ameeta Agrawal},
                booktitle = {Findings of the Association for Computational Linguistics: IJCNLP-AACL 2025},
                year      = 2025, pages = {1144--1156},
                url       = {https://arxiv.org/abs/2511.07691},
            }"""),
    }

    def __init__(
        self, model, ref_model=None, args=None, data_collator=None, train_dataset=None, eval_dataset=None, *rest, **kw
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = CAPOConfig(f"{name.rstrip('/').split('/')[-1]}-CAPO")
        if not isinstance(args, CAPOConfig):
            raise TypeError(f"args is a {type(args).__name__}; build it with CAPOConfig, which takes the same options")
        self._capo_sigmoid_weight = sigmoid_weight(args)
        self._capo_index = PairIndex(args.group_column, args.witness, args.noise_rate)
        train_dataset = self._capo_index.add_columns(train_dataset, "train_dataset")
        groups = list(self._capo_index.group_names)  # without those of evaluation data alone
        eval_dataset = self._capo_index.add_columns(eval_dataset, "eval_dataset")
        self._capo_train_dataset = train_dataset  # as given, before DPOTrainer tokenises and drops rows
        pairs = len(train_dataset) if isinstance(train_dataset, Dataset) else 0
        self._capo_packing: dict[bool, PaddingFree] = {}
        self._capo_padding_free, args.padding_free = args.padding_free, False  # DPOTrainer would warn that it pads
        super().__init__(model, ref_model, args, data_collator, train_dataset, eval_dataset, *rest, **kw)
        check_adapters(self.model if self.ref_model is None else None)
        args.padding_free = self._capo_padding_free
        self.data_collator = PairCollator(self.data_collator)
        if args.noise_rate == "auto":
            self.add_callback(NoiseRateEstimator(groups, pairs))
            if pairs and (args.witness != "none" or SWAPPED in train_dataset.column_names):
                self.noise_rate_estimator.add_evidence(*evidence(train_dataset))
        self._capo_window, self._capo_evaluation = PairMetrics(self.accelerator), PairMetrics(self.accelerator)
        self._capo_agrees_with_trl = False

    @property
    def noise_rate_estimator(self) -> NoiseRateEstimator | None:
        """The estimator, or None with a fixed noise rate, looked up each time because resuming replaces it."""
        return next((c for c in self.callback_handler.callbacks if isinstance(c, NoiseRateEstimator)), None)

    def compute_ref_log_probs(self, model, inputs):
        return super().compute_ref_log_probs(self._capo_packed(model), split_batch(inputs)[1])

    def _capo_packed(self, model: Callable[..., Any]) -> Callable[..., Any]:
        """Return the model, or with `padding_free` a function that calls it on packed rows."""
        if not self._capo_padding_free:
            return model
        is_reference = model is self.ref_model
        if is_reference not in self._capo_packing:
            exact = not (self.args.bf16 or self.args.fp16 or self.args.tf32)
            own = self.accelerator.unwrap_model(model)
            self._capo_packing[is_reference] = PaddingFree(own, exact, self.accelerator.gather)
        return partial(self._capo_packing[is_reference], model)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        (pairs, groups, weights, trusted, witness), inputs = split_batch(inputs)
        if not self.precompute_ref_logps:
            chosen, rejected = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
            inputs |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        call, policy_outputs = self._capo_packed(model), []

        def policy(**inputs):
            policy_outputs.append(call(**inputs))
            return policy_outputs[-1]

        # With this flag, DPOTrainer takes the reference log-probs from the batch.
        precomputed, self.precompute_ref_logps = self.precompute_ref_logps, True
        try:
            result = super().compute_loss(policy, inputs, return_outputs, num_items_in_batch)
        finally:
            self.precompute_ref_logps = precomputed
        dpo_loss, outputs = result if return_outputs else (result, None)
        output = policy_outputs[0]

        mask = inputs["completion_mask"][:, 1:]  # prompt-learning adapters prepend tokens: keep the last positions
        logps = sequence_log_probs(output.log_probs[:, -mask.size(1) :], mask, ld_alpha=self.ld_alpha)
        chosen, rejected = logps.chunk(2)
        ref_chosen, ref_rejected = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        divergence = {key: getattr(self, key) for key in ("beta", "f_divergence_type", "f_alpha_divergence_coef")}
        rho = relative_reward(chosen - ref_chosen, rejected - ref_rejected, **divergence)
        self._capo_check_agreement(dpo_loss, rho)
        groups = torch.full_like(rho, -1, dtype=torch.long) if groups is None else groups
        trusted = torch.zeros_like(rho, dtype=torch.bool) if trusted is None else trusted
        witness = torch.zeros_like(rho.detach()) if witness is None else witness
        rate, label_weight, group_rate = self._capo_noise_rates(groups, pairs, trusted, witness)
        parameters = {"noise_rate": rate, "temperature": self.args.confidence_temperature}
        losses, scale = capo_loss(rho, **parameters, label_weight=label_weight)
        losses = losses if weights is None else weights * losses
        confidence = (1.0 - rate) * confidence_scale(rho, **parameters)
        logps = (chosen.detach(), rejected.detach(), ref_chosen, ref_rejected)
        ours = (rho.detach(), rate, group_rate, confidence, scale, self._capo_index.group_names)
        batch = PairBatch(self.model.training, pairs, groups, weights, *logps, *ours, self.beta, dpo_loss.detach())
        loss = self._capo_objective(dpo_loss, batch, rho, losses, output, inputs)
        batch.loss = loss.detach()
        self._capo_report(batch, trusted)
        return (loss, outputs) if return_outputs else loss

    def _capo_objective(self, dpo_loss, batch: PairBatch, rho: Tensor, losses: Tensor, output, inputs) -> Tensor:
        """Replace the DPO pair losses in DPOTrainer's loss by (B,) `losses`. Subclasses may return another loss."""
        return dpo_loss + self._capo_sigmoid_weight * (losses + F.logsigmoid(rho)).mean()

    def _capo_noise_rates(self, groups: Tensor, pairs, trusted: Tensor, witness: Tensor) -> tuple[Tensor, ...]:
        """Return each pair's noise rate, its label weight and its group's noise rate, (B,) each."""
        estimator, ones = self.noise_rate_estimator, torch.ones_like(witness)
        if estimator is None:
            rate = self.args.noise_rate * ones
            return rate.masked_fill(trusted, 0.0), ones, rate
        group_rate = estimator.group_rates(groups)
        if not self.model.training:
            return group_rate, ones, group_rate
        return *estimator.pair_rates(groups, pairs, trusted, witness), group_rate

    def _capo_report(self, batch: PairBatch, trusted: Tensor) -> None:
        (self._capo_window if batch.training else self._capo_evaluation).add(batch)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, PairCallback):
                kwargs = {"model": self.model, "train_dataset": self._capo_train_dataset}
                callback.on_pairs(self.args, self.state, self.control, batch=batch, **kwargs)
        estimator = self.noise_rate_estimator
        if estimator is not None and batch.training:
            rho = batch.rho if batch.weight is None else batch.rho.masked_fill(batch.weight == 0, torch.nan)
            estimator.add(rho, batch.scale, batch.groups, batch.pairs, trusted)
            if self.accelerator.sync_gradients:
                estimator.end_step(self.accelerator)

    def _capo_check_agreement(self, dpo_loss: Tensor, rho: Tensor) -> None:
        """Check on the first batch that our DPO pair losses average to DPOTrainer's loss, if it has no other term."""
        plain = self.loss_types == ["sigmoid"] and not self.use_weighting and not self.aux_loss_enabled
        if plain and not self._capo_agrees_with_trl:
            ours = self._capo_sigmoid_weight * -F.logsigmoid(rho.detach()).mean()
            if not torch.allclose(dpo_loss.detach().float(), ours, rtol=1e-3, atol=1e-3, equal_nan=True):
                found = f"its loss of the first batch is {dpo_loss.item():.6f}, and trl-capo's {ours.item():.6f}"
                raise RuntimeError(f"TRL {trl.__version__}: {found}. Install a version that trl-capo is tested with.")
        self._capo_agrees_with_trl = True

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns += [column for column in COLUMNS if column not in self._signature_columns]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training:
            logs |= {key: value for key, value in self._capo_window.take().items() if key not in LOGGED_BY_TRL}
            rates = self.noise_rate_estimator.by_group() if self.noise_rate_estimator else {}
            logs |= {f"capo/noise_rate/{group}": rate for group, rate in rates.items()}
        super().log(logs, start_time)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = self._capo_index.add_columns(eval_dataset, "eval_dataset")
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        self._capo_evaluation = PairMetrics(self.accelerator)
        self._metrics["eval"].clear()
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        metrics = {key: sum(values) / len(values) for key, values in self._metrics["eval"].items()}
        own = self._capo_evaluation.take()
        # DPOTrainer logs these under `eval_`, whatever the data set's name is.
        self._metrics["eval"] |= {key: [own.get(key, value)] for key, value in metrics.items()}
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in (metrics | own).items()})
        return output
