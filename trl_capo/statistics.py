"""What is reported of finished models: accuracies with intervals, margins, and differences between models.

NumPy only; every function is exact or seeded. Accuracies count `margin > 0`, as TRL does: a tie is not a success, and
the share of ties stands beside it.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

ALL_PAIRS, MACRO, WORST = "all pairs", "macro mean", "worst group"
"""What tables and plots call the figures beside those of the groups."""
Z95 = 1.959963984540054
"""The 0.975 quantile of the normal distribution."""


def wilson_interval(successes: int, total: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion (Wilson 1927), in [0, 1]; total must be positive."""
    if total <= 0:
        raise ValueError(f"total={total}: there is no proportion of nothing")
    share = successes / total
    spread = Z95**2 / total
    centre = (share + spread / 2) / (1 + spread)
    half = Z95 / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def summarise(margins: np.ndarray | None, normalised: np.ndarray) -> dict[str, float | int | list[float] | None]:
    """Figures of one group of pairs.

    Args:
        margins: (N,) relative rewards, in units of reward; None without a reference.
        normalised: (N,) differences chosen - rejected of the policy's log-probability per token, in nats.

    Returns:
        `pairs`; `accuracy`, `accuracy_95` (Wilson), `ties`, `margin_mean`, `margin_median` (None without a reference;
        the accuracy is also None if every pair is a tie, where there is nothing to be right about); and
        `reference_free_accuracy`, `reference_free_accuracy_95`.
    """
    total = len(normalised)
    free = int((normalised > 0).sum())
    figures = {"pairs": total, "accuracy": None, "accuracy_95": None, "ties": None}
    figures |= {"margin_mean": None, "margin_median": None}
    figures |= {"reference_free_accuracy": free / total, "reference_free_accuracy_95": [*wilson_interval(free, total)]}
    if margins is None:
        return figures
    ties = float((margins == 0).mean())
    if ties < 1:
        right = int((margins > 0).sum())
        figures |= {"accuracy": right / total, "accuracy_95": [*wilson_interval(right, total)]}
    return figures | {
        "ties": ties,
        "margin_mean": float(margins.mean()),
        "margin_median": float(np.median(margins)),
    }


def by_group(labels: Sequence[str] | None, margins: np.ndarray | None, normalised: np.ndarray) -> dict[str, dict]:
    """`summarise` of every group, in the order of their names; without labels there are none."""
    if labels is None:
        return {}
    labels = np.asarray(labels, dtype=object)
    return {
        group: summarise(None if margins is None else margins[labels == group], normalised[labels == group])
        for group in sorted(set(labels))
    }


def macro_and_worst(accuracies: dict[str, float]) -> tuple[float, str]:
    """The unweighted mean over the groups, and the name of the lowest (the first by name among equals)."""
    return sum(accuracies.values()) / len(accuracies), min(sorted(accuracies), key=accuracies.__getitem__)


def paired_differences(
    labels: Sequence[str] | None, baseline: np.ndarray, other: np.ndarray, *, resamples: int = 10_000, seed: int = 0
) -> dict[str, dict[str, float | list[float] | bool]]:
    """Difference in accuracy of two models on the same pairs, per group, over all pairs, and of the macro mean.

    The 95 % interval is the percentile interval of a bootstrap over pairs (within the groups for the macro mean). A
    pair contributes -1, 0 or 1, so a resample of a group is a draw of three counts from a multinomial distribution,
    which is the same as drawing its pairs with replacement.

    Args:
        labels: (N,) groups, or None for none.
        baseline, other: (N,) booleans, whether each model ranks the pair as its label does.
        resamples: bootstrap resamples.
        seed: of the resampling; the result is a function of it.

    Returns:
        For every group, `"overall"` and `"macro"` (under `("group", name)` or `("summary", name)`): `difference`,
        `interval_95`, and `beyond_chance`: the interval excludes 0, and for
        groups and overall the exact sign test gives p < 0.05.
    """
    change = other.astype(int) - baseline.astype(int)
    generator = np.random.default_rng(seed)
    results, differences, draws = {}, [], []
    for group in sorted(set(labels or [])):
        values = change[np.asarray(labels, dtype=object) == group]
        results["group", group], drawn = _bootstrap(values, resamples, generator)
        differences.append(values.mean())
        draws.append(drawn)
    results["summary", "overall"], _ = _bootstrap(change, resamples, generator)
    if draws:
        results["summary", "macro"] = _interval(float(np.mean(differences)), np.mean(draws, axis=0))
    return results


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p-value of the exact sign test, which on paired outcomes is McNemar's exact test."""
    total = wins + losses
    tail = sum(math.comb(total, count) for count in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**total)


def _bootstrap(values: np.ndarray, resamples: int, generator: np.random.Generator) -> tuple[dict, np.ndarray]:
    shares = np.array([(values == outcome).mean() for outcome in (-1, 0, 1)])
    counts = generator.multinomial(len(values), shares, size=resamples)
    drawn = (counts[:, 2] - counts[:, 0]) / len(values)
    result = _interval(float(values.mean()), drawn)
    # A bootstrap of few pairs is too sure of itself: the exact sign test on the pairs that differ must agree.
    result["beyond_chance"] &= sign_test(int((values > 0).sum()), int((values < 0).sum())) < 0.05
    return result, drawn


def _interval(difference: float, drawn: np.ndarray) -> dict:
    low, high = (float(value) for value in np.quantile(drawn, [0.025, 0.975]))
    return {"difference": difference, "interval_95": [low, high], "beyond_chance": low > 0 or high < 0}


def model_figures(
    labels: Sequence[str] | None,
    further: dict[str, Sequence[str]],
    *,
    margins: np.ndarray | None,
    normalised: np.ndarray,
    reference: str | None,
) -> dict[str, Any]:
    """All figures of one model, in the schema of docs/evaluate.md; `further` are other columns' labels, by column."""
    groups = by_group(labels, margins, normalised)
    figures = {"reference": reference, "overall": summarise(margins, normalised), "groups": groups}
    figures["also_by"] = {column: by_group(others, margins, normalised) for column, others in further.items()}
    figures |= {"macro": {}, "worst": {}}
    for key in ("accuracy", "reference_free_accuracy"):
        accuracies = {group: values[key] for group, values in groups.items() if values[key] is not None}
        if accuracies:
            macro, worst = macro_and_worst(accuracies)
            figures["macro"][key] = macro
            figures["worst"][key] = {"group": worst, "value": accuracies[worst]}
    return figures


def model_differences(labels: Sequence[str] | None, scores: dict[str, dict], seed: int) -> dict[str, Any]:
    """Every model against the first, by reward accuracy, or by reference-free accuracy where one of them has none."""
    baseline, *others = scores
    known = all(score["margins"] is not None and score["margins"].any() for score in scores.values())
    key = "margins" if known else "normalised"
    results = {}
    for name in others:
        found = paired_differences(labels, scores[baseline][key] > 0, scores[name][key] > 0, seed=seed)
        results[name] = {
            "against": baseline,
            "measure": "accuracy" if key == "margins" else "reference_free_accuracy",
            "groups": {group: values for (kind, group), values in found.items() if kind == "group"},
            **{group: values for (kind, group), values in found.items() if kind == "summary"},
        }
    return results
