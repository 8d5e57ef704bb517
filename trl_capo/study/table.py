"""The numbers of a study: what its runs measured, put together with intervals over seeds and pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from trl_capo.study.files import read_json

ALL = "all"
RESAMPLES = 4000


@dataclass(frozen=True)
class Cell:
    """The runs of one method under one noise for so many epochs, one a seed.

    `margins` is (seeds, pairs) on the test split, `labels` the pairs' groups, "" where there are none; `results` the
    runs' result.json.
    """

    seeds: tuple[int, ...]
    margins: np.ndarray
    labels: np.ndarray
    results: list[dict[str, Any]]

    @property
    def right(self) -> np.ndarray:
        """(seeds, pairs) whether each pair is ranked as its label says; a tie is not."""
        return (self.margins > 0).astype(np.float64)

    @property
    def groups(self) -> list[str]:
        return sorted(set(self.labels.tolist()) - {""})


Key = tuple[float, str, str]
"""Epochs, noise, method."""


def read_cells(runs: Mapping[Any, Path]) -> dict[Key, Cell]:
    """The cells of the grid, in the order of its runs.

    Raises:
        ValueError: runs of one study that were measured on different pairs.
    """
    found: dict[Key, list[tuple[int, np.ndarray, np.ndarray, dict]]] = {}
    for run, folder in runs.items():
        margins, labels = _read_margins(folder / "margins.npz")
        result = read_json(folder / "result.json")
        found.setdefault((run.epochs, run.noise, run.method), []).append((run.seed, margins, labels, result))
    cells, first = {}, next(iter(found.values()))[0][2]
    for key, entries in found.items():
        entries.sort(key=lambda entry: entry[0])
        seeds, margins, labels, results = zip(*entries, strict=True)
        if any(not np.array_equal(first, other) for other in labels):
            raise ValueError(
                f"runs of {key[2]} under {key[1]} were measured on other test pairs than the first run of the study: "
                "options such as max_length must be the same for all methods, and the data must not change."
            )
        cells[key] = Cell(seeds, np.stack(margins), labels[0], list(results))
    return cells


def _read_margins(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path) as arrays:
            return arrays["margins"], arrays["labels"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise ValueError(
            f"{path} cannot be read ({error}). Delete its folder, so that its run is made again."
        ) from error


def tidy_rows(cells: Mapping[Key, Cell]) -> list[dict[str, Any]]:
    """One row for every run and group (and `all`): what was run, and what came out."""
    rows = []
    for (epochs, noise, method), cell in cells.items():
        for seed, margins, result in zip(cell.seeds, cell.margins, cell.results, strict=True):
            settings = result["settings"]
            for group in [ALL, *cell.groups]:
                values = margins if group == ALL else margins[cell.labels == group]
                estimates = result["noise_rates"] or {}
                rows.append(
                    {
                        "method": method,
                        "noise": noise,
                        "epochs": epochs,
                        "seed": seed,
                        "learning_rate": settings["learning_rate"],
                        "group": group,
                        "pairs": len(values),
                        "accuracy": float((values > 0).mean()),
                        "margin": float(values.mean()),
                        "noise_rate_estimate": estimates.get(group),
                        "noise_rate_true": result["noise_shares"].get(group),
                        "steps": result["steps"],
                        "seconds": round(result["seconds"], 1),
                        "peak_memory_mb": round(result["peak_memory_bytes"] / 2**20),
                        **{f"version_{name}": number for name, number in result["versions"].items()},
                    }
                )
    return rows


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def beyond_zero(self) -> bool:
        return self.low > 0 or self.high < 0


class Bootstrap:
    """Two-level bootstrap: seeds and test pairs are drawn with replacement, the same ones for every method.

    Args:
        labels: (pairs,) groups, within which pairs are drawn, so that every group keeps its size.
        seed: of the draws.
    """

    def __init__(self, labels: np.ndarray, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self._weights = np.zeros((RESAMPLES, len(labels)))
        for group in sorted(set(labels.tolist())):
            member = np.flatnonzero(labels == group)
            share = np.full(len(member), 1 / len(member))
            self._weights[:, member] = generator.multinomial(len(member), share, size=RESAMPLES)

    def draws(self, values: np.ndarray, seeds: Sequence[int], member: np.ndarray | None = None) -> np.ndarray:
        """(RESAMPLES,) means of `values`, (seeds, pairs), over drawn seeds and drawn pairs (of `member`, a mask)."""
        chosen = slice(None) if member is None else member
        weights = self._weights[:, chosen]
        by_seed = values[:, chosen] @ weights.T / weights.sum(axis=1)
        # The draw of seeds depends on how many there are, and on nothing else: methods with the same seeds share it.
        drawn = np.random.default_rng(len(seeds)).integers(len(seeds), size=(RESAMPLES, len(seeds)))
        return by_seed[drawn, np.arange(RESAMPLES)[:, None]].mean(axis=1)


def estimate(value: float, draws: np.ndarray) -> Estimate:
    low, high = np.quantile(draws, [0.025, 0.975], method="inverted_cdf")  # of draws some may be infinite
    return Estimate(float(value), float(low), float(high))


def accuracy(cell: Cell, bootstrap: Bootstrap) -> Estimate:
    """Reward accuracy on the test split."""
    return estimate(cell.right.mean(), bootstrap.draws(cell.right, cell.seeds))


def worst_group(cell: Cell, bootstrap: Bootstrap) -> tuple[str, Estimate]:
    """The group with the lowest accuracy over the seeds, and that."""
    means = {group: cell.right[:, cell.labels == group].mean() for group in cell.groups}
    worst = min(sorted(means), key=means.__getitem__)
    return worst, estimate(means[worst], bootstrap.draws(cell.right, cell.seeds, cell.labels == worst))


def margin(cell: Cell, bootstrap: Bootstrap) -> Estimate:
    """Mean margin on the test split, in units of reward."""
    return estimate(cell.margins.mean(), bootstrap.draws(cell.margins.astype(np.float64), cell.seeds))


def common_seeds(one: Cell, other: Cell) -> tuple[list[int], np.ndarray, np.ndarray]:
    """The seeds that both cells have, and the rows of each."""
    seeds = sorted(set(one.seeds) & set(other.seeds))
    return seeds, np.array([one.seeds.index(s) for s in seeds]), np.array([other.seeds.index(s) for s in seeds])


def difference(cell: Cell, baseline: Cell, bootstrap: Bootstrap, group: str | None = None) -> Estimate | None:
    """Accuracy less the baseline's, on the same pairs and the seeds that both have; None without such seeds."""
    seeds, ours, theirs = common_seeds(cell, baseline)
    if not seeds:
        return None
    gain, member = cell.right[ours] - baseline.right[theirs], _members(cell, group)
    return estimate(gain[:, member].mean(), bootstrap.draws(gain, seeds, member))


