"""A training that is told to end (SIGTERM, as Slurm sends it) saves a checkpoint first.

Transformers' own `enable_jit_checkpoint` is not used. It lets every process choose its step by a timer of its own, so
that several wait for each other for ever, or save different steps; it may save between a gradient and its optimiser
step, when the noise rate's estimate has already seen the pairs that a resumed run gets again; and it ends as if the
training were completed. Here all processes agree, a step is finished and saved in the usual way, and the exit code
says what happened.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator

from transformers import Trainer, TrainerCallback

from trl_capo.messages import get_logger

logger = get_logger(__name__)

EXIT_CODE = 128 + signal.SIGTERM
"""What a shell reports of a process that SIGTERM ended."""


@contextlib.contextmanager
def checkpoint_on_sigterm(trainer: Trainer) -> Iterator[None]:
    """Within it, SIGTERM ends the trainer's training with a checkpoint.

    Python handles signals in the main thread alone; in another one nothing changes.

    Raises:
        SystemExit: after SIGTERM, with EXIT_CODE; so a script does not take the training for completed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ending = _Ending(trainer)
    before = signal.signal(signal.SIGTERM, ending.ask)
    trainer.add_callback(ending)
    try:
        yield
    finally:
        trainer.remove_callback(ending)
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
    if ending.asked:  # after the last step
        raise SystemExit(EXIT_CODE)


class _Ending(TrainerCallback):
    """Saves at the end of the step in which any process was asked to end, and ends all of them."""

    def __init__(self, trainer: Trainer) -> None:
        self.accelerator = trainer.accelerator
        self.asked = False
        self.agreed = False

    def ask(self, signum, frame) -> None:
        self.asked = True

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        """Here the loss has just been waited for, so that asking the other processes delays nothing."""
        if self.accelerator.num_processes == 1:
            self.agreed = self.asked
            return
        if self.asked:
            self.accelerator.set_trigger()
        self.agreed = self.accelerator.check_trigger() or self.agreed

    def on_step_end(self, args, state, control, **kwargs) -> None:
        control.should_save = control.should_save or self.agreed

    def on_save(self, args, state, control, **kwargs) -> None:
        if self.agreed:
            self.accelerator.wait_for_everyone()  # the first one to leave has the others stopped
            logger.warning(
                f"SIGTERM: training stopped after step {state.global_step} of {state.max_steps} and was saved. "
                "It goes on with resume_from_checkpoint=true."
            )
            raise SystemExit(EXIT_CODE)
