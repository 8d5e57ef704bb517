"""The running estimate of noise rates, as part of a training's state."""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from trl_capo.agreement import NOISE_RATES, TEMPERATURES, fit, log_likelihood

MEMORY = 2400.0
"""How many pairs the estimate remembers: what a model says early in its training says little about the labels."""


class NoiseRateEstimate(TrainerCallback, ExportableState):
    """Noise rates of all pairs and of every group, fitted while training.

    The fit (docs/method.md, eq. 6) uses every pair once, as the model first sees it; from the second epoch on it is
    frozen. It is kept in the trainer state of every checkpoint and restored when a training is resumed. Rates move
    between optimiser steps only.

    Args:
        saved: what `state` saved.
    """

    def __init__(self, saved: dict[str, Any] | None = None) -> None:
        self._grid = [torch.tensor(NOISE_RATES), torch.tensor(TEMPERATURES)]
        self.labels: list[str] = list(saved["labels"]) if saved else []
        self._sums = torch.tensor(saved["sums"]) if saved else torch.zeros(1, *map(len, self._grid))
        self._learning = True
        self._step: tuple[Tensor, Tensor] | None = None
        self._step_labels: list[str] = []
        self._fit()

    def state(self) -> dict[str, Any]:
        saved = {"labels": self.labels, "sums": self._sums.tolist()}
        return {"args": {"saved": saved}, "attributes": {}}

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        # Transformers saves only the states that it finds here, and a checkpoint of DPOTrainer has none.
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        self.__init__(**saved["args"])
        self._step = None

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self._learning = state.epoch is None or state.epoch < 1.0

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

    def add(self, rho: Tensor, groups: Tensor, labels: Sequence[str]) -> None:
        """Add a micro-batch of a training step: (B,) relative rewards and groups; `labels` as in `rates`."""
        if not self._learning:
            return
        self._to(rho.device)
        likelihood = log_likelihood(rho.detach().float(), *self._grid)
        rows = torch.arange(-1, len(labels), device=rho.device)[:, None]
        member = ((rows == -1) | (rows == groups)).to(likelihood.dtype)
        sums = (member @ likelihood.flatten(1)).unflatten(1, likelihood.shape[1:])
        pairs = rho.isfinite().sum()  # of the others nothing is learned, so for them nothing is forgotten
        if self._step is not None:
            sums, pairs = sums + _more_rows(self._step[0], len(sums)), pairs + self._step[1]
        self._step, self._step_labels = (sums, pairs), list(labels)

    def end_step(self, accelerator: Accelerator) -> None:
        """Take in the pairs of an optimiser step, of all processes, and fit."""
        if self._step is None:
            return
        sums, pairs = accelerator.reduce(self._step, reduction="sum")
        self._step = None
        self._align(self._step_labels)
        self._sums = self._sums * torch.exp(-pairs / MEMORY) + _more_rows(sums, len(self._sums))
        self._fit()

    def _align(self, labels: list[str]) -> None:
        """Give the sums a row for every label, these first: groups appear, and a resumed stream may reorder them."""
        order = labels + [label for label in self.labels if label not in labels]
        if order != self.labels:
            sums = _more_rows(self._sums[:1], 1 + len(order))
            for row, label in enumerate(self.labels, start=1):
                sums[1 + order.index(label)] = self._sums[row]
            self._sums, self.labels = sums, order

    def by_group(self) -> dict[str, float]:
        """The noise rate of every group."""
        return dict(zip(self.labels, self.noise_rates[1:].tolist(), strict=True))

    def _fit(self) -> None:
        self.noise_rates = fit(self._sums, *self._grid)

    def _to(self, device: torch.device) -> None:
        if self._sums.device != device:
            self._grid = [values.to(device) for values in self._grid]
            self._sums = self._sums.to(device)
            self._fit()


def _more_rows(rows: Tensor, count: int) -> Tensor:
    return torch.nn.functional.pad(rows, (0, 0, 0, 0, 0, count - len(rows)))
