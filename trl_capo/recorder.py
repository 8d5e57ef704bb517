"""What CAPOTrainer logs of its pairs: collected batch by batch, exact over processes, micro-batches and groups."""

import math
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import TrainerCallback

from trl_capo.degenerate import DegenerationWatch
from trl_capo.messages import get_logger
from trl_capo.metrics import PairWindow, group_metrics
from trl_capo.nonfinite import Suspects, count_broken
from trl_capo.pairs import PairIndex
from trl_capo.plain import first_few

logger = get_logger(__name__)

REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "rewards/accuracies/ties")
LOGPS = ("logps/chosen", "logps/rejected")
CAPO = ("capo/noise_rate", "capo/confidence", "capo/scale", "capo/contradicted", "capo/weight")


def pair_rows(
    rewards: tuple[Tensor, Tensor],
    logps: tuple[Tensor, Tensor],
    rho: Tensor,
    scale: Tensor,
    confidence: Tensor,
    rate: Tensor | float,
    weights: Tensor | None,
) -> Tensor:
    """(B, columns) the values of a batch that are recorded: REWARDS, LOGPS, CAPO. Chosen come first in the tuples.

    Without weights theirs are NaN, and so is their mean.
    """
    chosen, rejected = (reward.detach().float() for reward in rewards)
    ranked = [chosen, rejected, chosen > rejected, chosen - rejected, chosen == rejected]
    rate = torch.as_tensor(rate, device=scale.device).expand_as(scale)
    weights = torch.full_like(scale, torch.nan) if weights is None else weights
    capo = [rate, confidence, scale, rho < 0, weights]
    return torch.stack([value.detach().float() for value in [*ranked, *logps, *capo]], dim=1)


class PairRecorder(TrainerCallback):
    """Collects the rows of training steps and of evaluations; a training that starts forgets what one before it left.

    Args:
        accelerator: whose processes' pairs are put together.
        index: knows the groups; their labels name the metrics.

    Attributes:
        asked_to_end: set from outside: this process wants the training to end.
        agreed_to_end: in the last optimiser step, a process wanted it. It crosses with the pairs, at no cost.
    """

    def __init__(self, accelerator: Accelerator, index: PairIndex) -> None:
        self.accelerator = accelerator
        self.index = index
        self.asked_to_end = self.agreed_to_end = False
        self._start()
        self._evaluated: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self._start()

    def _start(self) -> None:
        self._step, self._window = _new_window(), _new_window()
        self._batches: list[Suspects] = []
        self._watch = DegenerationWatch()

    def add_training(self, rows: Tensor, suspects: Suspects) -> list[Suspects]:
        """Add a micro-batch; with the last one of an optimiser step, the step of all processes counts as logged.

        Returns this process's micro-batches of the step if a pair of any process is broken, and else nothing.
        """
        self._step.add(rows, suspects.groups, len(self.index.labels))
        self._batches.append(suspects)
        if not self.accelerator.sync_gradients:
            return []
        wish = rows.new_full((1,), self.asked_to_end)
        own = torch.cat([self._step.vector, count_broken(self._batches), wish])
        steps = self.accelerator.gather(own[None])
        self._window.merge(steps[:, :-2])
        batches, self._step, self._batches = self._batches, _new_window(), []
        broken, self.agreed_to_end = steps[:, -2:].any(dim=0).tolist()
        return batches if broken else []

    def take_training(self) -> dict[str, float]:
        """The metrics since the last call; TRL logs its own rewards, so of those only what it has not."""
        if self._window.empty:
            return {}
        overall, by_group = _means(self._window)
        for sign in self._watch.add(overall, self._window.pairs):
            logger.warning(sign)
        self._window = _new_window()
        kept = {key: value for key, value in overall.items() if key.startswith("capo/") or key.endswith("/ties")}
        return kept | group_metrics(by_group, self.index.labels[: len(by_group)])

    def state(self) -> dict[str, Any]:
        """The window since the last call of `take_training`, at the end of an optimiser step, for a checkpoint."""
        return {"labels": self.index.labels, "window": None if self._window.empty else self._window.vector.tolist()}

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on with the window that `state` gave, where the data still have its groups."""
        if saved["window"] is not None and self.index.knows(saved["labels"]):
            self._window.merge(torch.tensor([saved["window"]], device=self.accelerator.device))

    def start_evaluation(self) -> None:
        self._evaluated = []

    def add_evaluation(self, rows: Tensor, groups: Tensor, pairs: Tensor | None) -> None:
        """Add a batch of all processes; without pair numbers Accelerate must tell what it padded."""
        if pairs is None:
            rows, groups = self.accelerator.gather_for_metrics((rows, groups))
        else:
            rows, groups, pairs = self.accelerator.gather((rows, groups, pairs))
        self._evaluated.append((rows, groups, pairs))

    def take_evaluation(self) -> dict[str, float]:
        """The metrics of the evaluated pairs, each counted once."""
        if not self._evaluated:
            return {}
        rows, groups, pairs = zip(*self._evaluated, strict=True)
        self._evaluated = []
        rows, groups = torch.cat(rows).cpu(), torch.cat(groups).cpu()
        if pairs[0] is not None:
            first = _first_occurrences(torch.cat(pairs).cpu())
            rows, groups = rows[first], groups[first]
        self._tell_broken(rows, groups)
        window = _new_window()
        for some_rows, some_groups in zip(rows.split(4096), groups.split(4096), strict=True):
            window.add(some_rows, some_groups, len(self.index.labels))
        overall, by_group = _means(window)
        return overall | group_metrics(by_group, self.index.labels)

    def _tell_broken(self, rows: Tensor, groups: Tensor) -> None:
        """Warn of evaluated pairs with log-probs that are not finite: a mean with one of them is none."""
        broken = ~rows[:, : len(REWARDS + LOGPS)].isfinite().all(dim=1)
        if broken.any():
            names = [self.index.labels[group] for group in groups[broken].unique().tolist() if group >= 0]
            logger.warning(
                f"evaluation: log-probabilities or rewards of {int(broken.sum())} of {len(rows)} pairs are not finite "
                f"numbers{f' (groups: {first_few(names, 8)})' if names else ''}. Metrics of these pairs mean nothing."
            )


def _new_window() -> PairWindow:
    return PairWindow(REWARDS + LOGPS + CAPO, extremes=("capo/scale",))


def _means(window: PairWindow) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Of all pairs and of every group; no mean weight where there are no weights."""
    overall, by_group = window.means()
    absent = {"capo/weight"} if math.isnan(overall["capo/weight"]) else set()
    return {key: value for key, value in overall.items() if key not in absent}, by_group


def _first_occurrences(numbers: Tensor) -> Tensor:
    """Where each number occurs first, in that order."""
    ordered, order = torch.sort(numbers, stable=True)
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[1:] = ordered[1:] != ordered[:-1]
    return order[new].sort().values
