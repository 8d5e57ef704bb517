"""The running estimate of the noise rate, as part of a training's state."""

from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from trl_capo.losses import update_noise_rate


class NoiseRateEstimate(TrainerCallback, ExportableState):
    """The running estimate of the noise rate, kept in the trainer state of every checkpoint.

    Restored at the start of a resumed training from the checkpoint's state, whether or not
    `restore_callback_states_from_checkpoint` is set (with it Transformers builds a new instance from the arguments).
    """

    def __init__(self, noise_rate: float = 0.1, pairs_seen: float = 0.0) -> None:
        self.noise_rate: float | Tensor = noise_rate
        self.pairs_seen: float | Tensor = pairs_seen

    def state(self) -> dict[str, Any]:
        return {"args": {"noise_rate": float(self.noise_rate), "pairs_seen": float(self.pairs_seen)}, "attributes": {}}

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        saved = state.stateful_callbacks.get(type(self).__name__)
        if saved is not None:
            self.__init__(**saved["args"])

    def update(self, doubt: Tensor, pairs: Tensor) -> None:
        """Move the estimate after an optimiser step, by the sum of 1 - c over all its pairs on all processes."""
        rate, seen = (torch.as_tensor(value, device=pairs.device) for value in (self.noise_rate, self.pairs_seen))
        self.noise_rate = update_noise_rate(rate, doubt, pairs, seen)
        self.pairs_seen = seen + pairs
