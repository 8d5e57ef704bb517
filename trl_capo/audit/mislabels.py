"""Estimate which labels are wrong, and the noise rate of every group, from the pair log of a run.

Wrong labels have low margins, right ones high margins. EM fits two normal distributions with a common variance to the
margins of every group, on an asinh scale because margins spread over orders of magnitude (compare the beta mixtures
on losses of Arazo et al. 2019, arXiv 1904.11238). It runs on histograms, and on all resamples of a bootstrap at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.special import expit, logit
from scipy.stats import mannwhitneyu

from trl_capo.callbacks.pair_log import Log
from trl_capo.common.intervals import Z95

COLUMNS = ("epoch", "pair", "group", "relative_reward", "confidence", "group_noise_rate", "reference_margin")
FLIP_SCORE, LOOK_SCORE = 0.9, 0.3  # lowest scores with the suggestions "flip" and "look"
BINS, RESAMPLES, MAX_ITERATIONS = 256, 200, 500
SHARED_PAIRS = 10.0  # pseudo-pairs, distributed like the pairs of all groups, that are added to every group
RATE_SCALE, SCORE_SCALE = 0.2, 2.0  # units of the asinh scale, in median |margin|: sharp for rates, mild for scores
FIT_CLIP = 3.0  # scores: components are fitted to margins clipped at so many medians, lest an outlier become one


class Dynamics(NamedTuple):
    """Statistics of the N pairs that a run has seen.

    A pass is the first occurrence of a pair in an epoch with a finite relative reward, the margin. If the noise rate
    is 0 (DPO), every logged confidence is 1, and sigmoid(margin), the model's probability of the label, replaces it.

    Attributes:
        pairs: (N rows) indexed by the row in the data set, with the columns `group` ("" if there is none), `epochs`
            (number of passes), `first_margin` (before the first update on the pair), `final_margin`, `mean_margin`,
            `reference_margin` (nats), `first_confidence`, `final_confidence`, `mean_confidence`, `variability`
            (standard deviation of the confidence), `agreements` and `disagreements` (passes with a margin above and
            below 0), and `forgetting` (passes without agreement directly after a pass with it).
        training_rates: last logged noise rate of each group; empty if the rate was fixed.
    """

    pairs: pd.DataFrame
    training_rates: dict[str, float]


def read_dynamics(log: Log) -> Dynamics:
    """Read the dynamics of every pair; raise `ValueError` if no pair has a finite relative reward."""
    rows = pa.Table.from_batches(log.batches(COLUMNS)).unify_dictionaries().to_pandas()
    rows["group"] = rows["group"].astype(object).where(rows["group"].notna(), "")
    rates = rows.drop_duplicates("group", keep="last").set_index("group")["group_noise_rate"]
    passes = rows[np.isfinite(rows["relative_reward"])].drop_duplicates(["pair", "epoch"])
    if passes.empty:
        raise ValueError(f"{str(log.folder)!r}: no pair in the log has a finite relative reward.")
    margin = passes["relative_reward"].astype(float)
    confidence = passes["confidence"].astype(float) if rows["group_noise_rate"].any() else expit(margin)
    passes = passes.assign(margin=margin, confidence=confidence, agreements=margin > 0, disagreements=margin < 0)
    by_pair = passes.assign(forgetting=(margin.groupby(passes["pair"]).shift() > 0) & (margin <= 0)).groupby("pair")
    places = {"first": "first", "final": "last", "mean": "mean"}
    columns = {f"{place}_{name}": (name, how) for name in ("margin", "confidence") for place, how in places.items()}
    columns |= {name: (name, "sum") for name in ("agreements", "disagreements", "forgetting")}
    columns |= {name: (name, "first") for name in ("group", "reference_margin")} | {"epochs": ("margin", "size")}
    pairs = by_pair.agg(**columns).assign(variability=by_pair["confidence"].std(ddof=0))
    return Dynamics(pairs, rates.astype(float).to_dict() if rows["group_noise_rate"].nunique() > 1 else {})


@dataclass(frozen=True)
class LabelErrors:
    """Estimated label errors of N pairs in G groups.

    Attributes:
        pairs: (N rows) `Dynamics.pairs`, worst first (equal scores by mean margin), with the columns `log_odds` and
            `score` (probability) that the label is wrong, and `suggestion`.
        groups: (G rows) indexed by name, with the noise `rate`, its 95 % interval `low` and `high`, and the estimates
            behind it, `mixture_rate` and `training_rate` (nan if there is none).
        overall_rate: estimated noise rate of all pairs together.
        single_pass: whether the margins are those of one pass.
    """

    pairs: pd.DataFrame
    groups: pd.DataFrame
    overall_rate: float
    single_pass: bool


def estimate_label_errors(
    dynamics: Dynamics, statistic: str = "mean_margin", groups: Sequence[str] | None = None
) -> LabelErrors:
    """Estimate which labels are wrong from the "mean_margin" or "first_margin"; (N,) `groups` replace the run's."""
    pairs = dynamics.pairs if groups is None else dynamics.pairs.assign(group=groups)
    names, index = np.unique(pairs["group"].to_numpy(object), return_inverse=True)
    margins = pairs[statistic].to_numpy(float)
    mixture, error = mixture_rates(margins, index, len(names))
    trained = np.array([dynamics.training_rates.get(name, np.nan) for name in names])
    trained[index[pairs["group"] != dynamics.pairs["group"]]] = np.nan  # CAPO's were of other pairs
    single_pass = statistic == "first_margin" or pairs["epochs"].max() == 1
    rates, (low, high) = combine(mixture, error, trained, single_pass)
    log_odds = label_log_odds(margins, index, np.clip(rates, 1e-4, 1.0 - 1e-4))
    score = expit(log_odds)
    suggestion = np.select([score >= FLIP_SCORE, score >= LOOK_SCORE], ["flip", "look"], "keep")
    pairs = pairs.assign(log_odds=log_odds, score=score, suggestion=suggestion)
    columns = {"rate": rates, "low": low, "high": high, "mixture_rate": mixture, "training_rate": trained}
    order = np.lexsort((pairs["mean_margin"], -log_odds))
    return LabelErrors(pairs.iloc[order], pd.DataFrame(columns, index=names), float(rates[index].mean()), single_pass)


