"""Compare scores of label errors on the pair logs of a study's runs, in which the wrong labels are known.

    trl-capo study --config configs/study/audit.yaml    # or another study with `pair_log: true` under `training`
    python scripts/research/compare_audit_scores.py demo/study/audit/runs/no_reference-*-seed*

Run it where the study was run, to which the names of the data are relative. It prints Markdown tables of means over
runs (lowest to highest); 95 % intervals over runs and pairs are in brackets.
"""

import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset, disable_progress_bars

from trl_capo.audit.mislabels import Dynamics, auroc, estimate_label_errors, read_dynamics
from trl_capo.callbacks.pair_log import read_log
from trl_capo.common.fingerprint import fingerprint
from trl_capo.common.intervals import Estimate, percentile_estimate
from trl_capo.data.noise import IS_NOISY
from trl_capo.study.plan import RESULT
from trl_capo.study.run import add_noise, read_parts

MIN_PAIRS = 200  # of a language whose noise rate counts; if none has so many, that of the largest counts
TOLERANCE = 0.05  # largest error of an acceptable noise rate
Ranked = tuple[np.ndarray, np.ndarray, np.ndarray]
"""(N,) scores, (N,) which labels are wrong, (N,) languages."""
SCORES: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "low_mean_confidence": lambda pairs: 1.0 - pairs["mean_confidence"],
    "low_final_confidence": lambda pairs: 1.0 - pairs["final_confidence"],
    "low_first_margin": lambda pairs: -pairs["first_margin"],  # before the model learned from the pair
    "low_final_margin": lambda pairs: -pairs["final_margin"],
    "area_under_margin": lambda pairs: -pairs["mean_margin"],  # Pleiss et al. 2020, arXiv 2001.10528
    # Toneva et al. 2019, arXiv 1812.05159; a pair that was never learned counts as more than any other
    "forgetting_events": lambda pairs: pairs["forgetting"].where(pairs["agreements"] > 0, pairs["epochs"].max()),
    "reference_prefers_rejected": lambda pairs: -pairs["reference_margin"],
}


@dataclass(frozen=True)
class AuditedRun:
    """A finished run: its settings, the study's data, its training pairs with their noise, and their dynamics."""

    settings: dict[str, Any]
    parts: dict[str, Dataset]
    noisy: Dataset
    dynamics: Dynamics

    @property
    def wrong(self) -> np.ndarray:
        """(N,) which labels of `dynamics.pairs` are wrong."""
        return np.array(self.noisy[IS_NOISY][:])[self.dynamics.pairs.index]


def read_run(folder: Path) -> AuditedRun:
    """Read a run; raise `ValueError` or `OSError` if it is unfinished, has no log, or its data have changed."""
    settings = json.loads((folder / RESULT).read_text(encoding="utf-8"))["settings"]
    parts = read_parts(settings["shared"])
    noisy, _ = add_noise(parts["train"], settings)
    log = read_log(folder / "pair_log")
    if fingerprint(noisy) != log.info.fingerprint:
        raise ValueError(f"{folder}: the data have changed since the run.")
    return AuditedRun(settings, parts, noisy, read_dynamics(log))


def precision_at(scores: np.ndarray, wrong: np.ndarray, share: float = 0.05) -> float:
    """Return the share of wrong labels among the first `share` of all pairs (at least one) by falling score."""
    return float(wrong[np.argsort(-scores, kind="stable")[: max(1, int(share * len(scores)))]].mean())


def auroc_by_language(scores: np.ndarray, wrong: np.ndarray, names: np.ndarray) -> dict[str, float]:
    """Return the AUROC, in percent, in every language that has both right and wrong labels."""
    found = {name: 100 * auroc(scores[names == name], wrong[names == name]) for name in sorted(set(names))}
    return {name: value for name, value in found.items() if not np.isnan(value)}


def ranking(scores: np.ndarray, wrong: np.ndarray, names: np.ndarray) -> list[float]:
    """Return in percent the AUROC, that of the worst language, and the precision among the first 5 %."""
    worst = min(auroc_by_language(scores, wrong, names).values(), default=np.nan)
    return [100 * auroc(scores, wrong), worst, 100 * precision_at(scores, wrong)]


def ranking_estimates(runs: list[Ranked], draws: int = 400) -> dict[str, Estimate]:
    """Estimate means over runs of the same pairs, with 95 % intervals from a bootstrap over runs and pairs.

    In percent: AUROC, AUROC in the language in which its mean is lowest, and precision among the first 5 %.
    """
    names, generator = runs[0][2], np.random.default_rng(0)
    languages = pd.DataFrame([auroc_by_language(*run) for run in runs]).dropna(axis=1).mean()
    worst = languages.idxmin() if len(languages) else None

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
    columns = [values[~np.isnan(values)] for values in np.array(drawn).T]  # a draw may have labels of one kind only
    return {
        heading: percentile_estimate(mean, values) if len(values) else Estimate(mean, np.nan, np.nan)
        for heading, mean, values in zip(headings, means, columns, strict=True)
    }


def rate_errors(rates: np.ndarray, true: np.ndarray) -> list[float]:
    """Return in points the mean size of the errors, the largest size, and the mean error."""
    errors = 100 * (rates - true)
    return [np.abs(errors).mean(), np.abs(errors).max(), errors.mean()]


