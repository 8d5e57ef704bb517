"""Which learning rate a method has: the best on the validation split, for every number of epochs by itself.

A rate that learns fast may be the best of short runs and the worst of long ones, which repeat noisy labels more often.
"""

from collections.abc import Mapping
from typing import Any

from trl_capo.study.config import Run, StudyConfig, Trained

Tried = dict[Trained, dict[float, float]]
"""Learning rate -> mean accuracy on the validation split, for every method and number of epochs."""


def validation_accuracies(config: StudyConfig, results: Mapping[Run, Mapping[str, Any]]) -> Tried:
    """The means over the tuning runs of what was measured at their end; without runs, nothing."""
    tried: Tried = {}
    for method, epochs in config.trained():
        found: dict[float, list[float]] = {}
        for run, result in results.items():
            if (run.method, run.epochs) == (method, config.tuning_epochs(epochs)):
                found.setdefault(run.learning_rate, []).append(result["curve"][-1]["accuracy"])
        if found:
            tried[method, epochs] = {rate: sum(found[rate]) / len(found[rate]) for rate in found}
    return tried


def choose_learning_rates(config: StudyConfig, tried: Tried) -> dict[Trained, float]:
    """The best rates, the lower one of equals; the first of the plan for what has not been tried."""
    return {
        trained: max(sorted(tried[trained]), key=tried[trained].__getitem__)
        if trained in tried
        else config.learning_rates[0]
        for trained in config.trained()
    }