def ratio(cell: Cell, baseline: Cell, bootstrap: Bootstrap, group: str | None = None) -> Estimate | None:
    """Accuracy divided by the baseline's, likewise; None also where the baseline's is 0."""
    return _ratio(cell, baseline, bootstrap, _members(cell, group), [c.right for c in (cell, baseline)])


def margin_ratio(cell: Cell, baseline: Cell, bootstrap: Bootstrap, group: str | None = None) -> Estimate | None:
    """Mean margin divided by the baseline's, likewise; None also where the baseline's is not positive."""
    values = [c.margins.astype(np.float64) for c in (cell, baseline)]
    return _ratio(cell, baseline, bootstrap, _members(cell, group), values)


def _members(cell: Cell, group: str | None) -> np.ndarray:
    return np.ones(len(cell.labels), dtype=bool) if group is None else cell.labels == group


def _ratio(
    cell: Cell, baseline: Cell, bootstrap: Bootstrap, member: np.ndarray, values: list[np.ndarray]
) -> Estimate | None:
    seeds, ours, theirs = common_seeds(cell, baseline)
    if not seeds or values[1][theirs][:, member].mean() <= 0:
        return None
    top, bottom = values[0][ours], values[1][theirs]
    tops, bottoms = (bootstrap.draws(part, seeds, member) for part in (top, bottom))
    drawn = np.divide(tops, bottoms, out=np.full_like(tops, np.inf), where=bottoms > 0)
    return estimate(top[:, member].mean() / bottom[:, member].mean(), drawn)


def mean_curve(cell: Cell) -> tuple[list[int], list[float]]:
    """Steps, and the mean validation accuracy over the seeds at each."""
    steps = [point["step"] for point in cell.results[0]["curve"]]
    return steps, [float(np.mean([r["curve"][i]["accuracy"] for r in cell.results])) for i in range(len(steps))]


def steps_to(cell: Cell, target: float) -> int | None:
    """The first measured step at which the mean validation accuracy reaches `target`; None if never."""
    return next((step for step, value in zip(*mean_curve(cell), strict=True) if value >= target), None)
