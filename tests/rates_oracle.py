"""An oracle for the noise rates of single pairs, with noise_rate="auto": Bayes' rule by plain sums."""

import math

import torch
from transformers import TrainerCallback

from trl_capo.agreement import NOISE_RATES, TEMPERATURES
from trl_capo.reference import MEAN_SLOPES, SLOPES


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
    """How likely every slope is after the first step, by language (None: of all pairs), by plain products and sums."""
    likelihoods = {name: [1.0] * len(SLOPES) for name in rates}
    for language, pair in zip(languages, step, strict=True):
        for name in (None, language):
            rate = min(NOISE_RATES, key=lambda of_grid, name=name: abs(of_grid - rates[name]))
            for column, slope in enumerate(SLOPES):
                agrees = 1 / (1 + math.exp(-slope * standardised(*pair)))
                likelihoods[name][column] *= (1 - rate) * agrees + rate * (1 - agrees)
    found, total = {name: [0.0] * len(SLOPES) for name in rates}, 0.0
    for mean in MEAN_SLOPES:
        prior = [math.exp(-((slope - mean) ** 2) / 2) for slope in SLOPES]
        joint = {
            name: [before / sum(prior) * likelihood for before, likelihood in zip(prior, own, strict=True)]
            for name, own in likelihoods.items()
        }
        likely = math.exp(-(mean**2) / 2) * math.prod(sum(row) for name, row in joint.items() if name is not None)
        total += likely
        for name, row in joint.items():
            found[name] = [old + likely * new / sum(row) for old, new in zip(found[name], row, strict=True)]
    return {name: [share / total for share in row] for name, row in found.items()}


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
