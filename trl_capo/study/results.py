"""Read the finished runs of a study, and estimate accuracies and margins with intervals over seeds and test pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from trl_capo.common.intervals import Estimate, TwoLevelBootstrap, percentile_estimate
from trl_capo.study.plan import StudyPlan

ALL = "all"  # the name of all pairs together, next to the groups' names
MARGINS = "margins.npz"


@dataclass(frozen=True, eq=False)
class Cell:
    """The runs of one method under one noise for one number of epochs, one run per seed."""

    seeds: tuple[int, ...]
    margins: np.ndarray  # (seeds, pairs) of the test split, in units of reward
    labels: np.ndarray  # (pairs,) groups or ""
    results: Sequence[dict[str, Any]]  # the content of each result.json
    bootstrap: TwoLevelBootstrap  # shared by all cells

    @property
    def groups(self) -> list[str]:
        return sorted(set(self.labels.tolist()) - {""})

    def values(self, measure: str) -> np.ndarray:
        """Return the (seeds, pairs) margins, or for "accuracy" whether they are positive (a tie is an error)."""
        return (self.margins > 0 if measure == "accuracy" else self.margins).astype(np.float64)

    def member(self, group: str) -> np.ndarray:
        """Return the (pairs,) mask of a group, or of ALL pairs."""
        return (self.labels == group) | (group == ALL)


Key = tuple[float, str, str]  # epochs, noise and method


def read_cells(plan: StudyPlan) -> dict[Key, Cell]:
    """Read the finished runs of the grid; raise ValueError if there are none, or on different test pairs."""
    entries: dict[Key, list[tuple]] = {}
    labels, cells = None, {}
    for run in plan.grid_runs(plan.selected_rates()):
        if result := plan.result(run):
            with np.load(plan.folder(run) / MARGINS) as arrays:
                margins, own = arrays["margins"], arrays["labels"]
            labels = own if labels is None else labels
            if not np.array_equal(labels, own):
                raise ValueError(f"{plan.folder(run)} has other test pairs than other runs of the study")
            entries.setdefault((run.epochs, run.noise, run.method), []).append((run.seed, margins, result))
    if labels is None:
        raise ValueError(f"output_dir={plan.output_dir!r} has no finished run of the grid; run the study first")
    bootstrap = TwoLevelBootstrap(labels)
    for key, found in entries.items():
        seeds, margins, results = zip(*sorted(found, key=lambda entry: entry[0]), strict=True)
        cells[key] = Cell(seeds, np.stack(margins), labels, results, bootstrap)
    return cells


def tidy_table(cells: Mapping[Key, Cell]) -> pd.DataFrame:
    """Return one row per run and group, and per run for all pairs together."""
    rows = []
    for (epochs, noise, method), cell in cells.items():
        for seed, margins, result in zip(cell.seeds, cell.margins, cell.results, strict=True):
            for group in [ALL, *cell.groups]:
                values = margins[cell.member(group)]
                row = {"method": method, "noise": noise, "epochs": epochs, "seed": seed}
                row |= {"learning_rate": result["settings"]["learning_rate"], "group": group, "pairs": len(values)}
                row |= {"accuracy": float((values > 0).mean()), "margin": float(values.mean())}
                row["noise_rate_estimate"] = (result["noise_rates"] or {}).get(group)
                row["noise_rate_true"] = result["noise_shares"].get(group)
                row |= {"steps": result["steps"], "seconds": round(result["seconds"], 1)}
                rows.append(row | {f"version_{name}": number for name, number in result["versions"].items()})
    return pd.DataFrame(rows)


def estimate(
    cell: Cell, measure: str, group: str = ALL, baseline: Cell | None = None, ratio: bool = False
) -> Estimate | None:
    """Estimate the mean "accuracy" or "margin" on the test split, or its difference from a baseline, or the ratio.

    Both are compared on the same pairs and the seeds that both have. Returns None if there is no such seed, or the
    baseline of a ratio is not positive.
    """
    if not (seeds := sorted(set(cell.seeds) & set((baseline or cell).seeds))):
        return None
    ours, theirs = (c.values(measure)[[c.seeds.index(seed) for seed in seeds]] for c in (cell, baseline or cell))
    member = cell.member(group)
    if not ratio:
        values = ours if baseline is None else ours - theirs
        return percentile_estimate(values[:, member].mean(), cell.bootstrap.draws(values, seeds, member))
    if theirs[:, member].mean() <= 0:
        return None
    tops, bottoms = (cell.bootstrap.draws(values, seeds, member) for values in (ours, theirs))
    drawn = np.divide(tops, bottoms, out=np.full_like(tops, np.inf), where=bottoms > 0)
    return percentile_estimate(ours[:, member].mean() / theirs[:, member].mean(), drawn)


def worst_group(cell: Cell) -> str:
    """Return the group with the lowest accuracy over the seeds."""
    return min(cell.groups, key=lambda group: cell.values("accuracy")[:, cell.member(group)].mean())
