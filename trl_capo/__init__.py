"""trl-capo: confidence-aware preference optimization (CAPO) for Hugging Face TRL.

`CAPOTrainer` is a `trl.DPOTrainer` that scales each pair's loss by the confidence that its label is right. The public
names load on first use, so that `trl-capo --help` does not import torch.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0.dev0"

_HOME = {
    "CAPOConfig": "config",
    "CAPOTrainer": "trainer",
    "capo_loss": "losses",
    "confidence_scale": "losses",
}
__all__ = ["CAPOConfig", "CAPOTrainer", "capo_loss", "confidence_scale"]

if TYPE_CHECKING:
    from trl_capo.config import CAPOConfig
    from trl_capo.losses import capo_loss, confidence_scale
    from trl_capo.trainer import CAPOTrainer


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
