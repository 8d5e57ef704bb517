"""What a training thought of every pair, pass by pass, read from its log into a few numbers a pair.

One pass over the log, whatever its length: what is held is less than 300 bytes a pair and one batch of rows.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from trl_capo.pair_log import Log

COLUMNS = ("epoch", "pair", "group", "relative_reward", "confidence", "group_noise_rate", "reference_margin")


@dataclass(frozen=True)
class Dynamics:
    """One entry for each of the N pairs that were trained on, by pair number.

    Rewards are relative rewards, in units of reward; confidences are in [0, 1]. A pass is one occurrence of a pair:
    the first one in an epoch. With the noise rate 0 (DPO) a training believes every label, and its confidence, always
    1, tells nothing: there it is the probability that the model itself gives to the label, sigmoid(rho).

    Parameters:
        total: pairs of the data, seen or not.
        fingerprint: of the data.
        labels: names of the groups.
        training_rates: the last noise rate of every group, as the training had estimated it when its first epoch
            ended (in a log of that epoch alone, before the step that met the group last), and of pairs without a
            group under None; empty where it was a fixed number.
        pair: (N,) rows in the data.
        group: (N,) places in `labels`, -1 for none.
        epochs: (N,) how often seen.
        first_margin, final_margin, mean_margin: (N,) relative rewards: before the model learned from the pair, at
            last, and the mean over the passes, which is the area under the margin.
        first_confidence, final_confidence, mean_confidence, variability: (N,) likewise, and the standard deviation.
        agreements, disagreements: (N,) passes in which the model preferred the chosen answer, and the rejected one; in
            the first step it mostly prefers neither, being its reference still.
        forgetting: (N,) passes that do not agree right after one that did.
        reference_margin: (N,) the reference's log-probability of chosen less that of rejected, in nats.
    """

    total: int
    fingerprint: str
    labels: list[str]
    training_rates: dict[str | None, float]
    pair: np.ndarray
    group: np.ndarray
    epochs: np.ndarray
    first_margin: np.ndarray
    final_margin: np.ndarray
    mean_margin: np.ndarray
    first_confidence: np.ndarray
    final_confidence: np.ndarray
    mean_confidence: np.ndarray
    variability: np.ndarray
    agreements: np.ndarray
    disagreements: np.ndarray
    forgetting: np.ndarray
    reference_margin: np.ndarray

    @property
    def passes(self) -> int:
        """The most that a pair was seen."""
        return int(self.epochs.max())

    def group_names(self) -> np.ndarray:
        """(N,) labels, None where there is no group."""
        return np.array([*self.labels, None], dtype=object)[self.group]


_FLOATS = ("first_margin", "final_margin", "margin_sum", "reference_margin")
_FLOATS += ("first_confidence", "final_confidence", "confidence_sum", "confidence_squares")


def read_dynamics(log: Log) -> Dynamics:
    """The dynamics of every pair in the log.

    Raises:
        ValueError: the log has a pair that the data does not, or no pair with a finite relative reward.
    """
    total = log.info.pairs
    kept = {name: np.zeros(total, np.float32 if name.startswith(("first", "final")) else float) for name in _FLOATS}
    kept |= {name: np.zeros(total, np.int32) for name in ("epochs", "agreements", "disagreements", "forgetting")}
    kept |= {"last_epoch": np.full(total, -1, np.int16), "group": np.full(total, -1, np.int32)}
    labels: dict[str, int] = {}
    rates, spread, believes_all = {}, set(), None
    for batch in log.batches(COLUMNS):
        rows = _columns(batch, labels)
        believes_all = not rows["group_noise_rate"].any() if believes_all is None else believes_all
        if believes_all:
            rows["confidence"] = 1.0 / (1.0 + np.exp(-np.clip(rows["relative_reward"].astype(float), -700.0, 700.0)))
        if len(rows["pair"]) and not (rows["pair"].min() >= 0 and rows["pair"].max() < total):
            raise ValueError(f"{str(log.folder)!r}: the log has a pair that is not among its data's {total:,}.")
        _last_rates(rows, rates, spread)
        for part in _passes(rows, kept["last_epoch"]):
            _add(part, kept)
    seen = np.flatnonzero(kept["epochs"])
    if not len(seen):
        raise ValueError(f"{str(log.folder)!r}: no pair in the log has a finite relative reward.")
    found = {name: values[seen] for name, values in kept.items()}
    count, names = found["epochs"], [*labels, None]
    means = {name: found.pop(f"{name}_sum") / count for name in ("margin", "confidence")}
    variance = found.pop("confidence_squares") / count - means["confidence"] ** 2
    del found["last_epoch"]
    return Dynamics(
        total,
        log.info.fingerprint,
        list(labels),
        {names[code]: rate for code, rate in rates.items()} if len(spread) > 1 else {},
        seen,
        mean_margin=means["margin"],
        mean_confidence=means["confidence"],
        variability=np.sqrt(variance.clip(0.0)),
        **found,
    )


def _columns(batch: pa.RecordBatch, labels: dict[str, int]) -> dict[str, np.ndarray]:
    """The batch's columns, its groups as places in `labels`, which gets those that are new; -1 for no group."""
    columns = {name: batch.column(name).to_numpy(zero_copy_only=False) for name in COLUMNS if name != "group"}
    group = batch.column("group")
    codes = [labels.setdefault(label, len(labels)) for label in group.dictionary.to_pylist()]
    columns["group"] = np.array([*codes, -1], np.int32)[group.indices.fill_null(-1).to_numpy(zero_copy_only=False)]
    return columns


def _last_rates(rows: Mapping[str, np.ndarray], rates: dict[int, float], spread: set[float]) -> None:
    """Note the last noise rate of every group, and two values where it is not always the same."""
    if len(rate := rows["group_noise_rate"]):
        codes, last = np.unique(rows["group"][::-1], return_index=True)
        rates.update(zip(codes.tolist(), rate[::-1][last].tolist(), strict=True))
        spread |= {float(rate.min()), float(rate.max())}


def _passes(rows: Mapping[str, np.ndarray], last_epoch: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    """Rows of one epoch at a time, each pair once and none that was there before or says nothing."""
    for epoch in np.unique(rows["epoch"]):
        use = (rows["epoch"] == epoch) & np.isfinite(rows["relative_reward"]) & (last_epoch[rows["pair"]] < epoch)
        places = np.flatnonzero(use)
        places = places[np.unique(rows["pair"][places], return_index=True)[1]]
        last_epoch[rows["pair"][places]] = epoch
        yield {name: values[places] for name, values in rows.items()}


def _add(rows: Mapping[str, np.ndarray], kept: dict[str, np.ndarray]) -> None:
    """Add a pass of some pairs, each at most once."""
    pair, margin, confidence = rows["pair"], rows["relative_reward"], rows["confidence"].astype(float)
    is_new = kept["epochs"][pair] == 0
    new = pair[is_new]
    kept["first_margin"][new], kept["first_confidence"][new] = margin[is_new], confidence[is_new]
    kept["group"][new], kept["reference_margin"][new] = rows["group"][is_new], rows["reference_margin"][is_new]
    kept["forgetting"][pair] += ~is_new & (kept["final_margin"][pair] > 0) & (margin <= 0)
    kept["agreements"][pair] += margin > 0
    kept["disagreements"][pair] += margin < 0
    kept["final_margin"][pair], kept["final_confidence"][pair] = margin, confidence
    kept["margin_sum"][pair] += margin
    kept["confidence_sum"][pair] += confidence
    kept["confidence_squares"][pair] += confidence**2
    kept["epochs"][pair] += 1
