"""Confidence-aware preference optimization (CAPO) for Hugging Face TRL.

`CAPOTrainer` is a `trl.DPOTrainer` that scales each pair's loss by the confidence that its label is right. The public
names are imported on first use, so that `trl-capo --help` does not import torch.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0.dev0"

_MODULES = {
    "CAPOConfig": "core.config",
    "CAPOTrainer": "core.trainer",
    "capo_loss": "core.losses",
    "confidence_scale": "core.losses",
    "PairCallback": "core.metrics",
    "PairLog": "callbacks.pair_log",
    "CheckpointOnSigterm": "callbacks.preemption",
    "StopOnNonFinite": "callbacks.health",
    "TrainingHealth": "callbacks.health",
}
__all__ = list(_MODULES)

if TYPE_CHECKING:
    from trl_capo.callbacks.health import StopOnNonFinite, TrainingHealth
    from trl_capo.callbacks.pair_log import PairLog
    from trl_capo.callbacks.preemption import CheckpointOnSigterm
    from trl_capo.core.config import CAPOConfig
    from trl_capo.core.losses import capo_loss, confidence_scale
    from trl_capo.core.metrics import PairCallback
    from trl_capo.core.trainer import CAPOTrainer


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
