"""Compare scores of label errors on the pair logs of a study's runs, where it is known which labels are wrong.

    trl-capo study --config configs/study/audit.yaml    # or another study with `pair_log: true` under `training`
    python scripts/compare_audit_scores.py demo/study/audit/runs/capo-*-seed*

Run it where the study was run: the data are named relative to that. Prints Markdown; in brackets: 95 % intervals
over runs and pairs.
"""

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, disable_progress_bars

from trl_capo.audit.dynamics import Dynamics, read_dynamics
from trl_capo.audit.judgement import EVIDENCE, judge
from trl_capo.audit.scores import SCORES, auroc, precision_at
from trl_capo.audit.source import check_data
from trl_capo.noise import IS_NOISY
from trl_capo.pair_log import read_log
from trl_capo.study.data import read_parts, with_noise
from trl_capo.study.files import read_json
from trl_capo.study.run import RESULT
from trl_capo.study.table import Estimate, estimate

FEWEST = 200
"""Pairs of a language whose noise rate counts; where none has so many, that of the largest."""
WITHIN = 0.05
"""Of the true rate: how near an estimate should be."""


@dataclass(frozen=True)
class Run:
    """A finished run: its settings, the study's data, its training pairs with their noise, and their dynamics."""

    settings: dict[str, Any]
    parts: dict[str, Dataset]
    noisy: Dataset
    pairs: Dynamics

    @property
    def wrong(self) -> np.ndarray:
        """(N,) which labels of `pairs` are wrong."""
        return np.array(self.noisy[IS_NOISY][:])[self.pairs.pair]


def read_run(folder: Path) -> Run:
    """Read the run in the folder.

    Raises:
        ValueError, OSError: it is not finished, has no pair log, or its data have changed since.
    """
    settings = read_json(folder / RESULT)["settings"]
    shared = settings["shared"]
    parts = read_parts(shared)
    noisy = with_noise(parts["train"], settings["inject"], settings["seed"], shared["group_column"])
    log = read_log(folder / "pair_log")
    check_data(log, noisy)
    return Run(settings, parts, noisy, read_dynamics(log))


def by_language(scores: np.ndarray, wrong: np.ndarray, names: np.ndarray) -> dict[str, float]:
    """AUROC, in percent, in every language that has both right and wrong labels."""
    found = {name: 100 * auroc(scores[names == name], wrong[names == name]) for name in sorted(set(names))}
    return {name: value for name, value in found.items() if not np.isnan(value)}


def ranking(scores: np.ndarray, wrong: np.ndarray, names: np.ndarray) -> list[float]:
    """In percent: AUROC, that of the worst language, and precision among the first 5 %."""
    worst = min(by_language(scores, wrong, names).values(), default=np.nan)
    return [100 * auroc(scores, wrong), worst, 100 * precision_at(scores, wrong)]


def ranking_estimates(runs: list[tuple[np.ndarray, np.ndarray, np.ndarray]], draws: int = 400) -> dict[str, Estimate]:
    """Means over runs, each (scores, wrong, names) of the same pairs, with 95 % intervals over runs and pairs.

    In percent: AUROC, AUROC in the language in which its mean is lowest, and precision among the first 5 %. Every draw
    takes as many runs and pairs as there are, with replacement, and the same pairs of all its runs.
    """
    names, generator = runs[0][2], np.random.default_rng(0)
    languages = [by_language(*run) for run in runs]
    common = [name for name in languages[0] if all(name in found for found in languages)]
    worst = min(common, key=lambda name: np.mean([found[name] for found in languages]), default=None)

    def figures(run: int, pairs: np.ndarray) -> list[float]:
        scores, wrong = (part[pairs] for part in runs[run][:2])
        own = names[pairs] == worst
        return [100 * auroc(scores, wrong), 100 * auroc(scores[own], wrong[own]), 100 * precision_at(scores, wrong)]

    drawn = []
    for _ in range(draws):
        pairs = generator.integers(len(names), size=len(names))
        drawn.append(np.mean([figures(run, pairs) for run in generator.integers(len(runs), size=len(runs))], axis=0))
    means = np.mean([figures(run, np.arange(len(names))) for run in range(len(runs))], axis=0)
    headings = ("AUROC", f"AUROC in {worst}", "precision, first 5 %")
    columns = (values[~np.isnan(values)] for values in np.array(drawn).T)  # a draw may have labels of one kind alone
    return {
        heading: estimate(mean, values) if len(values) else Estimate(mean, np.nan, np.nan)
        for heading, mean, values in zip(headings, means, columns, strict=True)
    }


def rate_errors(rates: np.ndarray, true: np.ndarray) -> list[float]:
    """In points: the mean size of the errors, the largest, and the mean."""
    errors = 100 * (rates - true)
    return [np.abs(errors).mean(), np.abs(errors).max(), errors.mean()]


