"""Confidence-aware preference optimization (CAPO) for Hugging Face TRL.

The public names are imported on first use, so that `trl-capo --help` does not import torch.
"""

from typing import TYPE_CHECKING

_MODULES = {
    "core.config": ("CAPOConfig",),
    "core.losses": ("capo_loss", "confidence_scale"),
    "core.metrics": ("PairCallback",),
    "core.trainer": ("CAPOTrainer",),
    "callbacks.pair_log": ("PairLog",),
    "callbacks.preemption": ("CheckpointOnSigterm",),
    "callbacks.health": ("StopOnNonFinite", "TrainingHealth"),
}
if TYPE_CHECKING:
    from trl_capo.callbacks.health import StopOnNonFinite as StopOnNonFinite
    from trl_capo.callbacks.health import TrainingHealth as TrainingHealth
    from trl_capo.callbacks.pair_log import PairLog as PairLog
    from trl_capo.callbacks.preemption import CheckpointOnSigterm as CheckpointOnSigterm
    from trl_capo.core.config import CAPOConfig as CAPOConfig
    from trl_capo.core.losses import capo_loss as capo_loss
    from trl_capo.core.losses import confidence_scale as confidence_scale
    from trl_capo.core.metrics import PairCallback as PairCallback
    from trl_capo.core.trainer import CAPOTrainer as CAPOTrainer

    __version__: str
else:  # hidden from type checkers, which would take any name for an object of the package

    def __getattr__(name: str) -> object:
        from importlib import import_module, metadata

        if name == "__version__":
            return metadata.version("trl-capo")
        module = next((module for module, names in _MODULES.items() if name in names), None)
        if module is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{module}"), name)
