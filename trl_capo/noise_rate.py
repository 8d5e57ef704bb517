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

from trl_capo.agreement import NOISE_RATES, TEMPERATURES, evidence, fit, log_likelihood

BLOCK_PAIRS = 400.0
"""Pairs in a block, over which the model is taken to be equally sure of itself; blocks end with a step."""


class NoiseRateEstimate(TrainerCallback, ExportableState):
    """Noise rates of all pairs, of every group, and of every pair that has been met, fitted while training.

    The fit (docs/method.md, eq. 6) uses every pair once, as the model first sees it; from the second epoch on it is
    frozen. What the model thought of a pair then is remembered: it tells more of the pair's label than what it thinks
    after it has learned from it (eq. 7). All of it is kept in the trainer state of every checkpoint and restored when
    a training is resumed. Rates move between optimiser steps only.

    Args:
        saved: what `state` saved.
    """

    def __init__(self, saved: dict[str, Any] | None = None) -> None:
        self._grid = [torch.tensor(NOISE_RATES), torch.tensor(TEMPERATURES)]
        self.labels: list[str] = list(saved["labels"]) if saved else []
        self._past = torch.tensor(saved["past"]) if saved else torch.zeros(1, len(NOISE_RATES))
        self._block = torch.tensor(saved["block"]) if saved else torch.zeros(1, *map(len, self._grid))
        self._pairs = torch.tensor(saved["pairs"] if saved else 0)
        # Of the last finished block: the first pairs are met by a model of which nothing is known.
        self._shares = torch.tensor(saved["shares"]) if saved else torch.zeros(len(TEMPERATURES))
        self._evidence = _decode(saved["evidence"]) if saved else torch.empty(0, dtype=torch.float16)
        self._learning = True
        self._step: tuple[Tensor, Tensor] | None = None
        self._step_labels: list[str] = []
        self._met: list[tuple[Tensor, Tensor]] = []
        self.noise_rates = torch.tensor(saved["rates"]) if saved else fit(self._past, self._block, *self._grid)[0]

    def state(self) -> dict[str, Any]:
        kept = {"past": self._past, "block": self._block, "pairs": self._pairs, "shares": self._shares}
        kept["rates"] = self.noise_rates
        saved = {"labels": self.labels, "evidence": _encode(self._evidence)}
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
        self._to(groups.device)
        place = {label: row for row, label in enumerate(self.labels, start=1)}
        rows = torch.tensor([*(place.get(label, 0) for label in labels), 0], device=groups.device)
        return self.noise_rates[rows[groups]]

    def make_room(self, numbered: int, device: torch.device) -> None:
        """Be ready for pairs with the numbers 0 to `numbered` - 1."""
        self._to(device)
        if numbered > len(self._evidence):
            new = self._evidence.new_full((numbered - len(self._evidence),), torch.nan)
            self._evidence = torch.cat([self._evidence, new])

    def own_rates(self, pairs: Tensor, rates: Tensor) -> tuple[Tensor, Tensor]:
        """The noise rate of every pair by itself, where it has been met before, and the weight of its loss (eq. 7).

        Args:
            pairs: (B,) pair numbers, for which there is room.
            rates: (B,) the noise rates of their groups.

        Returns:
            (B,) rates e in [0, 0.5], and (B,) weights: 1 - 2e, how much a label tells, and 1 for pairs not met before.
        """
        known = self._evidence[pairs].float()
        own = torch.sigmoid(torch.logit(rates) - known).clamp(max=0.5)
        return torch.where(known.isnan(), rates, own), torch.where(known.isnan(), 1.0, 1.0 - 2.0 * own)

    def add(self, rho: Tensor, groups: Tensor, labels: Sequence[str], pairs: Tensor | None = None) -> None:
        """Add a micro-batch of a training step: (B,) relative rewards, groups and numbers; `labels` as in `rates`."""
        if not self._learning:
            return
        self._to(rho.device)
        rho = rho.detach().float()
        likelihood = log_likelihood(rho, *self._grid)
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
        self._block = self._block + _more_rows(sums, len(self._block))
        self._pairs = self._pairs + pairs
        self.noise_rates, likelihoods, shares = fit(self._past, self._block, *self._grid)
        ends = self._pairs >= BLOCK_PAIRS  # a tensor, so that no GPU is waited for
        self._past, self._shares = torch.where(ends, likelihoods, self._past), torch.where(ends, shares, self._shares)
        self._block, self._pairs = torch.where(ends, 0.0, self._block), torch.where(ends, 0, self._pairs)

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
            self._past, self._block = (self._in_order(sums, order) for sums in (self._past, self._block))
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
            self.noise_rates = self.noise_rates.to(device)


def _more_rows(rows: Tensor, count: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(count - len(rows), *rows.shape[1:])])


def _encode(values: Tensor) -> str:
    return base64.b64encode(values.cpu().numpy().tobytes()).decode()


def _decode(text: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype=np.float16).copy())
