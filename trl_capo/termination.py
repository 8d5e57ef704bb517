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
from typing import NoReturn

from transformers import Trainer

from trl_capo.messages import get_logger
from trl_capo.recorder import PairRecorder

logger = get_logger(__name__)

EXIT_CODE = 128 + signal.SIGTERM
"""What a shell reports of a process that SIGTERM ended."""


@contextlib.contextmanager
def checkpoint_on_sigterm(trainer: Trainer, recorder: PairRecorder) -> Iterator[None]:
    """Within it, SIGTERM asks for the training's end; the recorder tells the other processes.

    After each step, `end_if_agreed` ends it. Python handles signals in the main thread alone; in another one nothing
    changes.

    Raises:
        SystemExit: after SIGTERM, with EXIT_CODE; so a script does not take the training for completed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(signum: int, frame: object) -> None:
        recorder.asked_to_end = True

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
        _end_if_asked_late(trainer, recorder)
    finally:
        recorder.asked_to_end = recorder.agreed_to_end = False
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def end_if_agreed(trainer: Trainer, recorder: PairRecorder) -> None:
    """End the training after a step in which any process was asked to; all processes call it together.

    Raises:
        SystemExit: it was asked for, and the step is saved.
    """
    if recorder.agreed_to_end:
        _save(trainer)
        _end(trainer, "and was saved")


def _end_if_asked_late(trainer: Trainer, recorder: PairRecorder) -> None:
    """End if a process was asked when the last step's pairs had been gathered."""
    if recorder.asked_to_end:
        trainer.accelerator.set_trigger()
    if not trainer.accelerator.check_trigger():
        return
    if trainer.state.global_step == trainer._initial_global_step:
        _end(trainer, "and had been saved before")
    if trainer.args.load_best_model_at_end:
        _end(trainer, "and has the best model in place of the last")
    _save(trainer)
    _end(trainer, "and was saved")


def _save(trainer: Trainer) -> None:
    """A checkpoint to go on from, unless the step has one, whatever else is saved."""
    if trainer._capo_saved and not trainer.args.save_only_model:
        return
    only_model, trainer.args.save_only_model = trainer.args.save_only_model, False
    trainer._save_checkpoint(trainer.model_wrapped, trial=None)
    trainer.args.save_only_model = only_model
    trainer.control = trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)


def _end(trainer: Trainer, how: str) -> NoReturn:
    trainer.accelerator.wait_for_everyone()  # the first one to leave has the others stopped
    state = trainer.state
    logger.warning(
        f"SIGTERM: training stopped after step {state.global_step} of {state.max_steps} {how}. "
        "It goes on with resume_from_checkpoint=true."
    )
    raise SystemExit(EXIT_CODE)
