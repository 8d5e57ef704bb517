"""An oracle for the noise rates of single pairs, with noise_rate="auto": Bayes' rule by plain sums."""

import math

import torch
from transformers import TrainerCallback

from trl_capo.agreement import NOISE_RATES, TEMPERATURES
from trl_capo.reference import MEAN_SLOPES, SLOPES, posteriors


def standardised(chosen, rejected, ref_chosen, ref_rejected) -> float:
    """The reference's margin of a pair, from the log-probs of its tokens."""
    return math.asinh(float(ref_chosen.sum() - ref_rejected.sum()) / math.sqrt(len(chosen) + len(rejected)))


def own_rates(step, languages, rates, of_slope, rhos=None, shares=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Every pair's own rate and weight in Bayes' words, by plain sums (docs/method.md, eq. 7).

    `rates` and `of_slope` (how likely every slope is) are by language; `rhos` are those of pairs that were met.
    """
    own, weights = [], []
    for place, (language, pair) in enumerate(zip(languages, step, strict=True)):
        margin, odds = standardised(*pair), 0.0
        if rhos is not None:
            first = sum(
                share / (1 + math.exp(-rhos[place] / t)) for share, t in zip(shares, TEMPERATURES, strict=True)
            )
            odds = math.log(first / (1 - first))
        belief = sum(
            share / (1 + math.exp(-odds - slope * margin))
            for share, slope in zip(of_slope[language], SLOPES, strict=True)
        )
        wrong, rate = rates[language] * (1 - belief), rates[language]
        own.append(min(0.5, wrong / (wrong + (1 - rate) * belief)))
        weights.append((1 - 2 * own[-1]) / max(1 - 2 * rate, 0.2))
    return torch.tensor(own, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64)


def slopes_after_a_step(step, languages, rates) -> dict[str | None, list[float]]:
    """How likely every slope is after the first step, by language (None: of all pairs), likelihoods by plain sums."""
    names = list(rates)
    sums = torch.zeros(len(names), len(NOISE_RATES), len(SLOPES), dtype=torch.float64)
    for language, pair in zip(languages, step, strict=True):
        margin = standardised(*pair)
        for row, rate in enumerate(NOISE_RATES):
            for column, slope in enumerate(SLOPES):
                agrees = rate + (1 - 2 * rate) / (1 + math.exp(-slope * margin))
                for name in (None, language):
                    sums[names.index(name), row, column] += math.log(agrees)
    grids = (torch.tensor(values, dtype=torch.float64) for values in (NOISE_RATES, SLOPES, MEAN_SLOPES))
    found = posteriors(sums, torch.tensor([rates[name] for name in names], dtype=torch.float64), *grids)
    return dict(zip(names, found.tolist(), strict=True))


class KeepEstimates(TrainerCallback):
    """At the begin of every step: the state, and by language (None: of all pairs) rates and shares of the slopes."""

    def __init__(self, trainer):
        self.trainer, self.states, self.rates, self.of_slope = trainer, [], [], []

    def on_step_begin(self, *_, **__):
        estimate = self.trainer._capo_estimate
        self.states.append(estimate.state()["args"]["saved"])
        names = [None, *estimate.labels]
        self.rates.append(dict(zip(names, estimate.noise_rates.tolist(), strict=True)))
        self.of_slope.append(dict(zip(names, estimate._of_slope[:-1].tolist(), strict=True)))
