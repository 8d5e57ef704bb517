"""What is reported of finished models: accuracies with intervals, margins, and differences between models.

NumPy only; every function is exact or seeded. Accuracies count `margin > 0`, as TRL does: a tie is not a success, and
the share of ties stands beside it. So it is in a group of nothing but ties, whose accuracy is 0.
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
        `pairs`; `accuracy`, `accuracy_95` (Wilson), `ties`, `margin_mean`, `margin_median` (None without a reference);
        and `reference_free_accuracy`, `reference_free_accuracy_95`.
    """
    total = len(normalised)
    free = int((normalised > 0).sum())
    figures = {"pairs": total, "accuracy": None, "accuracy_95": None, "ties": None}
    figures |= {"margin_mean": None, "margin_median": None}
    figures |= {"reference_free_accuracy": free / total, "reference_free_accuracy_95": [*wilson_interval(free, total)]}
    if margins is None:
        return figures
    right = int((margins > 0).sum())
    return figures | {
        "accuracy": right / total,
        "accuracy_95": [*wilson_interval(right, total)],
        "ties": float((margins == 0).mean()),
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

    The 95 % interval is the percentile interval of a bootstrap over pairs (within the groups for the macro mean),
    widened for small groups as `_deviations` says. What is beyond chance must also have p < 0.05 in a test that needs
    no large sample: the exact sign test, and for the macro mean its extension, `macro_sign_test`.

    Args:
        labels: (N,) groups, or None for none.
        baseline, other: (N,) booleans, whether each model ranks the pair as its label does.
        resamples: bootstrap resamples.
        seed: of the resampling; the result is a function of it.

    Returns:
        For every group, `"overall"` and `"macro"` (under `("group", name)` or `("summary", name)`): `difference`,
        `interval_95`, and `beyond_chance`: the interval excludes 0, and the test gives p < 0.05.
    """
    change = other.astype(int) - baseline.astype(int)
    generator = np.random.default_rng(seed)
    names = sorted(set(labels or []))
    by_group = [change[np.asarray(labels, dtype=object) == group] for group in names]
    parts = [*((("group", name), values) for name, values in zip(names, by_group, strict=True))]
    parts.append((("summary", "overall"), change))
    deviations, results = [], {}
    for key, values in parts:
        deviations.append(_deviations(values, resamples, generator))
        p_value = sign_test(int((values > 0).sum()), int((values < 0).sum()))
        results[key] = _difference(float(values.mean()), deviations[-1], p_value)
    if names:
        difference = float(np.mean([values.mean() for values in by_group]))
        p_value = macro_sign_test(by_group, resamples, generator)
        results["summary", "macro"] = _difference(difference, np.mean(deviations[:-1], axis=0), p_value)
    return results


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p-value of the exact sign test, which on paired outcomes is McNemar's exact test."""
    total = wins + losses
    tail = sum(math.comb(total, count) for count in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**total)


def macro_sign_test(by_group: Sequence[np.ndarray], resamples: int, generator: np.random.Generator) -> float:
    """Two-sided p-value of the mean over groups of the mean changes: how often random signs of the pairs reach it.

    Which of two equal models wins a pair that they rank differently is a toss of a coin, whatever the group's size. If
    they are equal in the mean only, better in some groups and worse in others, the test errs towards chance.
    """
    tossed = np.mean([_random_signs(values, resamples, generator) for values in by_group], axis=0)
    reached = np.abs(tossed) >= abs(np.mean([values.mean() for values in by_group])) - 1e-12
    return (1 + int(reached.sum())) / (1 + resamples)


def _random_signs(values: np.ndarray, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """(resamples,) means of the changes -1, 0 and 1 of some pairs, each with a random sign."""
    differing = int(np.abs(values).sum())
    return (2 * generator.binomial(differing, 0.5, resamples) - differing) / len(values)


def _deviations(values: np.ndarray, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """(resamples,) how far the mean of resampled changes lies from that of the changes, -1, 0 or 1, of some pairs.

    A resample is a draw of three counts from a multinomial distribution, which is the same as drawing pairs with
    replacement. It spreads n / (n - 1) times too little in variance, which is made up for: over many small groups the
    error of a macro mean would not average out. A single pair does not show its spread at all; its change with a
    random sign has at least as much.
    """
    total = len(values)
    if total == 1:
        return _random_signs(values, resamples, generator)
    shares = np.array([(values == outcome).mean() for outcome in (-1, 0, 1)])
    counts = generator.multinomial(total, shares, size=resamples)
    return ((counts[:, 2] - counts[:, 0]) / total - values.mean()) * math.sqrt(total / (total - 1))


def _difference(difference: float, deviations: np.ndarray, p_value: float) -> dict:
    bounds = np.clip(difference + np.quantile(deviations, [0.025, 0.975]), -1.0, 1.0)
    low, high = (float(round(bound, 12)) + 0.0 for bound in bounds)
    return {
        "difference": difference,
        "interval_95": [low, high],
        "beyond_chance": (low > 0 or high < 0) and p_value < 0.05,
    }


def model_figures(
    labels: Sequence[str] | None,
    further: dict[str, Sequence[str]],
    *,
    margins: np.ndarray | None,
    normalised: np.ndarray,
    reference: str | None,
) -> dict[str, Any]:
    """All figures of one model, in the schema of docs/evaluate.md; `further` are other columns' labels, by column.

    Where every pair is a tie, because the model is its reference, there is nothing to be right about, and no accuracy.
    """
    overall, groups = summarise(margins, normalised), by_group(labels, margins, normalised)
    others = {column: by_group(values, margins, normalised) for column, values in further.items()}
    if margins is not None and not margins.any():
        for part in (overall, *(part for parts in (groups, *others.values()) for part in parts.values())):
            part |= {"accuracy": None, "accuracy_95": None}
    figures = {"reference": reference, "overall": overall, "groups": groups, "also_by": others}
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
