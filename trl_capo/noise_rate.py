"""The running estimate of noise rates, as part of a training's state."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import reduce
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from trl_capo import reference
from trl_capo.agreement import NOISE_RATES, TEMPERATURES, evidence, fit, log_likelihood

BLOCK_PAIRS = 400.0
"""Pairs in a block, over which the model is taken to be equally sure of itself; blocks end with a step."""

LEAST_TOLD = 0.2
"""Of 1 - 2e, what a label tells on average, for the weights of pairs: where e is 1/2, no pair is to outweigh all."""


class NoiseRateEstimate(TrainerCallback, ExportableState):
    """Noise rates of all pairs, of every group, and of every pair that has been met, fitted while training.

    The fits (docs/method.md, eq. 6 and 8) use every pair once, as the model first sees it; from the second epoch on
    they are frozen. What the model thought of a pair then is remembered: it tells more of the pair's label than what
    it thinks after it has learned from it (eq. 7). All of it is kept in the trainer state of every checkpoint and
    restored when a training is resumed. Rates move between optimiser steps only.

    Args:
        saved: what `state` saved.
    """

    def __init__(self, saved: dict[str, Any] | None = None) -> None:
        self._grid = [torch.tensor(NOISE_RATES), torch.tensor(TEMPERATURES)]
        self._slopes, self._means = torch.tensor(reference.SLOPES), torch.tensor(reference.MEAN_SLOPES)
        self.labels: list[str] = list(saved["labels"]) if saved else []
        self._past = torch.tensor(saved["past"]) if saved else torch.zeros(1, len(NOISE_RATES))
        self._block = torch.tensor(saved["block"]) if saved else torch.zeros(1, *map(len, self._grid))
        self._pairs = torch.tensor(saved["pairs"] if saved else 0)
        of_slopes = (
            _decode(saved["reference"], np.float32) if saved else torch.zeros(len(NOISE_RATES) * len(self._slopes))
        )
        self._reference = of_slopes.view(-1, len(NOISE_RATES), len(self._slopes))
        # Of the last finished block: the first pairs are met by a model of which nothing is known.
        self._shares = torch.tensor(saved["shares"]) if saved else torch.zeros(len(TEMPERATURES))
        self._evidence = _decode(saved["evidence"], np.float16) if saved else torch.empty(0, dtype=torch.float16)
        self._learning = True
        self._step: tuple[Tensor, Tensor] | None = None
        self._step_labels: list[str] = []
        self._met: list[tuple[Tensor, Tensor]] = []
        self.noise_rates = torch.tensor(saved["rates"]) if saved else fit(self._past, self._block, *self._grid)[0]
        self._fit_slopes()

    def state(self) -> dict[str, Any]:
        kept = {"past": self._past, "block": self._block, "pairs": self._pairs, "shares": self._shares}
        kept["rates"] = self.noise_rates
        saved = {"labels": self.labels, "evidence": _encode(self._evidence), "reference": _encode(self._reference)}
        saved |= {name: tensor.tolist() for name, tensor in kept.items()}
        return {"args": {"saved": saved}, "attributes": {}}

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        # Transformers saves only the states that it finds here, and a checkpoint of DPOTrainer has none.
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        self.__init__(**saved["args"])
        self._step, self._met = None, []

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self._learning = state.epoch is None or state.epoch < 1.0

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        self.share()

    def rates(self, groups: Tensor, labels: Sequence[str]) -> Tensor:
        """(B,) the noise rate of every pair: its group's; the overall one for group -1 and for groups not met before.

        Args:
            groups: (B,) numbers of groups, places in `labels`, or -1.
            labels: the names of all groups known by now.
        """
        return self._row_rates[self._rows(groups, labels)]

    def _rows(self, groups: Tensor, labels: Sequence[str]) -> Tensor:
        """(B,) which row of the fits is each pair's: its group's, 0 for all pairs, -1 for a group not met yet."""
        self._to(groups.device)
        place = {label: row for row, label in enumerate(self.labels, start=1)}
        return torch.tensor([*(place.get(label, -1) for label in labels), 0], device=groups.device)[groups]

    @property
    def _row_rates(self) -> Tensor:
        """(2 + G,) noise rates of all pairs, of every group, and of a group that has not been met."""
        return torch.cat([self.noise_rates, self.noise_rates[:1]])

    def make_room(self, numbered: int, device: torch.device) -> None:
        """Be ready for pairs with the numbers 0 to `numbered` - 1."""
        self._to(device)
        if numbered > len(self._evidence):
            new = self._evidence.new_full((numbered - len(self._evidence),), torch.nan)
            self._evidence = torch.cat([self._evidence, new])

    def own_rates(
        self, groups: Tensor, labels: Sequence[str], pairs: Tensor | None, margin: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The noise rate of every pair by itself, and the weight that its label has by what it tells (eq. 7).

        Args:
            groups, labels: as in `rates`.
            pairs: (B,) pair numbers, for which there is room; None where pairs cannot be recognised.
            margin: (B,) standardised margins of the reference.

        Returns:
            (B,) rates e_i in [0, 0.5], and (B,) weights (1 - 2 e_i) / max(1 - 2e, LEAST_TOLD).
        """
        rows = self._rows(groups, labels)
        rates = self._row_rates[rows]
        known = torch.zeros_like(margin) if pairs is None else self._evidence[pairs].float().nan_to_num()
        odds = reference.belief(margin, known, self._of_slope[rows], self._slopes)
        own = torch.sigmoid(torch.logit(rates) - odds).clamp(max=0.5)
        return own, (1.0 - 2.0 * own) / (1.0 - 2.0 * rates).clamp(min=LEAST_TOLD)

    def add(
        self,
        rho: Tensor,
        groups: Tensor,
        labels: Sequence[str],
        pairs: Tensor | None = None,
        margin: Tensor | None = None,
    ) -> None:
        """Add a micro-batch of a training step.

        Args:
            rho: (B,) relative rewards; one that is not finite says nothing.
            groups, labels, pairs, margin: as in `own_rates`; without margins, nothing is learned of the reference.
        """
        if not self._learning:
            return
        self._to(rho.device)
        rho = rho.detach().float()
        margin = torch.zeros_like(rho) if margin is None else torch.where(rho.isfinite(), margin, 0.0)
        known = evidence(rho, self._shares, self._grid[1])
        of_reference = reference.log_likelihood(margin, known, self._grid[0], self._slopes)
        likelihood = torch.cat([log_likelihood(rho, *self._grid), of_reference], dim=2)
        rows = torch.arange(-1, len(labels), device=rho.device)[:, None]
        member = ((rows == -1) | (rows == groups)).to(likelihood.dtype)
        sums = (member @ likelihood.flatten(1)).unflatten(1, likelihood.shape[1:])
        count = rho.isfinite().sum()
        if self._step is not None:
            sums, count = sums + _more_rows(self._step[0], len(sums)), count + self._step[1]
        self._step, self._step_labels = (sums, count), list(labels)
        if pairs is not None:
            self._met.append((pairs, rho))

    def end_step(self, accelerator: Accelerator) -> None:
        """Take in the pairs of an optimiser step, of all processes, and fit."""
        if self._step is None:
            return
        sums, pairs = accelerator.reduce(self._step, reduction="sum")
        self._step = None
        for pairs_met, rho in self._met:
            self._remember(pairs_met, rho)
        self._met = []
        self._align(self._step_labels)
        of_rho, of_reference = _more_rows(sums, len(self._block)).split([len(TEMPERATURES), len(self._slopes)], dim=2)
        self._block, self._reference = self._block + of_rho, self._reference + of_reference
        self._pairs = self._pairs + pairs
        self.noise_rates, likelihoods, shares = fit(self._past, self._block, *self._grid)
        self._fit_slopes()
        ends = self._pairs >= BLOCK_PAIRS  # a tensor, so that no GPU is waited for
        self._past, self._shares = torch.where(ends, likelihoods, self._past), torch.where(ends, shares, self._shares)
        self._block, self._pairs = torch.where(ends, 0.0, self._block), torch.where(ends, 0, self._pairs)

    def _fit_slopes(self) -> None:
        """How likely the slopes are: (2 + G, A), the last of a group that has not been met."""
        self._of_slope = reference.posteriors(
            self._reference, self.noise_rates, self._grid[0], self._slopes, self._means
        )

    def _remember(self, pairs: Tensor, rho: Tensor) -> None:
        """Keep the evidence of the pairs, (B,) numbers and relative rewards, that are new."""
        before = self._evidence[pairs]
        found = evidence(rho, self._shares, self._grid[1]).to(before.dtype)
        self._evidence[pairs] = torch.where(before.isnan(), found, before)

    def share(self) -> None:
        """Let every process know what the others have met; all of them call it together."""
        if PartialState().num_processes > 1:
            met = ~self._evidence.isnan()
            both = torch.stack([torch.where(met, self._evidence, 0.0), met]).float()
            total, processes = reduce(both, reduction="sum")  # where several have met a pair, they know the same of it
            self._evidence = torch.where(processes > 0, total / processes, torch.nan).to(self._evidence.dtype)

    def _align(self, labels: list[str]) -> None:
        """Give the sums a row for every label, these first: groups appear, and a resumed stream may reorder them."""
        order = labels + [label for label in self.labels if label not in labels]
        if order != self.labels:
            kept = (self._past, self._block, self._reference)
            self._past, self._block, self._reference = (self._in_order(sums, order) for sums in kept)
            self.labels = order

    def _in_order(self, sums: Tensor, order: list[str]) -> Tensor:
        placed = _more_rows(sums[:1], 1 + len(order))
        for row, label in enumerate(self.labels, start=1):
            placed[1 + order.index(label)] = sums[row]
        return placed

    @property
    def calibration(self) -> tuple[Tensor, Tensor]:
        """(T,) how likely the curve's temperatures were in the last finished block, all 0 before, and these, (T,)."""
        return self._shares, self._grid[1]

    def by_group(self) -> dict[str, float]:
        """The noise rate of every group."""
        return dict(zip(self.labels, self.noise_rates[1:].tolist(), strict=True))

    def _to(self, device: torch.device) -> None:
        if self._block.device != device:
            self._grid = [values.to(device) for values in self._grid]
            self._past, self._block, self._pairs = (kept.to(device) for kept in (self._past, self._block, self._pairs))
            self._shares, self._evidence = self._shares.to(device), self._evidence.to(device)
            self.noise_rates, self._of_slope = self.noise_rates.to(device), self._of_slope.to(device)
            kept = (self._reference, self._slopes, self._means)
            self._reference, self._slopes, self._means = (tensor.to(device) for tensor in kept)


def _more_rows(rows: Tensor, count: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(count - len(rows), *rows.shape[1:])])


def _encode(values: Tensor) -> str:
    return base64.b64encode(values.cpu().numpy().tobytes()).decode()


def _decode(text: str, dtype: type) -> Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype=dtype).copy())