def combine(mixture: np.ndarray, error: np.ndarray, trained: np.ndarray, single_pass: bool) -> tuple:
    """Combine the (G,) rates of the mixture, their standard errors, and the rates that CAPO estimated (nan for none).

    After several passes the mixture is biased downwards where the model has learned wrong labels, and CAPO's estimate
    upwards where it is confidently wrong: the rate is their mean, and half their difference is added to the error in
    quadrature. After one pass, when the mixture finds far too much noise, the rate is CAPO's.
    Returns (G,) rates and the (2, G) bounds of their 95 % intervals.
    """
    trained = np.where(np.isnan(trained), mixture, trained)
    rates = trained if single_pass else (trained + mixture) / 2.0
    reach = Z95 * np.hypot(error, (trained - mixture) / 2.0)
    return rates, np.clip([rates - reach, rates + reach], 0.0, 1.0)


def mixture_rates(margins: np.ndarray, index: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Estimate (count,) noise rates, and their standard errors, from (N,) margins and group numbers.

    The error is that of a bootstrap, combined with the standard deviation of a label times the weight of the shared
    pseudo-pairs, which say nothing about the group. It is infinite if all margins are equal.
    """
    bins, counts, shared = histograms(asinh_scale(margins, RATE_SCALE), index, count)
    rates, sizes = fit(bins, counts + shared)[0], counts.sum(axis=1)
    generator, sampled = np.random.default_rng(0), np.empty(count)
    for group, own in enumerate(counts + shared):
        draws = generator.multinomial(int(sizes[group]), own / own.sum(), size=RESAMPLES)
        sampled[group] = fit(bins, draws + shared)[0].std()
    errors = np.hypot(sampled, SHARED_PAIRS / (sizes + SHARED_PAIRS) * np.sqrt(rates * (1.0 - rates)))
    return rates, errors if np.ptp(margins) > 0 else np.full(count, np.inf)


def label_log_odds(margins: np.ndarray, index: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Compute (N,) log-odds that labels are wrong from margins and group numbers, given (G,) rates in (0, 1)."""
    values, limit = asinh_scale(margins, SCORE_SCALE), np.arcsinh(FIT_CLIP / SCORE_SCALE)
    bins, counts, shared = histograms(np.clip(values, -limit, limit), index, len(rates))
    return component_log_odds(values, *(part[index] for part in fit(bins, counts + shared, rates)))


def asinh_scale(margins: np.ndarray, unit: float) -> np.ndarray:
    """Map margins to a scale that is linear within, and logarithmic beyond, `unit` times their median size."""
    size = float(np.median(np.abs(margins)))
    return np.arcsinh(margins / (unit * size if size > 0 else 1.0))


def histograms(values: np.ndarray, index: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (BINS,) midpoints, (count, BINS) histograms of the groups, and the (BINS,) shared pseudo-pairs."""
    low, width = values.min(), np.ptp(values) / BINS or 1.0
    bins = np.minimum(((values - low) / width).astype(int), BINS - 1)
    counts = np.bincount(index * BINS + bins, minlength=count * BINS).reshape(count, BINS).astype(float)
    return low + (np.arange(BINS) + 0.5) * width, counts, SHARED_PAIRS * counts.sum(axis=0) / counts.sum()


def fit(bins: np.ndarray, counts: np.ndarray, rate: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
    """Fit two normal distributions of one variance to (..., B) counts in bins with (B,) midpoints, by EM.

    Returns (...) weights of the lower component, fixed by `rate` in (0, 1), both means, lower first, and variances.
    """
    total = counts.sum(axis=-1)
    cumulated = np.cumsum(counts.reshape(-1, len(bins)).sum(axis=0))
    low, high = bins[np.searchsorted(cumulated, cumulated[-1] * np.array([0.1, 0.9]))]
    posterior = np.broadcast_to(np.where(bins < np.clip(0.0, low, high), 0.9, 0.1), counts.shape)
    floor, before = np.spacing(np.abs(bins).max()) + 1e-12, np.inf
    for _ in range(MAX_ITERATIONS):
        lower, upper = counts * posterior, counts * (1.0 - posterior)
        share = lower.sum(axis=-1)
        wrong, right = (lower @ bins) / share, (upper @ bins) / (total - share)
        spread = (lower * (bins - wrong[..., None]) ** 2 + upper * (bins - right[..., None]) ** 2).sum(axis=-1)
        weight = np.clip(share / total, 1e-6, 1.0 - 1e-6) if rate is None else rate
        components = (weight, wrong, right, spread / total + floor)
        if np.max(np.abs(wrong - before)) < 1e-7 * (1.0 + np.abs(wrong).max()):
            break
        before = wrong
        log_odds = component_log_odds(bins, *(part[..., None] for part in components))
        posterior = expit(np.clip(log_odds, -50.0, 50.0))
    return components


def component_log_odds(values: np.ndarray, rate: Any, wrong: Any, right: Any, variance: Any) -> np.ndarray:
    """Compute the log-odds that values belong to the lower of two components as `fit` returns them."""
    return logit(rate) + ((values - right) ** 2 - (values - wrong) ** 2) / (2.0 * variance)


def auroc(scores: np.ndarray, wrong: np.ndarray) -> float:
    """Return the probability that a wrong label scores higher than a right one (ties: half); nan without both."""
    compared = wrong.sum() * (~wrong).sum()
    return float(mannwhitneyu(scores[wrong], scores[~wrong]).statistic / compared) if compared else float("nan")
