"""The running estimate of noise rates, kept as a stateful callback so that it is part of every checkpoint."""

import base64
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import pad_across_processes
from safetensors.torch import load, save
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from trl_capo.core import noise_model

WINDOW_PAIRS = 400  # over which the model's temperature is taken to be constant; windows end with a step
SCALE_PAIRS, PRIOR_PAIRS = 100.0, 10.0  # over which the mean of a group's scales runs; that it begins with
MIN_MEAN_SCALE = 0.2  # lower bound of the mean scale, by which scales are divided


class NoiseRateEstimator(TrainerCallback, ExportableState):
    """Estimates the noise rate of all pairs, of every group and of every pair while a model trains.

    The fit (docs/method.md, eq. 6) uses every pair once, with the relative reward that it has before the model learns
    from it, and is frozen from the second epoch on. It starts from a witness's, if there is one (eq. 8). The model's
    first view of each pair is stored, because later the model has seen the label (eq. 7). Rates change between
    optimiser steps only, equally on all processes.

    Args:
        group_names: the groups, in the order of the group numbers.
        pairs: number of training pairs; 0 for a stream, whose pairs cannot be recognised.
        saved: what `state` saved.

    Attributes:
        noise_rates: (1 + G,) rates in [0, 0.5] of all pairs and of every group; 0.25 at the start.
    """

    def __init__(self, group_names: Sequence[str], pairs: int = 0, saved: str | None = None) -> None:
        self.group_names, self.pairs = list(group_names), pairs
        self._rate_grid, self._slope_grid = torch.tensor(noise_model.NOISE_RATES), torch.tensor(noise_model.SLOPES)
        self._temperature_grid = torch.tensor(noise_model.TEMPERATURES)
        rows, rates, temperatures = 1 + len(self.group_names), len(self._rate_grid), len(self._temperature_grid)
        self._carried_loglik = torch.zeros(rows, rates)
        self._window_loglik = torch.zeros(rows, rates, temperatures)
        self._slopes, self._window_pairs = torch.zeros(rows), torch.tensor(0)
        self._temperature_posterior = torch.zeros(temperatures)  # of the last finished window; 0: nothing is known
        self._scale_sums = torch.zeros(rows, 2)  # of scales, and of pairs
        self._first_log_odds = torch.full((pairs,), torch.nan, dtype=torch.float16)
        self.noise_rates = self._rate_grid.mean().repeat(rows)
        self._used_rates = self.noise_rates.clone()  # to train with: 0 for groups without evident noise
        values = load(base64.b64decode(saved)) if isinstance(saved, str) else {}
        if saved is not None and values.keys() != set(self._SAVED):
            raise ValueError("resume_from_checkpoint: an earlier trl-capo wrote it, so start from the model.")
        vars(self).update(values)
        self._in_first_epoch, self._step = True, []

    _SAVED = ("_carried_loglik", "_window_loglik", "_slopes", "_window_pairs", "_temperature_posterior")
    _SAVED += ("_scale_sums", "_first_log_odds", "noise_rates", "_used_rates")

    def state(self) -> dict[str, Any]:
        saved = base64.b64encode(save({name: getattr(self, name).cpu() for name in self._SAVED})).decode()
        return {"args": {"group_names": self.group_names, "pairs": self.pairs, "saved": saved}, "attributes": {}}

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        # Transformers saves only the states that it finds here, and a checkpoint of DPOTrainer has none.
        restored = state.stateful_callbacks.setdefault(type(self).__name__, self.state())["args"]
        if (restored["group_names"], restored["pairs"]) != (self.group_names, self.pairs):
            raise ValueError(
                f"resume_from_checkpoint: the checkpoint is of {restored['pairs']:,} pairs in the groups "
                f"{restored['group_names']}, not {self.pairs:,} in {self.group_names}. Resume with the same data."
            )
        self.__init__(**restored)

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self._in_first_epoch = state.epoch is None or state.epoch < 1.0

    def add_evidence(self, groups: Tensor, trust: Tensor, witness: Tensor) -> None:
        """Take in what is known of N pairs before the first step: (N,) group numbers, codes of `read_trust`, and x."""
        grid, checks = (self._rate_grid, self._slope_grid), torch.zeros_like(self._carried_loglik)
        loglik = torch.zeros(*checks.shape, len(self._slope_grid))
        for part in torch.arange(len(witness)).split(4096):
            added = noise_model.witness_log_likelihood(witness[part], *grid, trust[part] > 0)
            loglik.index_add_(0, groups[part] + 1, added)
        for code, logs in ((2, torch.log1p(-self._rate_grid)), (3, self._rate_grid.log())):
            checks += torch.bincount(groups[trust == code] + 1, minlength=len(checks))[:, None] * logs
        checks[0], loglik[0] = checks.sum(dim=0), loglik.sum(dim=0)
        fitted, self._slopes = noise_model.fit_witness(loglik + checks[:, :, None], *grid)
        self._carried_loglik = fitted if self._slopes.any() else checks
        if self._carried_loglik.any():
            self._fit_rates()

    def group_rates(self, groups: Tensor) -> Tensor:
        """Return each pair's group rate, (B,); the overall rate for groups absent from training, and for -1."""
        return self.noise_rates[self._rows(groups)]

    def pair_rates(self, groups: Tensor, pairs: Tensor | None, trusted: Tensor, witness: Tensor) -> tuple[Tensor, ...]:
        """Compute each pair's own noise rate e_i in [0, 0.5] and label weight (1 - 2 e_i) / m, (B,) each (eq. 7).

        Args:
            groups: (B,) group numbers, -1 for none.
            pairs: (B,) numbers of training pairs, or None for a stream.
            trusted: (B,) whether the user has checked the label, whose rate is then 0.
            witness: (B,) x, 0 where there is none.
        """
        rows = self._rows(groups)
        first = torch.zeros_like(witness) if pairs is None else self._first_log_odds[pairs].float().nan_to_num()
        log_odds = torch.where(self._slopes[rows] == 0, first, self._slopes[rows] * witness)
        rates = torch.sigmoid(torch.logit(self._used_rates[rows]) - log_odds).clamp(max=0.5).masked_fill(trusted, 0.0)
        return rates, (1.0 - 2.0 * rates) / self._mean_scales(groups)

    def _mean_scales(self, groups: Tensor) -> Tensor:
        """Return the running mean m of the scales of each pair's group before they are divided by it, (B,)."""
        rows, (scales, pairs) = self._rows(groups), self._scale_sums.unbind(dim=1)
        mean = (scales + PRIOR_PAIRS * (1.0 - 2.0 * self._used_rates)) / (pairs + PRIOR_PAIRS)
        return mean.clamp(min=MIN_MEAN_SCALE)[rows]

    def add(self, rho: Tensor, scale: Tensor, groups: Tensor, pairs: Tensor | None, trusted: Tensor) -> None:
        """Add a micro-batch of a training step; (B,) relative rewards that are not finite carry no information."""
        pairs = torch.full_like(groups, -1) if pairs is None else pairs
        numbers = torch.stack([groups, pairs, trusted.long()], dim=1)
        self._step.append((numbers, torch.stack([rho.detach().float(), scale], dim=1)))

    def end_step(self, accelerator: Accelerator) -> None:
        """Take in the pairs of an optimiser step from all processes, and fit. All processes call it together."""
        if not self._step:
            return
        numbers, values = (torch.cat(part) for part in zip(*self._step, strict=True))
        self._step = []
        if accelerator.num_processes > 1:  # a padded row's relative reward is NaN, which carries no information
            numbers = accelerator.gather(pad_across_processes(numbers, pad_index=-1))
            values = accelerator.gather(pad_across_processes(values, pad_index=torch.nan))
        (groups, pairs, trusted), (rho, scale) = numbers.unbind(dim=1), values.unbind(dim=1)
        trusted, known = trusted > 0, rho.isfinite()
        scale = torch.where(known, scale * self._mean_scales(groups), 0.0)
        rows = torch.arange(-1, len(self.group_names), device=rho.device)[:, None]
        member = ((rows == -1) | (rows == groups)).to(rho.dtype)  # (1 + G, B)
        added = member @ torch.stack([scale, known.to(rho.dtype)], dim=1)
        self._scale_sums = self._scale_sums * torch.exp(-added[:, 1:] / SCALE_PAIRS) + added
        if not self._in_first_epoch:
            return
        first = noise_model.label_log_odds(rho, self._temperature_posterior, self._temperature_grid)
        agreement = noise_model.agreement_log_likelihood(rho, self._rate_grid, self._temperature_grid, trusted)
        self._window_loglik = self._window_loglik + torch.einsum("rb,bet->ret", member, agreement)
        self._window_pairs = self._window_pairs + known.sum()
        if self.pairs:
            new = known & self._first_log_odds[pairs].isnan()
            self._first_log_odds[pairs[new]] = first[new].to(self._first_log_odds.dtype)
        loglik, posterior = self._fit_rates()
        ends = self._window_pairs >= WINDOW_PAIRS  # a tensor, so that the CPU need not wait for a GPU
        self._carried_loglik = torch.where(ends, loglik, self._carried_loglik)
        self._temperature_posterior = torch.where(ends, posterior, self._temperature_posterior)
        self._window_loglik = torch.where(ends, 0.0, self._window_loglik)
        self._window_pairs = torch.where(ends, 0, self._window_pairs)

    def _fit_rates(self) -> tuple[Tensor, Tensor]:
        """Fit the rates, and return the rest of the fit. Training uses 0 where the lowest is more likely than not."""
        logliks = (self._carried_loglik, self._window_loglik)
        posterior, *rest = noise_model.fit_noise_rates(*logliks, self._rate_grid, self._temperature_grid)
        self.noise_rates = posterior @ self._rate_grid
        self._used_rates = self.noise_rates.masked_fill(posterior[:, 0] > 0.5, 0.0)
        return tuple(rest)

    def _rows(self, groups: Tensor) -> Tensor:
        """Return the row, (B,), of each pair's group in the fits, or 0 (all pairs) if training lacks the group."""
        self._move_to(groups.device)
        return torch.where(groups < len(self.group_names), groups + 1, 0)

    def by_group(self) -> dict[str, float]:
        """Return the noise rate of every group that has been seen."""
        found = zip(self.group_names, self.noise_rates[1:].tolist(), self._scale_sums[1:, 1].tolist(), strict=True)
        return {name: rate for name, rate, pairs in found if pairs}

    def _move_to(self, device: torch.device) -> None:
        if self.noise_rates.device != device:
            for name, value in vars(self).items():
                if isinstance(value, Tensor):
                    setattr(self, name, value.to(device))
