"""Save a checkpoint when a run receives SIGTERM, as Slurm sends it before preemption and time limits."""

import logging
import os
import signal
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

logger = logging.getLogger(__name__)  # that of Accelerate needs its state, which may not exist yet


class CheckpointOnSigterm(TrainerCallback):
    """Finish the step, save a complete checkpoint and end the run when one of its processes receives SIGTERM.

        CAPOTrainer(..., callbacks=[CheckpointOnSigterm()])

    `save_only_model` and `save_total_limit` do not apply to that checkpoint, and an evaluation that is due is skipped.
    In the last step SIGTERM is ignored, as the finished model is saved anyway. Afterwards, `stopped` says whether the
    run ended early.
    """

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.stopped, self._received = False, []
        self._previous_handler = signal.signal(signal.SIGTERM, lambda number, frame: self._received.append(number))

    # Not in `on_step_end`: there every callback finds `should_save` set, whatever their order.
    def on_optimizer_step(self, args, state, control, **kwargs) -> None:
        received = torch.tensor(len(self._received), device=PartialState().device)
        if reduce(received, "sum").item() and state.global_step + 1 < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True
            args.save_only_model, args.save_total_limit = False, None
            # The end of an epoch must not save again, and `save_strategy: best` not wait for a better evaluation.
            args.save_strategy = args.eval_strategy = "no"

    def on_train_end(self, args, state, control, **kwargs) -> None:
        signal.signal(signal.SIGTERM, self._previous_handler or signal.SIG_DFL)
        if self.stopped:
            PartialState().wait_for_everyone()  # launchers kill the other processes when the first one ends
        if self.stopped and state.is_world_process_zero:
            done = f"step {state.global_step} of {state.max_steps} and saved a checkpoint"
            logger.warning(f"SIGTERM: training stopped after {done}. Continue with resume_from_checkpoint: true.")


def last_complete_checkpoint(output_dir: str) -> str | None:
    """Return the last checkpoint from which training can resume, or None; warn of interrupted ones."""
    folders = (path for path in Path(output_dir).glob("checkpoint-*") if path.name[len("checkpoint-") :].isdigit())
    for folder in sorted(folders, key=lambda path: int(path.name[len("checkpoint-") :]), reverse=True):
        with suppress(OSError, ValueError, TypeError):
            TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))  # which Transformers writes last
            if any(folder.glob("rng_state*")):  # `save_only_model` saves none
                return str(folder)
        if os.environ.get("RANK", "0") == "0":
            logger.warning(f"{folder} is not a complete checkpoint and is passed over.")
    return None
