"""Exact metrics: sums over pairs, in which every pair counts once however the pairs were cut into batches.

Nothing here copies to the host until `means` or `pairs` is asked for, so that recording itself makes no device wait.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

SUMMARIES = ("macro", "worst", "ties")
"""Names that stand beside the groups' own in metric keys."""


class PairWindow:
    """Sums, minima and maxima of per-pair values: of a step, a logging window, an evaluation; over all and by group.

    The content is one vector, so that it can be gathered from other processes in one call and merged.

    Args:
        names: names of the per-pair values, in the order of the columns of `add`'s rows.
        extremes: those whose minimum and maximum over all pairs are kept beside their mean.
    """

    def __init__(self, names: Sequence[str], extremes: Sequence[str] = ()) -> None:
        self.names = list(names)
        self.extremes = list(extremes)
        self._columns = [self.names.index(name) for name in extremes]
        self._sums: Tensor | None = None  # (1 + groups, 1 + names): all pairs first; the number of pairs first
        self._bounds: Tensor | None = None  # (2 * extremes,): negated minima, maxima

    def add(self, rows: Tensor, groups: Tensor, group_count: int) -> None:
        """Add pairs.

        Args:
            rows: (B, len(names)), one row a pair.
            groups: (B,) integers, each pair's group in [0, group_count), or -1 for none.
            group_count: how many groups are known; may grow from call to call.
        """
        rows = rows.detach().float()
        counted = torch.cat([torch.ones_like(rows[:, :1]), rows], dim=1)
        member = groups == torch.arange(group_count, device=rows.device)[:, None]
        # A sum of masked rows, not an indexed addition: its order, and so its last bits, are the same in every run.
        by_group = torch.where(member[:, :, None], counted, 0.0).sum(dim=1)
        bounded = rows[:, self._columns]
        self._merge(torch.cat([counted.sum(dim=0, keepdim=True), by_group]), torch.cat([-bounded, bounded], 1).amax(0))

    def merge(self, vectors: Tensor) -> None:
        """Add whole windows with one number of groups: (W, size), each row the `vector` of a window like this one."""
        bounds = 2 * len(self.extremes)
        split = vectors.shape[1] - bounds
        sums = vectors[:, :split].reshape(len(vectors), -1, 1 + len(self.names))
        self._merge(sums.sum(dim=0), vectors[:, split:].amax(dim=0))

    def _merge(self, sums: Tensor, bounds: Tensor) -> None:
        if self._sums is not None:
            if len(sums) < len(self._sums):
                raise ValueError(f"a window of {len(sums) - 1} groups cannot be added to one of {len(self._sums) - 1}")
            new_groups = (0, 0, 0, len(sums) - len(self._sums))
            sums = sums + torch.nn.functional.pad(self._sums, new_groups)
            bounds = torch.maximum(bounds, self._bounds)
        self._sums, self._bounds = sums, bounds

    @property
    def empty(self) -> bool:
        return self._sums is None

    @property
    def pairs(self) -> int:
        """How many pairs were added; copies to the host, as `means` does."""
        return 0 if self.empty else int(self._sums[0, 0])

    @property
    def vector(self) -> Tensor:
        """The content in one dimension, float32."""
        return torch.cat([self._sums.flatten(), self._bounds])

    def means(self) -> tuple[dict[str, float], list[dict[str, float]]]:
        """Means over all pairs, with `<name>_min` and `<name>_max` of the extremes, and the means of every group.

        An empty window gives none, and an empty group gives an empty dictionary. The one call that copies to the host.
        """
        if self.empty:
            return {}, []
        content = self._sums.double().cpu()
        means = [
            dict(zip(self.names, (row[1:] / row[0]).tolist(), strict=True)) if row[0] > 0 else {} for row in content
        ]
        overall = means[0]
        negated_minima, maxima = self._bounds.double().cpu().chunk(2)
        for name, negated, maximum in zip(self.extremes, negated_minima.tolist(), maxima.tolist(), strict=True):
            overall |= {f"{name}_min": -negated, f"{name}_max": maximum}
        return overall, means[1:]


def group_metrics(by_group: Sequence[dict[str, float]], labels: Sequence[str]) -> dict[str, float]:
    """Reward accuracy and margin of every group that has pairs, and the accuracies' macro mean and worst.

    Keys are `rewards/accuracies/<group>` and `rewards/margins/<group>`; no group may be called like one of SUMMARIES.
    """
    metrics = {}
    known = [(label, values) for label, values in zip(labels, by_group, strict=True) if values]
    for label, values in known:
        metrics[f"rewards/accuracies/{label}"] = values["rewards/accuracies"]
        metrics[f"rewards/margins/{label}"] = values["rewards/margins"]
    if known:
        accuracies = [values["rewards/accuracies"] for _, values in known]
        metrics["rewards/accuracies/macro"] = sum(accuracies) / len(accuracies)
        metrics["rewards/accuracies/worst"] = min(accuracies)
    return metrics
