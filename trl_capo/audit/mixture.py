"""Which share of a group's labels is wrong, and how likely each one is: a mixture of two groups of pairs, by EM.

Pairs with wrong labels have low margins, pairs with right ones high margins. Two normal distributions of one variance
are fitted to the margins on a scale of signed logarithms (inverse hyperbolic sine), since margins stretch over orders
of magnitude. Like the beta mixtures on losses of Arazo et al. 2019 (arXiv 1904.11238), but on margins and for every
group.

EM works on counts in bins, so that it costs the same for a hundred pairs and for a million, and runs for all resamples
of a bootstrap at once. Pure functions of arrays.
"""

from dataclasses import dataclass

import numpy as np

BINS = 256
RESAMPLES = 200
STEPS = 500
SHARED_PAIRS = 10.0
"""So many pairs from all groups together are added to every group's: small groups look to the others."""
SHARP, SOFT = 0.2, 2.0
"""Units of the signed logarithm, in median |margin|. A sharp one tells the rate, a soft one how sure each margin is:
see docs/audit.md for what was compared."""
FITTED = 3.0
"""In median |margin|: the soft scale's components are fitted to margins cut off here, so that a single one far out is
not taken for a component of its own, with which all others would look alike."""


@dataclass(frozen=True)
class Components:
    """Two normal distributions of one variance; every field has the shape of the histograms' leading dimensions.

    Parameters:
        rate: the lower one's share, in (0, 1).
        wrong, right: their means, the first the lower.
        variance: of both.
    """

    rate: np.ndarray
    wrong: np.ndarray
    right: np.ndarray
    variance: np.ndarray

    def log_odds(self, values: np.ndarray) -> np.ndarray:
        """That a value is of the lower one: broadcast over the values' shape and the components'."""
        distance = (values - self.right) ** 2 - (values - self.wrong) ** 2
        return np.log(self.rate) - np.log1p(-self.rate) + distance / (2.0 * self.variance)


def signed_log(margins: np.ndarray, unit: float) -> np.ndarray:
    """(N,) margins on a scale that is linear within, and logarithmic beyond, `unit` times their median size."""
    size = float(np.median(np.abs(margins)))
    return np.arcsinh(margins / (unit * size if size > 0 else 1.0))


def histograms(values: np.ndarray, groups: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(BINS,) middles of bins, and (count, BINS) how many of each group's values lie in each.

    Args:
        values: (N,) finite.
        groups: (N,) numbers from 0 to `count` - 1.
    """
    low, high = float(values.min()), float(values.max())
    width = (high - low) / BINS or 1.0
    bins = np.minimum(((values - low) / width).astype(int), BINS - 1)
    counts = np.bincount(groups * BINS + bins, minlength=count * BINS).reshape(count, BINS)
    return low + (np.arange(BINS) + 0.5) * width, counts.astype(float)


def fit(places: np.ndarray, counts: np.ndarray, rate: np.ndarray | None = None) -> Components:
    """The likeliest components of histograms.

    Args:
        places: (B,) values of the bins.
        counts: (..., B) how often each occurs; in total more than 0.
        rate: (...) shares of the lower component, where they are known, in (0, 1).
    """
    total = counts.sum(axis=-1)
    overall = np.cumsum(counts.reshape(-1, len(places)).sum(axis=0))
    few, most = places[np.searchsorted(overall, overall[-1] * np.array([0.1, 0.9]))]
    belongs = np.broadcast_to(np.where(places < np.clip(0.0, few, most), 0.9, 0.1), counts.shape)
    floor, found, before = np.spacing(np.abs(places).max()) + 1e-12, rate, np.inf
    for _ in range(STEPS):
        lower, upper = counts * belongs, counts * (1.0 - belongs)
        share = lower.sum(axis=-1)
        wrong, right = (lower @ places) / share, (upper @ places) / (total - share)
        spread = (lower * (places - wrong[..., None]) ** 2 + upper * (places - right[..., None]) ** 2).sum(axis=-1)
        found = np.clip(share / total, 1e-6, 1.0 - 1e-6) if rate is None else rate
        components = Components(found, wrong, right, spread / total + floor)
        if np.max(np.abs(wrong - before)) < 1e-7 * (1.0 + np.abs(wrong).max()):
            break
        before = wrong
        column = Components(*(part[..., None] for part in (found, wrong, right, components.variance)))
        belongs = 1.0 / (1.0 + np.exp(-np.clip(column.log_odds(places), -50.0, 50.0)))
    return components


def noise_rates(margins: np.ndarray, groups: np.ndarray, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(count,) shares of wrong labels in every group, and (count,) their standard errors.

    Errors have two parts: a bootstrap's, of as many pairs, drawn from the group's own and the shared ones; and, since
    the shared ones' share in the estimate says nothing of this group, that share of a label's own standard deviation.
    Where all margins are one, nothing is known, and errors are infinite.

    Args:
        margins: (N,) finite, of pairs.
        groups: (N,) numbers from 0 to `count` - 1, each with a pair.
        count: of groups.
        seed: of the bootstrap.
    """
    places, counts = histograms(signed_log(margins, SHARP), groups, count)
    shared = _shared(counts)
    rates = fit(places, counts + shared).rate
    generator, errors = np.random.default_rng(seed), np.empty(count)
    for group, own in enumerate(counts):
        pairs = own.sum()
        likely = (own + shared) / (own + shared).sum()
        draws = generator.multinomial(int(pairs), likely, size=RESAMPLES)
        borrowed = SHARED_PAIRS / (pairs + SHARED_PAIRS)
        spread = fit(places, draws + shared).rate.std()
        errors[group] = np.hypot(spread, borrowed * np.sqrt(rates[group] * (1.0 - rates[group])))
    return rates, errors if np.ptp(margins) > 0 else np.full(count, np.inf)


def log_odds(margins: np.ndarray, groups: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """(N,) log-odds that labels are wrong; within a group they fall with the margin.

    Args:
        margins, groups: as `noise_rates`.
        rates: (count,) shares of wrong labels, in (0, 1).
    """
    values = signed_log(margins, SOFT)
    most = np.arcsinh(FITTED / SOFT)
    places, counts = histograms(np.clip(values, -most, most), groups, len(rates))
    found = fit(places, counts + _shared(counts), rates)
    return Components(rates[groups], found.wrong[groups], found.right[groups], found.variance[groups]).log_odds(values)


def _shared(counts: np.ndarray) -> np.ndarray:
    return SHARED_PAIRS * counts.sum(axis=0) / counts.sum()
