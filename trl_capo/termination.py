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
from trl_capo.recorder import PairRecorder

logger = get_logger(__name__)

EXIT_CODE = 128 + signal.SIGTERM
"""What a shell reports of a process that SIGTERM ended."""


@contextlib.contextmanager
def checkpoint_on_sigterm(trainer: Trainer, recorder: PairRecorder) -> Iterator[None]:
    """Within it, SIGTERM ends the trainer's training with a checkpoint; the recorder tells the other processes.

    Python handles signals in the main thread alone; in another one nothing changes.

    Raises:
        SystemExit: after SIGTERM, with EXIT_CODE; so a script does not take the training for completed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ending = _Ending(trainer, recorder)
    before = signal.signal(signal.SIGTERM, ending.ask)
    trainer.add_callback(ending)
    try:
        yield
        ending.after_the_last_step()
    finally:
        trainer.remove_callback(ending)
        recorder.asked_to_end = recorder.agreed_to_end = False
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


class _Ending(TrainerCallback):
    """Saves at the end of the step in which any process was asked to end, and ends all of them."""

    def __init__(self, trainer: Trainer, recorder: PairRecorder) -> None:
        self.trainer = trainer
        self.recorder = recorder
        self.saved = -1

    def ask(self, signum, frame) -> None:
        self.recorder.asked_to_end = True

    def on_step_end(self, args, state, control, **kwargs) -> None:
        control.should_save = control.should_save or self.recorder.agreed_to_end

    def on_save(self, args, state, control, **kwargs) -> None:
        self.saved = state.global_step
        if self.recorder.agreed_to_end:
            self._end()

    def after_the_last_step(self) -> None:
        """End if a process was asked too late for the step; what is trained is saved, if it was not.

        A best model that was loaded in its place is in a checkpoint already.
        """
        trainer = self.trainer
        if self.recorder.asked_to_end:
            trainer.accelerator.set_trigger()
        if not trainer.accelerator.check_trigger():
            return
        if trainer.state.global_step != self.saved and not trainer.args.load_best_model_at_end:
            trainer._save_checkpoint(trainer.model_wrapped, trial=None)
        self._end()

    def _end(self) -> None:
        self.trainer.accelerator.wait_for_everyone()  # the first one to leave has the others stopped
        state = self.trainer.state
        logger.warning(
            f"SIGTERM: training stopped after step {state.global_step} of {state.max_steps} and was saved. "
            "It goes on with resume_from_checkpoint=true."
        )
        raise SystemExit(EXIT_CODE)
