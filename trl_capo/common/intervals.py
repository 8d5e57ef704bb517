"""Confidence intervals and tests for accuracies, for differences of models on the same pairs, and over seeds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Z95 = 1.959963984540054  # the 0.975 quantile of the normal distribution
SEED_DRAWS = 4_000


def wilson_interval(successes: int, total: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a proportion (Wilson 1927); `total` must be positive."""
    from scipy.stats import binomtest

    return tuple(map(float, binomtest(successes, total).proportion_ci(method="wilson")))


def sign_test(wins: int, losses: int) -> float:
    """Return the two-sided p-value of the exact sign test, which on paired outcomes is McNemar's exact test."""
    from scipy.special import bdtr  # the binomial distribution function

    return min(1.0, 2 * float(bdtr(min(wins, losses), wins + losses, 0.5)))


class Estimate(NamedTuple):
    """A mean with its 95 % interval."""

    value: float
    low: float
    high: float


def percentile_estimate(value: float, draws: np.ndarray) -> Estimate:
    """Return a value with the percentile interval of its bootstrap draws, which may be infinite."""
    return Estimate(float(value), *np.quantile(draws, [0.025, 0.975], method="inverted_cdf").tolist())


class TwoLevelBootstrap:
    """Draw seeds, and test pairs within the (pairs,) groups `labels`, with replacement, the same for every method."""

    def __init__(self, labels: np.ndarray, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self._weights = np.zeros((SEED_DRAWS, len(labels)))
        for group in np.unique(labels):
            size = (labels == group).sum()
            self._weights[:, labels == group] = generator.multinomial(size, np.full(size, 1 / size), size=SEED_DRAWS)

    def draws(self, values: np.ndarray, seeds: Sequence[int], member: np.ndarray | None = None) -> np.ndarray:
        """Return (draws,) means of (seeds, pairs) values, over the pairs of a mask `member` if it is given."""
        weights = self._weights if member is None else self._weights * member
        by_seed = values @ weights.T / weights.sum(axis=1)
        # The drawn seeds depend only on how many there are, so methods with the same seeds share them.
        drawn = np.random.default_rng(len(seeds)).integers(len(seeds), size=(SEED_DRAWS, len(seeds)))
        return by_seed[drawn, np.arange(SEED_DRAWS)[:, None]].mean(axis=1)