def told_the_truth(pairs: Dynamics, wrong: np.ndarray, place: np.ndarray, folds: int = 10) -> np.ndarray:
    """What the log could give at best: in every group a logistic regression, fitted to the truth of other pairs."""
    margins = (pairs.first_margin, pairs.mean_margin, pairs.final_margin, pairs.reference_margin)
    inputs = np.stack([*((values - values.mean()) / values.std() for values in margins), np.ones(len(wrong))], axis=1)
    fold, scores = np.random.default_rng(0).integers(0, folds, len(wrong)), np.empty(len(wrong))
    for group, left_out in itertools.product(range(place.max() + 1), range(folds)):
        used, asked = (place == group) & (fold != left_out), (place == group) & (fold == left_out)
        weights, seen = np.zeros(inputs.shape[1]), inputs[used]
        for _ in range(30):  # Newton's method, with a ridge of 1
            belief = 1 / (1 + np.exp(-seen @ weights))
            slope = seen.T @ (belief - wrong[used]) + weights
            weights -= np.linalg.solve((seen.T * (belief * (1 - belief))) @ seen + np.eye(len(weights)), slope)
        scores[asked] = inputs[asked] @ weights
    return scores


def print_table(title: str, headings: list[str], rows: dict[str, list[list[float]]], digits: int = 1) -> None:
    print(f"| {title} | " + " | ".join(headings) + " |\n|---|" + "---:|" * len(headings))
    for name, runs in sorted(rows.items(), key=lambda row: -np.mean(row[1], axis=0)[0]):
        columns = np.array(runs).T
        cells = [f"{c.mean():.{digits}f} ({c.min():.{digits}f} to {c.max():.{digits}f})" for c in columns]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print()


def compare(runs: list[tuple[Dynamics, np.ndarray]]) -> None:
    ranked: dict[str, list[list[float]]] = {}
    rated: dict[str, list[list[float]]] = {}
    covered, likely, close, own = [], [], [], []
    for pairs, wrong in runs:
        judged = {evidence: judge(pairs, evidence) for evidence in EVIDENCE}
        found = judged["mean_margin"]
        names = found.groups[found.place]
        columns = {name: score(pairs) for name, score in SCORES.items()}
        columns |= {f"posterior from {name}": judgement.log_odds for name, judgement in judged.items()}
        columns["(told the truth)"] = told_the_truth(pairs, wrong, found.place)
        for name, scores in columns.items():
            ranked.setdefault(name, []).append(ranking(scores, wrong, names))
        sizes = np.bincount(found.place)
        large = np.flatnonzero(sizes >= min(FEWEST, sizes.max()))
        true = np.array([wrong[found.place == place].mean() for place in large])
        estimates = {"mixture": found.mixture_rates, "both, the audit's": found.rates}
        estimates |= {"mixture at first sight": judged["first_margin"].mixture_rates}
        estimates |= {"the training's": found.training_rates}
        for name, rates in estimates.items():
            rated.setdefault(name, []).append(rate_errors(rates[large], true))
        low, high = found.intervals[large].T
        covered += ((low <= true) & (true <= high)).tolist()
        close += (np.abs(found.rates[large] - true) <= WITHIN).tolist()
        likely.append(np.stack([found.scores, wrong]))
        own.append((found.log_odds, wrong, names))
    print_table("score", ["AUROC", "worst language", "precision, first 5 %"], ranked)
    print_table("noise rate, error in points", ["mean size", "largest", "mean"], rated)
    told = [f"{name} {e.value:.1f} [{e.low:.1f}, {e.high:.1f}]" for name, e in ranking_estimates(own).items()]
    print(f"The audit's score: {', '.join(told)}. Rates within {100 * WITHIN:g} points: {sum(close)} of {len(close)}.")
    languages = [by_language(*run) for run in own]
    ranges = {name: [found[name] for found in languages if name in found] for name in sorted(set().union(*languages))}
    told = [f"{name} {min(values):.0f} to {max(values):.0f}" for name, values in ranges.items()]
    print(f"AUROC of it by language, lowest to highest run: {'; '.join(told)}.")
    print(f"Intervals that hold the true rate: {np.mean(covered):.0%} of {len(covered)}.\n")
    scores, wrong = np.concatenate(likely, axis=1)
    print("| score said | pairs | wrong |\n|---|---:|---:|")
    for low, high in itertools.pairwise((0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98, 1.01)):
        inside = (scores >= low) & (scores < high)
        if not inside.any():
            continue
        print(f"| {low:.0%} to {min(high, 1):.0%} | {inside.sum():,} | {wrong[inside].mean():.0%} |")


def main() -> None:
    disable_progress_bars()
    by_noise: dict[str, list[tuple[Dynamics, np.ndarray]]] = {}
    for folder in map(Path, sys.argv[1:]):
        run = read_run(folder)
        by_noise.setdefault(run.settings["noise"], []).append((run.pairs, run.wrong))
    for noise, runs in by_noise.items():
        print(f"### {noise} of the labels flipped, {len(runs)} runs\n")
        compare(runs)
        print()


if __name__ == "__main__":
    main()
