"""Accuracies, margins and differences of models, per group and overall, in the schema of docs/evaluate.md.

Accuracies count `margin > 0`, as TRL does: a tie is not a success. The share of ties is reported beside them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from trl_capo.common.intervals import RESAMPLES, bootstrap_deviations, macro_sign_test, sign_test, wilson_interval

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


def compare_models(labels: Labels, scores: dict[str, dict[str, Any]], seed: int) -> Figures:
    """Compare every model with the first, by reference-free accuracy if one of them has no reward accuracy."""
    baseline, *others = scores
    has_rewards = all(score["margins"] is not None and score["margins"].any() for score in scores.values())
    key, measure = ("margins", "accuracy") if has_rewards else ("per_token", "reference_free_accuracy")
    right = {name: score[key] > 0 for name, score in scores.items()}
    common = {"against": baseline, "measure": measure}
    return {name: common | paired_differences(labels, right[baseline], right[name], seed=seed) for name in others}


def paired_differences(
    labels: Labels, baseline: np.ndarray, other: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> Figures:
    """Compare two models by (N,) booleans, whether each ranks a pair as its label does, and (N,) groups or None.

    Returns `groups`, `overall` and, with groups, `macro` (the mean over groups), each with `difference`, `interval_95`
    (percentile bootstrap over the pairs of each group) and `beyond_chance`: the interval excludes 0, and the sign
    test, or for the macro mean `macro_sign_test`, gives p < 0.05.
    """
    change, generator = other.astype(int) - baseline.astype(int), np.random.default_rng(seed)
    names = sorted(set(labels or []))
    groups = [change[np.asarray(labels, dtype=object) == name] for name in names]
    deviations, parts = [], []
    for values in (*groups, change):
        deviations.append(bootstrap_deviations(values, resamples, generator))
        p_value = sign_test(int((values > 0).sum()), int((values < 0).sum()))
        parts.append(_difference(float(values.mean()), deviations[-1], p_value))
    result = {"groups": dict(zip(names, parts, strict=False)), "overall": parts[-1]}
    if names:
        difference = float(np.mean([values.mean() for values in groups]))
        p_value = macro_sign_test(groups, resamples, generator)
        result["macro"] = _difference(difference, np.mean(deviations[:-1], axis=0), p_value)
    return result


def _difference(difference: float, deviations: np.ndarray, p_value: float) -> Figures:
    bounds = np.clip(difference + np.quantile(deviations, [0.025, 0.975]), -1.0, 1.0)
    low, high = (float(round(bound, 12)) + 0.0 for bound in bounds)  # + 0.0 turns -0.0 into 0.0
    beyond_chance = (low > 0 or high < 0) and p_value < 0.05
    return {"difference": difference, "interval_95": [low, high], "beyond_chance": beyond_chance}
