"""Scores of a pair's dynamics, higher where the label is likelier wrong, and how well a score finds known errors.

Compared in docs/audit.md (scripts/compare_audit_scores.py); an audit ranks by judgement.py, which came out best.
"""

from collections.abc import Callable

import numpy as np

from trl_capo.audit.dynamics import Dynamics


def low_mean_confidence(pairs: Dynamics) -> np.ndarray:
    return 1.0 - pairs.mean_confidence


def low_final_confidence(pairs: Dynamics) -> np.ndarray:
    return 1.0 - pairs.final_confidence


def low_first_margin(pairs: Dynamics) -> np.ndarray:
    """Held out: the model had not learned from the pair yet."""
    return -pairs.first_margin


def low_final_margin(pairs: Dynamics) -> np.ndarray:
    return -pairs.final_margin


def area_under_margin(pairs: Dynamics) -> np.ndarray:
    """Pleiss et al. 2020 (arXiv 2001.10528), negated; the margin is the relative reward."""
    return -pairs.mean_margin


def forgetting_events(pairs: Dynamics) -> np.ndarray:
    """Toneva et al. 2019 (arXiv 1812.05159); a pair that was never learned counts as more than any other."""
    return np.where(pairs.agreements == 0, pairs.epochs.max(), pairs.forgetting).astype(float)


def reference_prefers_rejected(pairs: Dynamics) -> np.ndarray:
    return -pairs.reference_margin


SCORES: dict[str, Callable[[Dynamics], np.ndarray]] = {
    function.__name__: function
    for function in (
        low_mean_confidence,
        low_final_confidence,
        low_first_margin,
        low_final_margin,
        area_under_margin,
        forgetting_events,
        reference_prefers_rejected,
    )
}


def auroc(scores: np.ndarray, wrong: np.ndarray) -> float:
    """Probability that a wrong pair scores higher than a right one, ties counting half; nan where one kind is missing.

    Args:
        scores: (N,).
        wrong: (N,) booleans.
    """
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2.0)[place]
    bad, good = int(wrong.sum()), int((~wrong).sum())
    return float((ranks[wrong].sum() - bad * (bad + 1) / 2) / (bad * good)) if bad and good else float("nan")


def precision_at(scores: np.ndarray, wrong: np.ndarray, share: float = 0.05) -> float:
    """Share of wrong pairs among the first `share` of all (at least one pair), by falling score."""
    first = np.argsort(-scores, kind="stable")[: max(1, int(share * len(scores)))]
    return float(wrong[first].mean())
