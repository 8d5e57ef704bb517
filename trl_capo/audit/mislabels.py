"""Estimate which labels are wrong, and the noise rate of every group, from a pair log, a probe, or both.

Noise rates and slopes are fitted to the margins of either as to a witness in training (docs/method.md, eq. 8).
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from datasets import Dataset
from scipy.special import expit, logit
from scipy.stats import mannwhitneyu

from trl_capo.callbacks.pair_log import Log
from trl_capo.core.noise_model import NOISE_RATES, PESSIMISM, SLOPES, witness_log_likelihood
from trl_capo.core.noise_rate import NoiseRateEstimator
from trl_capo.core.pairs import PROBE, read_trust, read_witness

COLUMNS = ("epoch", "pair", "group", "relative_reward", "confidence", "group_noise_rate", "reference_margin")
FLIP_SCORE, LOOK_SCORE = 0.9, 0.3  # lowest scores with the suggestions "flip" and "look"
WEAK_SLOPE = 0.25  # log-odds per unit of a witness where the fit finds no slope


class Dynamics(NamedTuple):
    """Statistics of the N pairs that a run has seen; without a run, `pairs` has only the column `group`.

    A pass is the first occurrence of a pair in an epoch with a finite relative reward, the margin. If the noise rate
    is 0 (DPO), every logged confidence is 1, and sigmoid(margin), the model's probability of the label, replaces it.

    Attributes:
        pairs: (N rows) indexed by the row in the data set, with `group` ("" for none), `epochs` (number of passes),
            `first_margin` (before any update on the pair), `final_margin`, `mean_margin`, `reference_margin` (nats),
            `first_confidence`, `final_confidence`, `mean_confidence`, `variability` (its standard deviation), passes
            with `agreements` (margin above 0), `disagreements` (below 0) and `forgetting` (no longer an agreement).
        training_rates: last logged noise rate of each group; empty if the rate was fixed.
    """

    pairs: pd.DataFrame
    training_rates: dict[str, float]


def read_dynamics(log: Log) -> Dynamics:
    """Read the dynamics of every pair; raise `ValueError` if no pair has a finite relative reward."""
    rows = pa.Table.from_batches(log.batches(COLUMNS)).unify_dictionaries().to_pandas()
    rows["group"] = rows["group"].astype(object).where(rows["group"].notna(), "")
    rates = rows.drop_duplicates("group", keep="last").set_index("group")["group_noise_rate"]
    if (passes := rows[np.isfinite(rows["relative_reward"])].drop_duplicates(["pair", "epoch"])).empty:
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


class LabelErrors(NamedTuple):
    """Estimated label errors of N pairs in G groups.

    Attributes:
        pairs: (N rows) `Dynamics.pairs`, worst first, with `log_odds` and `score` (probability) that the label is
            wrong, `suggestion`, and, if there is a probe, its scaled margin `probe`.
        groups: (G rows) by name: `rate` of noise, its 95 % interval `low` and `high`, `training_rate` (CAPO's or nan).
    """

    pairs: pd.DataFrame
    groups: pd.DataFrame


def estimate_label_errors(dynamics: Dynamics, data: Dataset | None = None) -> LabelErrors:
    """Estimate which labels are wrong: the log-odds are logit(noise rate) minus the mean of the evidence.

    Evidence is `mean_margin`, if `dynamics` has it, and the probe, if `data`, the data set, has its columns. Noise
    rates are the probe's, or else CAPO's, or else the log's. Labels that `data` marks as trusted have the score 0.
    """
    pairs, columns, fits = dynamics.pairs, [] if data is None else data.column_names, []
    names, index = np.unique(pairs["group"].to_numpy(object), return_inverse=True)
    trusted = np.zeros(len(pairs), int) if data is None else read_trust(data)[pairs.index]
    trained = np.array([dynamics.training_rates.get(name, np.nan) for name in names])
    if "mean_margin" in pairs:
        margins = np.arcsinh(pairs["mean_margin"] / (pairs["mean_margin"].abs().median() or 1.0)).to_numpy()
        fits.append(fit(margins, names, index, trusted, trained))
    if f"{PROBE}_chosen" in columns:
        probe = read_witness(data, PROBE)[pairs.index]
        of_probe = fit(probe, names, index, trusted)
        if of_probe[-1].any() or not fits:  # a probe that knows nothing leaves it to the log
            fits, pairs = [*fits, of_probe], pairs.assign(probe=probe)
    rates, low, high, _ = fits[-1]
    rates = rates if "probe" in pairs else np.where(np.isnan(trained), rates, trained)
    log_odds = logit(rates.clip(1e-4, 1.0 - 1e-4))[index] - np.mean([evidence for *_, evidence in fits], axis=0)
    log_odds = np.where(trusted > 0, -20.0, log_odds)
    score = expit(log_odds)
    suggestion = np.select([score >= FLIP_SCORE, score >= LOOK_SCORE], ["flip", "look"], "keep")
    pairs = pairs.assign(log_odds=log_odds, score=score, suggestion=suggestion)
    columns = {"rate": rates, "low": np.minimum(low, rates), "high": np.maximum(high, rates), "training_rate": trained}
    return LabelErrors(pairs.iloc[np.argsort(-log_odds, kind="stable")], pd.DataFrame(columns, index=names))


def fit(witness: np.ndarray, names: np.ndarray, index: np.ndarray, trusted: np.ndarray, known=None) -> tuple:
    """Fit noise rates and slopes to (N,) numbers x, given their places in (G,) group names, and `read_trust`.

    No slope is 0 if that of all pairs is not. For a log, slopes are positive, and fitted to `known`, CAPO's (G,) rates
    or nan. Returns (G,) rates, both bounds of their 95 % intervals, and (N,) slope * x, the evidence for the labels.
    """
    estimator, count = NoiseRateEstimator([name for name in names if name]), len(names)
    numbers = torch.tensor(index - ("" in names))  # -1 for pairs without a group, whose name "" comes first
    estimator.add_evidence(numbers, torch.tensor(trusted), torch.tensor(witness, dtype=torch.float32))
    slopes = estimator._slopes.double().numpy()
    slopes = np.where(slopes == 0, np.sign(slopes[0]) * WEAK_SLOPE, slopes)[-count:]
    for place, rate in enumerate(() if known is None else known):
        x, trust = (torch.tensor(values[index == place]) for values in (witness, trusted > 0))
        logs = witness_log_likelihood(x, torch.tensor([rate]), torch.tensor(SLOPES), trust).sum(dim=(0, 1))
        fitted = slopes[place] if np.isnan(rate) else SLOPES[(logs.softmax(dim=0).cumsum(dim=0) < PESSIMISM).sum()]
        slopes[place] = max(fitted, WEAK_SLOPE)
    below = torch.softmax(estimator._carried_loglik[-count:].double(), dim=1).cumsum(dim=1).numpy()
    low, high = (np.array(NOISE_RATES)[(below < quantile).sum(axis=1)] for quantile in (0.025, 0.975))
    return estimator.noise_rates[-count:].double().numpy(), low, high, slopes[index] * witness


def auroc(scores: np.ndarray, wrong: np.ndarray) -> float:
    """Return the probability that a wrong label scores higher than a right one (ties: half); nan without both."""
    compared = wrong.sum() * (~wrong).sum()
    return float(mannwhitneyu(scores[wrong], scores[~wrong]).statistic / compared) if compared else float("nan")
