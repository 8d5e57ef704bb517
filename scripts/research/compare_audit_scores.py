"""Compare scores of label errors on the pair logs of a study's runs, in which the wrong labels are known.

    trl-capo study --config configs/study/audit.yaml    # or another study with `pair_log: true` under `training`
    python scripts/research/compare_audit_scores.py demo/study/audit/runs/capo-*-seed*

Run it where the study was run, to which the names of the data are relative. It prints Markdown tables of means over
runs (lowest to highest); 95 % intervals over runs and pairs are in brackets.
"""

import itertools
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from datasets import Dataset, disable_progress_bars

from trl_capo.audit.mislabels import Dynamics, auroc, estimate_label_errors, read_dynamics
from trl_capo.callbacks.pair_log import read_log
from trl_capo.common.fingerprint import fingerprint
from trl_capo.common.intervals import Estimate, percentile_estimate
from trl_capo.core.pairs import PROBE
from trl_capo.data.noise import IS_NOISY
from trl_capo.study.plan import RESULT
from trl_capo.study.run import add_noise, add_witness, read_parts

MIN_PAIRS = 200  # of a language whose noise rate counts; if none has so many, that of the largest counts
TOLERANCE = 0.05  # largest error of an acceptable noise rate
Ranked = tuple[np.ndarray, np.ndarray, np.ndarray]  # (N,) scores, (N,) which labels are wrong, (N,) languages
SCORES = {
    "low_mean_confidence": lambda pairs: 1.0 - pairs["mean_confidence"],
    "low_final_confidence": lambda pairs: 1.0 - pairs["final_confidence"],
    "low_first_margin": lambda pairs: -pairs["first_margin"],  # before the model learned from the pair
    "low_final_margin": lambda pairs: -pairs["final_margin"],
    "area_under_margin": lambda pairs: -pairs["mean_margin"],  # Pleiss et al. 2020, arXiv 2001.10528
    # Toneva et al. 2019, arXiv 1812.05159; a pair that was never learned counts as more than any other
    "forgetting_events": lambda pairs: pairs["forgetting"].where(pairs["agreements"] > 0, pairs["epochs"].max()),
    "reference_prefers_rejected": lambda pairs: -pairs["reference_margin"],
}


class AuditedRun(NamedTuple):
    """A finished run: its settings, the study's data, its training pairs with their noise, and their dynamics."""

    settings: dict[str, Any]
    parts: dict[str, Dataset]
    noisy: Dataset
    dynamics: Dynamics


def read_run(folder: Path) -> AuditedRun:
    """Read a run, with the probe if it used one; raise an error if its data have changed or it has no log."""
    settings = json.loads((folder / RESULT).read_text(encoding="utf-8"))["settings"]
    parts = read_parts(settings["shared"])
    noisy, _ = add_noise(parts["train"], settings)
    if settings["options"].get("witness") == PROBE:
        noisy = add_witness(noisy, parts["train"], settings, folder.parents[1] / "memory")
    log = read_log(folder / "pair_log")
    if fingerprint(noisy) != log.info.fingerprint:
        raise ValueError(f"{folder}: the data have changed since the run.")
    return AuditedRun(settings, parts, noisy, read_dynamics(log))


def auroc_by_language(scores: np.ndarray, wrong: np.ndarray, names: np.ndarray) -> dict[str, float]:
    """Return the AUROC, in percent, in every language that has both right and wrong labels."""
    found = {name: 100 * auroc(scores[names == name], wrong[names == name]) for name in sorted(set(names))}
    return {name: value for name, value in found.items() if not np.isnan(value)}


def ranking(scores: np.ndarray, wrong: np.ndarray, own: np.ndarray) -> list[float]:
    """Return in percent the AUROC, that of the pairs `own`, and the precision among the first 5 % by falling score."""
    first = np.argsort(-scores, kind="stable")[: max(1, int(0.05 * len(scores)))]
    return [100 * auroc(scores, wrong), 100 * auroc(scores[own], wrong[own]), 100 * float(wrong[first].mean())]


def ranking_estimates(runs: list[Ranked], draws: int = 400) -> dict[str, Estimate]:
    """Estimate means of `ranking` over runs of the same pairs, by a bootstrap of both; `own` is the worst language."""
    names, generator = runs[0][2], np.random.default_rng(0)
    languages = pd.DataFrame([auroc_by_language(*run) for run in runs]).dropna(axis=1).mean()
    worst = languages.idxmin() if len(languages) else None
    arrays, drawn = [(scores, wrong, names == worst) for scores, wrong, _ in runs], []
    for _ in range(draws):
        pairs, places = (generator.integers(size, size=size) for size in (len(names), len(runs)))
        drawn.append(np.mean([ranking(*(part[pairs] for part in arrays[place])) for place in places], axis=0))
    means = np.mean([ranking(*run) for run in arrays], axis=0)
    headings = ("AUROC", f"AUROC in {worst}", "precision, first 5 %")
    columns = [values[~np.isnan(values)] for values in np.array(drawn).T]  # a draw may have labels of one kind only
    return {
        heading: percentile_estimate(mean, values) if len(values) else Estimate(mean, np.nan, np.nan)
        for heading, mean, values in zip(headings, means, columns, strict=True)
    }


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
        pairs, languages = run.dynamics.pairs, run.dynamics.pairs["group"].to_numpy(object)
        wrong = np.array(run.noisy[IS_NOISY][:])[pairs.index]
        first = run.dynamics._replace(pairs=pairs.assign(mean_margin=pairs["first_margin"]))
        dynamics = {"mean_margin": run.dynamics, "first_margin": first}
        errors = {name: estimate_label_errors(seen, run.noisy) for name, seen in dynamics.items()}  # with any probe
        columns = {name: score(pairs).to_numpy(float) for name, score in SCORES.items()}
        for name, found in errors.items():
            columns[f"posterior from {name}"] = found.pairs["log_odds"].sort_index().to_numpy()
        columns["(supervised)"] = supervised_score(pairs, wrong)
        for name, scores in columns.items():
            found = auroc_by_language(scores, wrong, languages)
            worst = min(found, key=found.get, default=None)
            ranked.setdefault(name, []).append(ranking(scores, wrong, languages == worst))
        groups = errors["mean_margin"].groups.assign(true=pd.Series(wrong, pairs.index).groupby(pairs["group"]).mean())
        sizes = pairs["group"].value_counts()
        groups = groups[sizes.reindex(groups.index) >= min(MIN_PAIRS, sizes.max())]
        for name, column in (("CAPO's", "training_rate"), ("the audit's", "rate")):
            error = 100 * (groups[column] - groups["true"]).to_numpy()
            rated.setdefault(name, []).append([np.abs(error).mean(), np.abs(error).max(), error.mean()])
        covered += groups["true"].between(groups["low"], groups["high"]).tolist()
        close += ((groups["rate"] - groups["true"]).abs() <= TOLERANCE).tolist()
        audited.append((columns["posterior from mean_margin"], wrong, languages))
        scored.append(pd.DataFrame({"score": errors["mean_margin"].pairs["score"].sort_index(), "wrong": wrong}))
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
