"""Inject noise of a known kind and amount into preference pairs: `inject_noise` and `trl-capo noise`.

    trl-capo noise --dataset_name pairs.jsonl --output_dir noisy --kind flip --rate 0.2

A row's draw depends only on the seed and the row number, so it is the same on every machine, and the rows that change
at one rate also change at every higher one. docs/noise.md describes the kinds. Streams are not covered.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import compress
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from trl import extract_prompt

from trl_capo.common.command import parse, run
from trl_capo.core.pairs import PROBE, find_groups
from trl_capo.data import edit
from trl_capo.data.load import check_pairs

logger = logging.getLogger(__name__)

Rate = float | Mapping[str, float]
KINDS = ("flip", "flip_ambiguous", "wrong_language")
IS_NOISY = "is_noisy"
AMBIGUITY = 2.0  # fall of the log-odds of a flip over one mean |score|
_RATE = 'share of the pairs to change, in [0, 1), or one per group as JSON: \'{"sw": 0.4, "*": 0.1}\''
_SCORES = "column of scores, for 'flip_ambiguous' only"


def inject_noise(
    dataset: Dataset,
    kind: str,
    rate: Rate,
    *,
    seed: int = 0,
    group_column: str | None = "auto",
    score_column: str | None = None,
) -> Dataset:
    """Change a share of the pairs, and add the column `is_noisy`, which is true exactly for the pairs that changed.

    The kind "flip" swaps chosen and rejected; "flip_ambiguous" prefers pairs with a small |score|; "wrong_language"
    takes chosen from another group, and makes an implicit prompt a column. `rate` is the share of the pairs to change,
    in [0, 1), or a mapping from groups to shares; "*" stands for all groups that are not named, which otherwise do not
    change. `group_column` is "auto" for `language`, or None; only "flip_ambiguous" has a `score_column`.
    """
    rate = check_rate(rate)
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: there is no such noise. Choose one of {', '.join(KINDS)}.")
    if f"{PROBE}_chosen" in dataset.column_names:
        raise ValueError("probe_chosen: the probe has seen the labels without noise. Annotate after injecting noise.")
    if (kind == "flip_ambiguous") != (score_column is not None):
        raise ValueError(f"score_column={score_column!r}: 'flip_ambiguous' needs it, other kinds ({kind!r}) do not.")
    if not isinstance(dataset, Dataset):
        raise ValueError(f"noise needs a whole split, not {type(dataset).__name__}. Load the data without streaming.")
    check_pairs(dataset, "the data set")
    if IS_NOISY in dataset.column_names:
        raise ValueError(f"the data set has a column {IS_NOISY!r} of earlier noise. Use the original data.")
    _, labels = find_groups(dataset, group_column, "the data set")
    if kind == "wrong_language" and len(set(labels or ())) < 2:
        raise ValueError(f"group_column={group_column!r}: 'wrong_language' needs a column with two or more languages.")
    dataset, probabilities = dataset.with_format(None), _row_rates(rate, len(dataset), labels)
    if kind == "flip_ambiguous":
        groups = labels if isinstance(rate, Mapping) else None
        probabilities = _fall_with_scores(probabilities, dataset, score_column, groups)
    seeds = [np.random.SeedSequence(seed, spawn_key=(stream,)) for stream in (0, 1)]
    draws, places = (np.random.default_rng(sequence).random(len(dataset)) for sequence in seeds)
    rows = np.flatnonzero(draws < probabilities)
    flips = kind != "wrong_language"
    dataset = dataset if flips or "prompt" in dataset.column_names else dataset.map(extract_prompt)
    drawn = dataset.select(rows)
    answers = drawn["rejected"] if flips else _wrong_languages(dataset, rows, places[rows], np.array(labels))
    usable = [new is not None and new != old for new, old in zip(answers, drawn["chosen"], strict=True)]
    changed = rows[np.array(usable, dtype=bool)]
    if len(changed) < len(rows):
        logger.warning(f"{kind}: {len(rows) - len(changed):,} of {len(rows):,} drawn pairs cannot be changed.")
    if flips:
        dataset = edit.swap_answers(dataset, changed)
    else:
        dataset = edit.replace_chosen(dataset, changed, list(compress(answers, usable)))
    return dataset.add_column(IS_NOISY, np.isin(np.arange(len(dataset)), changed))


def _fall_with_scores(rates: np.ndarray, data: Dataset, column: str, labels: list[str] | None) -> np.ndarray:
    """Return (N,) `sigmoid(a - AMBIGUITY |score| / m)`, where m is the mean |score| of all pairs.

    In each group, whose pairs share a rate, a is such that the mean probability is the rate.
    """
    scores = np.array(data[column][:] if column in data.column_names else [None])
    if scores.dtype.kind not in "iuf" or not np.isfinite(scores).all():
        raise ValueError(f"score_column={column!r}: name a column that has a finite number in every row.")
    sizes = np.abs(scores.astype(float))
    fall = AMBIGUITY * sizes / (sizes.mean() or 1.0)
    groups, probabilities = np.array(labels or [""] * len(data)), np.zeros(len(data))
    for group in np.unique(groups[rates > 0]):
        rows = groups == group
        rate = rates[rows][0]
        low = math.log(rate / (1 - rate))  # no probability is above the rate here
        high = low + fall[rows].max()  # and none below it here
        for _ in range(100):
            middle = (low + high) / 2
            mean = np.mean((1 + np.tanh((middle - fall[rows]) / 2)) / 2)  # this form of sigmoid cannot overflow
            low, high = (middle, high) if mean < rate else (low, middle)
        probabilities[rows] = (1 + np.tanh((high - fall[rows]) / 2)) / 2
    return probabilities


def check_rate(rate: Any, option: str = "rate") -> Rate:
    """Return the rate, which may be JSON; raise ValueError unless it is a share in [0, 1), or one for each group."""
    with suppress(TypeError, ValueError):
        rate = json.loads(rate) if isinstance(rate, str) else rate
        shares = list(rate.values()) if isinstance(rate, Mapping) else [rate]
        if shares and all(0 <= share < 1 for share in shares):
            return rate
    raise ValueError(f"{option}={rate!r}: give the {_RATE}.")


def _row_rates(rate: Rate, count: int, labels: Sequence[str] | None) -> np.ndarray:
    if not isinstance(rate, Mapping):
        return np.full(count, float(rate))
    if labels is None:
        raise ValueError(f"rate={rate!r}: the data have no group column. Name it as group_column, or give one rate.")
    shares = {str(group): float(share) for group, share in rate.items()}
    if unknown := ", ".join(sorted(set(shares) - {*labels, "*"})):
        known = ", ".join(sorted(set(labels)))
        raise ValueError(f"rate={rate!r}: no group {unknown}, only {known}; '*' means the others (YAML: quote 'no').")
    return np.array([shares.get(label, shares.get("*", 0.0)) for label in labels])


def _wrong_languages(data: Dataset, rows: np.ndarray, places: np.ndarray, labels: np.ndarray) -> list[Any]:
    """Return for each row a chosen answer of another group, of the same prompt if possible, else None."""
    # System messages do not count, since they may name the language.
    asked = (p if isinstance(p, str) else [turn for turn in p if turn["role"] != "system"] for p in data["prompt"])
    chosen, questions = data["chosen"], pd.Series([json.dumps(turns, sort_keys=True, default=str) for turns in asked])
    asking, order = questions.groupby(questions).indices, np.argsort(labels, kind="stable")
    others = {name: np.append(order[labels[order] > name], order[labels[order] < name]) for name in set(labels)}
    answers = []
    for row, place, pair in zip(rows, places, data.select(rows), strict=True):
        same_prompt, answer = asking[questions[row]], None
        for donors in (same_prompt[labels[same_prompt] != labels[row]], others[labels[row]]):
            turns = int(place * len(donors)) + np.arange(min(len(donors), 100))
            found = (chosen[int(donor)] for donor in donors.take(turns, mode="wrap"))
            wanted = (text for text in found if text and text not in (pair["chosen"], pair["rejected"]))
            answer = answer or next(wanted, None)
        answers.append(answer)
    return answers


@dataclass
class NoiseArguments:
    """Noise to inject into the training pairs, and never into those of an evaluation."""

    inject_noise: str | None = field(default=None, metadata={"help": f"Noise to inject: {', '.join(KINDS)}."})
    inject_rate: float | str | dict | None = field(default=None, metadata={"help": f"Noise: {_RATE}."})
    inject_seed: int = field(default=0, metadata={"help": "Noise: seed of the draws."})
    inject_score_column: str | None = field(default=None, metadata={"help": f"Noise: {_SCORES}."})

    def __post_init__(self) -> None:
        if self.inject_noise not in (None, *KINDS):
            raise ValueError(f"inject_noise={self.inject_noise!r}: choose one of {', '.join(KINDS)}.")
        if self.inject_noise is not None:
            self.inject_rate = check_rate(self.inject_rate, "inject_rate")
        elif (self.inject_rate, self.inject_seed, self.inject_score_column) != (None, 0, None):
            raise ValueError(f"inject_rate={self.inject_rate!r} needs inject_noise. Choose one of {', '.join(KINDS)}.")


@dataclass
class NoiseCommandArguments:
    kind: str = field(metadata={"help": f"Kind of noise: {', '.join(KINDS)}."})
    rate: float | str | dict | None = field(metadata={"help": f"The {_RATE}."})
    seed: int = field(default=0, metadata={"help": "Seed of the draws."})
    score_column: str | None = field(default=None, metadata={"help": f"The {_SCORES}."})


def _run(argv: Sequence[str]) -> None:
    data, noise = parse(argv, (edit.EditArguments, NoiseCommandArguments), "trl-capo noise")
    noise.rate = check_rate(noise.rate)
    splits, dataset = edit.load_splits(data)
    noisy = inject_noise(dataset, **asdict(noise), group_column=data.group_column)
    record = edit.count_changes(data, dataset, pd.DataFrame({"noisy": noisy[IS_NOISY][:]}), ("noisy", "%"))
    edit.save_splits(data, {**splits, data.dataset_split: noisy}, {"noise.json": record | asdict(noise)})


def main(argv: Sequence[str]) -> int:
    return run("trl-capo noise", _run, argv)
