"""Exact metrics: sums over pairs, in which every pair counts once however the pairs were cut into batches.

Nothing here copies to the host until `summary` is called, so that recording costs a training step no synchronisation.
"""

import torch
from torch import Tensor


class PairWindow:
    """Running sums, minima and maxima of per-pair values over a window of pairs (a step, a logging window, an evaluation).

    The window's content is one vector, so that it can be gathered from other processes in one call and merged.

    Args:
        names: names of the per-pair values, in the order of the columns of `add`'s rows.
        extremes: those whose minimum and maximum are kept beside their mean.
    """

    def __init__(self, names: tuple[str, ...], extremes: tuple[str, ...] = ()) -> None:
        self.names = names
        self.extremes = extremes
        self._columns = [names.index(name) for name in extremes]
        self._sums: Tensor | None = None
        self._bounds: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Add pairs: (B, len(names)), one row per pair."""
        rows = rows.detach().float()
        bounded = rows[:, self._columns]
        pairs = rows.new_full((1,), len(rows))
        self._merge(
            torch.cat([pairs, rows.sum(dim=0)])[None], torch.cat([-bounded, bounded], dim=1).amax(dim=0, keepdim=True)
        )

    def merge(self, vectors: Tensor) -> None:
        """Add whole windows: (W, size), one row per window, each the `vector` of a window like this one."""
        size = 1 + len(self.names)
        self._merge(vectors[:, :size], vectors[:, size:])

    def _merge(self, sums: Tensor, bounds: Tensor) -> None:
        if self._sums is not None:
            sums = torch.cat([self._sums[None], sums])
            bounds = torch.cat([self._bounds[None], bounds])
        self._sums, self._bounds = sums.sum(dim=0), bounds.amax(dim=0)

    @property
    def empty(self) -> bool:
        return self._sums is None

    @property
    def vector(self) -> Tensor:
        """The content: number of pairs, the sums, the negated minima, the maxima; (size,), float32."""
        return torch.cat([self._sums, self._bounds])

    def sum(self, name: str) -> Tensor:
        """The sum of one value over the window's pairs, a scalar on the device."""
        return self._sums[1 + self.names.index(name)]

    @property
    def pairs(self) -> Tensor:
        """How many pairs the window holds, a scalar on the device."""
        return self._sums[0]

    def summary(self) -> dict[str, float]:
        """Mean of every value, and `<name>_min`, `<name>_max` of those with extremes; empty for an empty window."""
        if self.empty:
            return {}
        pairs, *sums = self._sums.tolist()
        bounds = self._bounds.tolist()
        summary = {name: total / pairs for name, total in zip(self.names, sums, strict=True)}
        for name, negated_minimum, maximum in zip(
            self.extremes, bounds, bounds[len(self.extremes) :], strict=False
        ):
            summary |= {f"{name}_min": -negated_minimum, f"{name}_max": maximum}
        return summary
