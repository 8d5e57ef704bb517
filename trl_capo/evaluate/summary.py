"""Accuracies, margins and differences of models, per group and overall, in the schema of docs/evaluate.md.

Accuracies count `margin > 0`, as TRL does: a tie is not a success. The share of ties is reported beside them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from trl_capo.common.intervals import Z95, sign_test, wilson_interval

ALL_PAIRS, MACRO, WORST = "all pairs", "macro mean", "worst group"
MEASURES = {"accuracy": "reward accuracy", "reference_free_accuracy": "reference-free accuracy"}
Figures = dict[str, Any]
Labels = Sequence[str] | None  # (N,) groups of the pairs


def summarise(margins: np.ndarray | None, per_token: np.ndarray) -> Figures:
    """Summarise (N,) margins in reward, if any, and (N,) chosen - rejected log-probabilities per token in nats."""
    total, free = len(per_token), int((per_token > 0).sum())
    figures = {"pairs": total} | dict.fromkeys(("accuracy", "accuracy_95", "ties", "margin_mean", "margin_median"))
    if margins is not None:
        right = int((margins > 0).sum())
        figures |= {"accuracy": right / total, "accuracy_95": [*wilson_interval(right, total)]}
        figures |= {"ties": float((margins == 0).mean()), "margin_mean": float(margins.mean())}
        figures |= {"margin_median": float(np.median(margins))}
    interval = [*wilson_interval(free, total)]
    return figures | {"reference_free_accuracy": free / total, "reference_free_accuracy_95": interval}


def summarise_model(labels: Labels, also_by: dict[str, Sequence[str]], score: dict[str, Any]) -> Figures:
    """Summarise one model over all pairs, in every group, and in every group of the columns of `also_by`.

    `score` holds `margins` and `per_token` as in `summarise`, and the name of the `reference`.
    """
    margins = score["margins"]
    only_ties = margins is not None and not margins.any()  # the model is its reference: no accuracy is given

    def part(member: Any) -> Figures:
        figures = summarise(None if margins is None else margins[member], score["per_token"][member])
        return figures | ({"accuracy": None, "accuracy_95": None} if only_ties else {})

    def by_group(labels: Sequence[str]) -> dict[str, Figures]:
        return {group: part(np.asarray(labels, dtype=object) == group) for group in sorted(set(labels))}

    groups = by_group(labels or [])
    figures = {"reference": score["reference"], "overall": part(slice(None)), "groups": groups}
    figures |= {"also_by": {column: by_group(values) for column, values in also_by.items()}, "macro": {}, "worst": {}}
    for key in MEASURES:
        if values := {group: part[key] for group, part in groups.items() if part[key] is not None}:
            worst = min(values, key=values.__getitem__)
            figures["macro"][key] = sum(values.values()) / len(values)
            figures["worst"][key] = {"group": worst, "value": values[worst]}
    return figures


def compare_models(labels: Labels, scores: dict[str, dict[str, Any]]) -> Figures:
    """Compare every model with the first, by reference-free accuracy if one of them has no reward accuracy."""
    baseline, *others = scores
    has_rewards = all(score["margins"] is not None and score["margins"].any() for score in scores.values())
    key, measure = ("margins", "accuracy") if has_rewards else ("per_token", "reference_free_accuracy")
    right = {name: score[key] > 0 for name, score in scores.items()}
    common = {"against": baseline, "measure": measure}
    return {name: common | paired_differences(labels, right[baseline], right[name]) for name in others}


def paired_differences(labels: Labels, baseline: np.ndarray, other: np.ndarray) -> Figures:
    """Compare two models by (N,) booleans, whether each ranks a pair as its label does, and (N,) groups or None.

    Returns `groups`, `overall` and, with groups, `macro` (the mean over groups), each with `difference`, `interval_95`
    (mean +- 1.96 standard errors of the changes per pair) and `beyond_chance`: the interval excludes 0, and an exact
    sign test, for the macro mean over all pairs, gives p < 0.05.
    """
    change, names = other.astype(int) - baseline.astype(int), sorted(set(labels or []))
    groups = [change[np.asarray(labels, dtype=object) == name] for name in names]
    variances = [v.var(ddof=1) / len(v) if len(v) > 1 else v[0] ** 2 for v in (*groups, change)]
    p_values = [sign_test(int((v > 0).sum()), int((v < 0).sum())) for v in (*groups, change)]
    means = [float(values.mean()) for values in (*groups, change)]
    parts = [_difference(*part) for part in zip(means, variances, p_values, strict=True)]
    result = {"groups": dict(zip(names, parts, strict=False)), "overall": parts[-1]}
    if names:
        variance = sum(variances[:-1]) / len(names) ** 2
        result["macro"] = _difference(sum(means[:-1]) / len(names), variance, p_values[-1])
    return result


def _difference(difference: float, variance: float, p_value: float) -> Figures:
    reach = Z95 * float(variance) ** 0.5
    low, high = max(-1.0, difference - reach), min(1.0, difference + reach)
    beyond_chance = (low > 0 or high < 0) and p_value < 0.05
    return {"difference": difference, "interval_95": [low, high], "beyond_chance": beyond_chance}
