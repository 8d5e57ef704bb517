"""SIGTERM while training: the step is finished and saved, and the resumed training ends with the same weights.

Several processes and random moments are in kill_battery.py, launchers in tests/train/test_cluster.py.
"""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import CPU_ARGUMENTS
from transformers import TrainerCallback

from trl_capo import CAPOConfig, CAPOTrainer, CheckpointOnSigterm
from trl_capo.callbacks.preemption import last_complete_checkpoint

OPTIONS = {"max_steps": 6, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
EVALUATE = {"eval_strategy": "steps", "eval_steps": 2}
BEST = {"metric_for_best_model": "rewards/margins", "greater_is_better": False, "save_total_limit": 1}


class Terminate(TrainerCallback):
    """Sends this process SIGTERM at an event of a step."""

    def __init__(self, event: str, step: int) -> None:
        def send(args, state, control, **kwargs) -> None:
            if state.global_step == step:
                signal.raise_signal(signal.SIGTERM)

        setattr(self, event, send)


class SavedSteps(TrainerCallback):
    def __init__(self) -> None:
        self.steps = []

    def on_save(self, args, state, control, **kwargs) -> None:
        self.steps.append(state.global_step)


def train(model_dir, args, pairs, *callbacks, resume=None) -> CAPOTrainer:
    data = {"train_dataset": pairs, "eval_dataset": pairs.select(range(4))}
    trainer = CAPOTrainer(model_dir, args=args, callbacks=list(callbacks), **data)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.fixture(scope="module")
def uninterrupted(model_dir, pairs, tmp_path_factory) -> dict[str, torch.Tensor]:
    args = CAPOConfig(output_dir=str(tmp_path_factory.mktemp("whole")), **CPU_ARGUMENTS | OPTIONS)
    return train(model_dir, args, pairs).model.state_dict()


@pytest.fixture(autouse=True)
def handled():
    """The signals that reach the handler of whoever trains; it must be back after the training."""
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    handler = signal.getsignal(signal.SIGTERM)
    yield received
    assert signal.getsignal(signal.SIGTERM) is handler
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("event", "step", "saved", "changes"),
    [
        ("on_train_begin", 0, 1, {"save_strategy": "no"}),
        ("on_substep_end", 2, 3, {"save_strategy": "steps", "save_steps": 3}),
        ("on_step_begin", 3, 4, {"save_strategy": "steps", "save_steps": 3, "save_only_model": True}),
        ("on_step_end", 3, 4, {"save_strategy": "best"} | BEST),  # step 4 is evaluated otherwise, and is no better
        ("on_evaluate", 4, 5, {"save_strategy": "epoch"}),
    ],
    ids=["nothing else is saved", "the step is saved anyway", "only the model", "only the best", "epochs"],
)
def test_the_step_is_finished_and_saved_once_and_the_resumed_training_is_the_same(
    make_args, model_dir, pairs, uninterrupted, handled, event, step, saved, changes
):
    """A signal after the last micro-batch of a step counts for the next one."""
    options, stop, saves = OPTIONS | EVALUATE | changes, CheckpointOnSigterm(), SavedSteps()
    args = make_args(**options)
    trainer = train(model_dir, args, pairs, stop, Terminate(event, step), saves)
    assert (stop.stopped, trainer.state.global_step, saves.steps.count(saved)) == (True, saved, 1)
    assert handled == []
    assert last_complete_checkpoint(args.output_dir) == str(Path(args.output_dir, f"checkpoint-{saved}"))
    resumed = train(model_dir, make_args(**options), pairs, resume=True).model.state_dict()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in uninterrupted.items())


@pytest.mark.parametrize(("event", "step"), [("on_step_begin", 5), ("on_step_end", 6), ("on_evaluate", 6)])
def test_the_last_step_ends_the_training_as_usual(make_args, model_dir, pairs, uninterrupted, handled, event, step):
    """Whoever trains saves the finished model, and nothing is left to resume."""
    stop = CheckpointOnSigterm()
    trainer = train(model_dir, make_args(**OPTIONS | EVALUATE), pairs, stop, Terminate(event, step))
    assert (stop.stopped, trainer.state.global_step, handled) == (False, 6, [])
    assert all(torch.equal(tensor, trainer.model.state_dict()[name]) for name, tensor in uninterrupted.items())
    assert [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry] == [2, 4, 6]


def test_interrupted_checkpoints_and_those_without_optimiser_are_passed_over(
    make_args, model_dir, pairs, tmp_path, caplog
):
    args = make_args(max_steps=2, save_strategy="steps", save_steps=1)
    train(model_dir, args, pairs)
    output = Path(args.output_dir)
    assert last_complete_checkpoint(str(output)) == str(output / "checkpoint-2")
    assert not caplog.text
    state = (output / "checkpoint-2" / "trainer_state.json").read_text()
    for number, text in ((3, None), (4, ""), (5, state[: len(state) // 2]), (10, state)):
        shutil.copytree(output / "checkpoint-2", output / f"checkpoint-{number}")
        path = output / f"checkpoint-{number}" / "trainer_state.json"
        path.unlink() if text is None else path.write_text(text)
    (output / "checkpoint-10" / "rng_state.pth").unlink()
    assert last_complete_checkpoint(str(output)) == str(output / "checkpoint-2")
    assert caplog.text.count("is not a complete checkpoint and is passed over") == 4
    assert last_complete_checkpoint(str(tmp_path / "none")) is None


@pytest.mark.slow
def test_kill_battery():
    """Kills of `kill_battery.py` in all its cases."""
    command = [sys.executable, str(Path(__file__).with_name("kill_battery.py")), "--kills", "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
