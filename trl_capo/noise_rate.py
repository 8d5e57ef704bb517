"""The running estimate of noise rates and temperature, as part of a training's state."""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from trl_capo.agreement import NOISE_RATES, TEMPERATURES, fit_noise_rates, fit_temperature, log_likelihood

MEMORY = 800.0
"""How many pairs the temperature's estimate remembers: the model's rewards grow while it learns."""


class NoiseRateEstimate(TrainerCallback, ExportableState):
    """Noise rates of all pairs and of every group, and the confidence temperature, fitted while training.

    The fit (docs/method.md, eq. 6) uses every pair once, as the model first sees it; from the second epoch on it is
    frozen. It is kept in the trainer state of every checkpoint and restored when a training is resumed. Rates and
    temperature move between optimiser steps only.

    Args:
        rate_prior: mean of the prior of the overall noise rate, in (0, 0.5].
        noise_rate: a rate that is known, or None to fit it.
        temperature: a temperature that is known, or None to fit it.
        saved: what `state` saved.
    """

    def __init__(
        self,
        rate_prior: float = 0.1,
        noise_rate: float | None = None,
        temperature: float | None = None,
        saved: dict[str, Any] | None = None,
    ) -> None:
        self._arguments = {"rate_prior": rate_prior, "noise_rate": noise_rate, "temperature": temperature}
        self._grid_rates = torch.tensor(NOISE_RATES if noise_rate is None else [noise_rate])
        self._grid_temperatures = torch.tensor(TEMPERATURES if temperature is None else [temperature])
        self.labels: list[str] = list((saved or {}).get("labels", []))
        self._surface = torch.tensor((saved or {"surface": []})["surface"])
        self._sums = torch.tensor((saved or {"sums": []})["sums"])
        if saved is None:
            self._surface = torch.zeros(len(self._grid_rates), len(self._grid_temperatures))
            self._sums = torch.zeros(1, len(self._grid_rates))
        self._learning = True
        self._step: tuple[Tensor, Tensor, Tensor] | None = None
        self._fit()

    def state(self) -> dict[str, Any]:
        saved = {"labels": self.labels, "surface": self._surface.tolist(), "sums": self._sums.tolist()}
        return {"args": self._arguments | {"saved": saved}, "attributes": {}}

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        saved = state.stateful_callbacks.get(type(self).__name__)
        if saved is not None:
            self.__init__(**saved["args"])
        self._step = None

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self._learning = state.epoch is None or state.epoch < 1.0

    def rates(self, groups: Tensor) -> Tensor:
        """(B,) the noise rate of every pair: its group's; the overall one for group -1 and for new groups."""
        self._to(groups.device)
        known = groups < len(self.noise_rates) - 1
        return self.noise_rates[torch.where(known, groups + 1, 0)]

    def add(self, rho: Tensor, groups: Tensor, labels: Sequence[str]) -> None:
        """Add a micro-batch of a training step: (B,) relative rewards and groups; `labels` names all known groups."""
        if not self._learning:
            return
        self._to(rho.device)
        self._align(labels)
        rho = rho.detach().float()
        surface = log_likelihood(rho, self._grid_rates, self._grid_temperatures).sum(dim=0)
        by_rate = log_likelihood(rho, self._grid_rates, self.temperature[None])[:, :, 0]
        rows = torch.arange(-1, len(labels), device=rho.device)[:, None]
        sums = torch.where(((rows == -1) | (rows == groups))[:, :, None], by_rate, 0.0).sum(dim=1)
        step = (surface, sums, torch.tensor(float(len(rho)), device=rho.device))
        if self._step is not None:
            before = (self._step[0], _more_rows(self._step[1], len(sums)), self._step[2])
            step = tuple(new + old for new, old in zip(step, before, strict=True))
        self._step = step

    def end_step(self, accelerator: Accelerator) -> None:
        """Take in the pairs of an optimiser step, of all processes, and fit."""
        if self._step is None:
            return
        surface, sums, pairs = accelerator.reduce(self._step, reduction="sum")
        self._step = None
        self._surface = surface + self._surface * torch.exp(-pairs / MEMORY)
        sums = sums + self._sums
        # Only differences matter: taking the best as 0 keeps float32 exact where it counts, however many pairs come.
        self._sums = sums - sums.amax(dim=1, keepdim=True)
        self._fit()

    def _align(self, labels: Sequence[str]) -> None:
        """Give the sums a row for every label, in this order: groups appear, and a resumed training may reorder."""
        if self.labels == list(labels):
            return
        sums = _more_rows(self._sums[:1], 1 + len(labels))
        for row, label in enumerate(self.labels, start=1):
            sums[1 + labels.index(label)] = self._sums[row]
        self._sums, self.labels = sums, list(labels)
        self._fit()

    def metrics(self) -> dict[str, float]:
        """What is logged beside the metrics of the pairs: the temperature, and the noise rate of every group."""
        rates = self.noise_rates[1:].tolist()
        metrics = {f"capo/noise_rate/{label}": rate for label, rate in zip(self.labels, rates, strict=True)}
        return {"capo/temperature": float(self.temperature)} | metrics

    def _fit(self) -> None:
        prior = self._arguments["rate_prior"]
        self.noise_rates = fit_noise_rates(self._sums, self._grid_rates, prior)
        self.temperature = fit_temperature(self._surface, self._grid_rates, self._grid_temperatures, prior)

    def _to(self, device: torch.device) -> None:
        if self._surface.device == device:
            return
        for name in ("_grid_rates", "_grid_temperatures", "_surface", "_sums", "noise_rates", "temperature"):
            setattr(self, name, getattr(self, name).to(device))


def _more_rows(rows: Tensor, count: int) -> Tensor:
    return torch.nn.functional.pad(rows, (0, 0, 0, count - len(rows)))
