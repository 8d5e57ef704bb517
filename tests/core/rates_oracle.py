"""An oracle for the noise rates of single pairs, with noise_rate="auto": Bayes' rule by plain sums."""

import math

import torch
from transformers import TrainerCallback

from trl_capo.core.noise_model import TEMPERATURES


def pair_rates(
    languages, rates, slopes, mean_scales, rhos=None, temperature_posterior=None, witness=None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Every pair's own noise rate and label weight (docs/method.md, eq. 7).

    `rates`, `slopes` and `mean_scales` are by language; `rhos` are those that pairs had when they were first seen. A
    slope other than 0 puts the witness in the place of the first view.
    """
    own, weights = [], []
    for place, language in enumerate(languages):
        odds = 0.0
        if rhos is not None:
            of_temperatures = zip(temperature_posterior, TEMPERATURES, strict=True)
            first = sum(probability / (1 + math.exp(-rhos[place] / t)) for probability, t in of_temperatures)
            odds = math.log(first / (1 - first))
        if slopes[language]:
            odds = slopes[language] * witness[place]
        belief = 1 / (1 + math.exp(-odds))
        wrong, rate = rates[language] * (1 - belief), rates[language]
        own.append(min(0.5, wrong / (wrong + (1 - rate) * belief)))
        weights.append((1 - 2 * own[-1]) / mean_scales[language])
    return torch.tensor(own, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64)


class KeepEstimates(TrainerCallback):
    """Keeps at each step's start the state and temperatures, and rates, slopes and mean scales by language."""

    def __init__(self, trainer) -> None:
        self.trainer, self.states, self.temperatures, self.known = trainer, [], [], []

    def on_step_begin(self, *_, **__) -> None:
        estimator = self.trainer.noise_rate_estimator
        self.states.append(estimator.state()["args"])
        self.temperatures.append(estimator._temperature_posterior.tolist())
        names = [None, *estimator.group_names]
        known = (estimator._used_rates, estimator._slopes, estimator._mean_scales(torch.arange(len(names)) - 1))
        self.known.append([dict(zip(names, values.tolist(), strict=True)) for values in known])
