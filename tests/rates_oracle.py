"""An oracle for the noise rates of single pairs, with noise_rate="auto": Bayes' rule by plain sums."""

import math

import torch
from transformers import TrainerCallback

from trl_capo.agreement import TEMPERATURES
from trl_capo.reference import SLOPES


def own_rates(step, languages, rates, of_slope, rhos=None, shares=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Every pair's own rate and weight in Bayes' words, by plain sums (docs/method.md, eq. 7).

    `rates` and `of_slope` (how likely every slope is) are by language; `rhos` are those of pairs that were met.
    """
    own, weights = [], []
    for place, (language, (chosen, rejected, *references)) in enumerate(zip(languages, step, strict=True)):
        lead = float(references[0].sum() - references[1].sum()) / math.sqrt(len(chosen) + len(rejected))
        odds = 0.0
        if rhos is not None:
            first = sum(
                share / (1 + math.exp(-rhos[place] / t)) for share, t in zip(shares, TEMPERATURES, strict=True)
            )
            odds = math.log(first / (1 - first))
        belief = sum(
            share / (1 + math.exp(-odds - slope * math.asinh(lead)))
            for share, slope in zip(of_slope[language], SLOPES, strict=True)
        )
        wrong, rate = rates[language] * (1 - belief), rates[language]
        own.append(min(0.5, wrong / (wrong + (1 - rate) * belief)))
        weights.append((1 - 2 * own[-1]) / max(1 - 2 * rate, 0.2))
    return torch.tensor(own, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64)


class KeepEstimates(TrainerCallback):
    """At the begin of every step: the state, and by language (None: of all pairs) rates and shares of the slopes."""

    def __init__(self, trainer):
        self.trainer, self.states, self.rates, self.of_slope = trainer, [], [], []

    def on_step_begin(self, *_, **__):
        estimate = self.trainer._capo_estimate
        self.states.append(estimate.state()["args"]["saved"])
        names = [None, *estimate.labels]
        self.rates.append(dict(zip(names, estimate.noise_rates.tolist(), strict=True)))
        self.of_slope.append(dict(zip(names, estimate._of_slope.tolist(), strict=True)))
