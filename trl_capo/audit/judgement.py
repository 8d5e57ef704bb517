"""The judgement of an audit: how likely each label is wrong, and what share of each group's labels."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from trl_capo.audit.dynamics import Dynamics
from trl_capo.audit.mixture import log_odds, noise_rates
from trl_capo.statistics import Z95

EVIDENCE = ("mean_margin", "first_margin")
"""Margins to judge by: the mean over all passes, or the one before the model learned from the pair."""
FLIP, LOOK = 0.9, 0.3
"""From which score on a label is better flipped, and worth a look; docs/audit.md has how many of them are wrong."""


@dataclass(frozen=True)
class Judgement:
    """How likely the labels of N pairs are wrong, and what share of those of G groups.

    Parameters:
        groups: (G,) names, sorted; "" stands for pairs without a group.
        place: (N,) each pair's group, a place in `groups`.
        log_odds: (N,) that the label is wrong.
        rates: (G,) noise rates.
        intervals: (G, 2) their 95 % intervals.
        mixture_rates, training_rates: (G,) the two estimates that the rates come from; nan where there is none.
        at_first_sight: whether the margins are those of a single pass.
    """

    groups: np.ndarray
    place: np.ndarray
    log_odds: np.ndarray
    rates: np.ndarray
    intervals: np.ndarray
    mixture_rates: np.ndarray
    training_rates: np.ndarray
    at_first_sight: bool

    @cached_property
    def scores(self) -> np.ndarray:
        """(N,) probabilities that the labels are wrong."""
        return 1.0 / (1.0 + np.exp(-np.clip(self.log_odds, -700.0, 700.0)))

    @cached_property
    def overall_rate(self) -> float:
        """The noise rate of all pairs."""
        return float(self.rates[self.place].mean())


def judge(pairs: Dynamics, evidence: str = "mean_margin", names: np.ndarray | None = None) -> Judgement:
    """Judge the pairs.

    Args:
        pairs: N of them.
        evidence: one of EVIDENCE.
        names: (N,) groups, None for no group; those of the log by default. The training's rate is that of a group
            if all of its pairs were in the group of that name there too.
    """
    trained_as = pairs.group_names()
    names = trained_as if names is None else names
    named = np.array(["" if name is None else name for name in names], dtype=object)
    groups, place = np.unique(named, return_inverse=True)  # of objects: an array of text pads all to the longest
    margins = getattr(pairs, evidence).astype(float)
    mixed, error = noise_rates(margins, place, len(groups))
    trained = np.array([pairs.training_rates.get(group or None, np.nan) for group in groups.tolist()])
    trained[place[names != trained_as]] = np.nan
    one_pass = evidence == "first_margin" or pairs.passes == 1
    rates, intervals = combine(mixed, error, trained, one_pass)
    odds = log_odds(margins, place, np.clip(rates, 1e-4, 1.0 - 1e-4))
    return Judgement(groups, place, odds, rates, intervals, mixed, trained, one_pass)


def combine(
    mixed: np.ndarray, error: np.ndarray, trained: np.ndarray, one_pass: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(G,) noise rates and (G, 2) their 95 % intervals.

    The mixture on the margins of several passes errs downwards where the model has learned wrong labels, the
    training's own estimate at first sight upwards where the model is surely wrong. So the rate is the mean of both,
    and half their difference counts as a standard error beside the mixture's. After a single pass the mixture finds
    far too much, and the training's estimate is the rate.

    Args:
        mixed, error: (G,) the mixture's rates and their standard errors.
        trained: (G,) the training's rates; nan where it made none: there the mixture's is the rate.
        one_pass: whether the margins are of first sights alone.
    """
    trained = np.where(np.isnan(trained), mixed, trained)
    rates = trained if one_pass else (trained + mixed) / 2.0
    reach = Z95 * np.hypot(error, (trained - mixed) / 2.0)
    return rates, np.clip(np.stack([rates - reach, rates + reach], axis=1), 0.0, 1.0)


def suggestions(scores: np.ndarray) -> np.ndarray:
    """(N,) "flip", "look" or "keep", by FLIP and LOOK."""
    return np.select([scores >= FLIP, scores >= LOOK], ["flip", "look"], "keep")
