"""What CAPO takes from a call of DPOTrainer's loss without changing it, and the check that it still means the same."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import trl
from torch import Tensor
from trl import DPOTrainer

from trl_capo.losses import sequence_log_probs


class FirstOutput:
    """Stands in for the model in one call of DPOTrainer's loss and keeps what the first forward returned."""

    def __init__(self, model: Callable[..., Any]) -> None:
        self.model = model
        self.value: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        outputs = self.model(*args, **kwargs)
        self.value = outputs if self.value is None else self.value
        return outputs


@contextlib.contextmanager
def given_ref_logps(trainer: DPOTrainer) -> Iterator[None]:
    """Within it, DPOTrainer takes the reference log-probs from the batch."""
    before = trainer.precompute_ref_logps
    trainer.precompute_ref_logps = True
    try:
        yield
    finally:
        trainer.precompute_ref_logps = before


def policy_log_probs(outputs: Any, inputs: dict[str, Tensor], ld_alpha: float | None) -> tuple[Tensor, Tensor]:
    """(B,) log-probs of the chosen and of the rejected completions under the policy, with their gradient.

    Raises:
        RuntimeError: this TRL gives the model's outputs no `log_probs`.
    """
    token_log_probs = getattr(outputs, "log_probs", None)
    if token_log_probs is None:
        raise RuntimeError(
            f"DPOTrainer of TRL {trl.__version__} no longer gets `log_probs` from the model it is given, as that "
            "of TRL 1.16 does, so CAPO has nothing to scale. Install a TRL that this trl-capo is tested with."
        )
    mask = inputs["completion_mask"][:, 1:]
    # Prompt-learning adapters put virtual tokens before the sequence: keep the real tokens' positions.
    logps = sequence_log_probs(token_log_probs[:, -mask.size(1) :], mask, ld_alpha=ld_alpha)
    return logps.chunk(2)


def check_agreement(dpo_loss: Tensor, ours: Tensor) -> None:
    """Raise RuntimeError unless DPOTrainer's loss is the mean of our pair losses."""
    if not torch.allclose(dpo_loss.detach().float(), ours, rtol=1e-3, atol=1e-3, equal_nan=True):
        raise RuntimeError(
            f"DPOTrainer of TRL {trl.__version__} gives the first batch the loss {dpo_loss.item():.6f}, and "
            f"CAPO's pair losses average to {ours.item():.6f}: this TRL computes the relative reward in "
            "another way than TRL 1.16. Install a TRL that this trl-capo is tested with."
        )