def supervised_score(pairs: pd.DataFrame, wrong: np.ndarray, folds: int = 10) -> np.ndarray:
    """Fit a logistic regression per language to the truth of the other folds: roughly the best that a log allows."""
    margins = pairs[["first_margin", "mean_margin", "final_margin", "reference_margin"]].to_numpy()
    inputs = np.column_stack([(margins - margins.mean(axis=0)) / margins.std(axis=0), np.ones(len(wrong))])
    fold, scores = np.random.default_rng(0).integers(0, folds, len(wrong)), np.empty(len(wrong))
    for group, left_out in itertools.product(sorted(set(pairs["group"])), range(folds)):
        own = (pairs["group"] == group).to_numpy()
        used, weights = inputs[own & (fold != left_out)], np.zeros(inputs.shape[1])
        for _ in range(30):  # Newton's method, with a ridge of 1
            predicted = 1 / (1 + np.exp(-used @ weights))
            slope = used.T @ (predicted - wrong[own & (fold != left_out)]) + weights
            weights -= np.linalg.solve((used.T * (predicted * (1 - predicted))) @ used + np.eye(len(weights)), slope)
        scores[own & (fold == left_out)] = inputs[own & (fold == left_out)] @ weights
    return scores


def print_table(title: str, headings: list[str], rows: dict[str, list[list[float]]]) -> None:
    print(f"| {title} | " + " | ".join(headings) + " |\n|---|" + "---:|" * len(headings))
    for name, runs in sorted(rows.items(), key=lambda row: -np.mean(row[1], axis=0)[0]):
        cells = [f"{values.mean():.1f} ({values.min():.1f} to {values.max():.1f})" for values in np.array(runs).T]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print()


def compare(runs: list[AuditedRun]) -> None:
    """Print the tables of runs with the same noise."""
    ranked, rated, covered, close, audited, scored = {}, {}, [], [], [], []
    for run in runs:
        pairs, wrong = run.dynamics.pairs, run.wrong
        errors = {name: estimate_label_errors(run.dynamics, name) for name in ("mean_margin", "first_margin")}
        columns = {name: score(pairs) for name, score in SCORES.items()}
        columns |= {f"posterior from {name}": found.pairs["log_odds"].sort_index() for name, found in errors.items()}
        columns["(supervised)"] = pd.Series(supervised_score(pairs, wrong))
        for name, scores in columns.items():
            ranked.setdefault(name, []).append(ranking(scores.to_numpy(float), wrong, pairs["group"].to_numpy(object)))
        groups = errors["mean_margin"].groups.assign(true=pd.Series(wrong, pairs.index).groupby(pairs["group"]).mean())
        sizes = pairs["group"].value_counts()
        large = sizes.reindex(groups.index) >= min(MIN_PAIRS, sizes.max())
        groups["at first sight"] = errors["first_margin"].groups["mixture_rate"]
        groups = groups[large]
        names = {"mixture": "mixture_rate", "CAPO's": "training_rate", "both, the audit's": "rate"}
        for name, column in (names | {"mixture, first pass only": "at first sight"}).items():
            rated.setdefault(name, []).append(rate_errors(groups[column].to_numpy(), groups["true"].to_numpy()))
        covered += groups["true"].between(groups["low"], groups["high"]).tolist()
        close += ((groups["rate"] - groups["true"]).abs() <= TOLERANCE).tolist()
        own = errors["mean_margin"].pairs.sort_index()
        audited.append((own["log_odds"].to_numpy(), wrong, pairs["group"].to_numpy(object)))
        scored.append(pd.DataFrame({"score": own["score"], "wrong": wrong}))
    print_table("score", ["AUROC", "worst language", "precision, first 5 %"], ranked)
    print_table("noise rate, error in points", ["mean size", "largest", "mean"], rated)
    texts = [f"{name} {e.value:.1f} [{e.low:.1f}, {e.high:.1f}]" for name, e in ranking_estimates(audited).items()]
    print(f"The audit's score: {', '.join(texts)}.")
    print(f"Rates within {100 * TOLERANCE:g} points: {sum(close)} of {len(close)}.")
    languages = pd.DataFrame([auroc_by_language(*run) for run in audited])
    texts = [f"{name} {languages[name].min():.0f} to {languages[name].max():.0f}" for name in sorted(languages)]
    print(f"Its AUROC by language, lowest to highest run: {'; '.join(texts)}.")
    print(f"Intervals that contain the true rate: {np.mean(covered):.0%} of {len(covered)}.\n")
    print("| score | pairs | wrong |\n|---|---:|---:|")
    table = pd.concat(scored)
    bins = pd.cut(table["score"], [0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98, 1.01], right=False)
    for interval, own in table.groupby(bins, observed=True):
        print(f"| {interval.left:.0%} to {min(interval.right, 1):.0%} | {len(own):,} | {own['wrong'].mean():.0%} |")


def main() -> None:
    disable_progress_bars()
    by_noise: dict[str, list[AuditedRun]] = {}
    for run in map(read_run, map(Path, sys.argv[1:])):
        by_noise.setdefault(run.settings["noise"], []).append(run)
    for noise, runs in by_noise.items():
        print(f"### {noise} of the labels flipped, {len(runs)} runs\n")
        compare(runs)
        print()


if __name__ == "__main__":
    main()
