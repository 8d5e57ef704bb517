"""SIGTERM while training: the step is finished and saved, and the resumed training ends with the same weights."""

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
OPTIONS |= {"eval_strategy": "steps", "eval_steps": 2}
BEST = {"metric_for_best_model": "rewards/margins", "greater_is_better": False, "save_total_limit": 1}


class Terminate(TrainerCallback):
    """Sends this process SIGTERM at an event of a step, and keeps the steps at which a checkpoint is saved."""

    def __init__(self, event: str, step: int) -> None:
        send = signal.raise_signal
        setattr(self, event, lambda args, state, *_, **__: send(signal.SIGTERM) if state.global_step == step else None)
        self.saved = []

    def on_save(self, args, state, control, **kwargs) -> None:
        self.saved.append(state.global_step)


def train(model_dir, args, pairs, *callbacks, resume=None) -> CAPOTrainer:
    data = {"train_dataset": pairs, "eval_dataset": pairs.select(range(4))}
    trainer = CAPOTrainer(model_dir, args=args, callbacks=list(callbacks), **data)
    before = signal.getsignal(signal.SIGTERM)
    trainer.train(resume_from_checkpoint=resume)
    assert signal.getsignal(signal.SIGTERM) is before
    return trainer


@pytest.fixture(scope="module")
def uninterrupted(model_dir, pairs, tmp_path_factory) -> dict[str, torch.Tensor]:
    args = CAPOConfig(output_dir=str(tmp_path_factory.mktemp("whole")), **CPU_ARGUMENTS | OPTIONS)
    return train(model_dir, args, pairs).model.state_dict()


CASES = {
    "nothing else is saved": ("on_train_begin", 0, 1, {"save_strategy": "no"}),
    "the step is saved anyway": ("on_substep_end", 2, 3, {"save_strategy": "steps", "save_steps": 3}),
    "only the model": ("on_step_begin", 3, 4, {"save_strategy": "steps", "save_steps": 3, "save_only_model": True}),
    "only the best": ("on_step_end", 3, 4, {"save_strategy": "best"} | BEST),  # step 4 is no better
    "epochs": ("on_evaluate", 4, 5, {"save_strategy": "epoch"}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_step_is_saved_once_and_the_resumed_training_is_the_same(make_args, model_dir, pairs, uninterrupted, case):
    """A signal after the last micro-batch of a step counts for the next one."""
    event, step, saved, changes = CASES[case]
    options, stop, terminate = OPTIONS | changes, CheckpointOnSigterm(), Terminate(event, step)
    args = make_args(**options)
    trainer = train(model_dir, args, pairs, stop, terminate)
    assert (stop.stopped, trainer.state.global_step, terminate.saved.count(saved)) == (True, saved, 1)
    assert last_complete_checkpoint(args.output_dir) == str(Path(args.output_dir, f"checkpoint-{saved}"))
    resumed = train(model_dir, make_args(**options), pairs, resume=True).model.state_dict()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in uninterrupted.items())


@pytest.mark.parametrize(("event", "step"), [("on_step_begin", 5), ("on_evaluate", 6)])
def test_the_last_step_ends_the_training_as_usual(make_args, model_dir, pairs, uninterrupted, event, step):
    """Whoever trains saves the finished model, and nothing is left to resume."""
    stop = CheckpointOnSigterm()
    trainer = train(model_dir, make_args(**OPTIONS), pairs, stop, Terminate(event, step))
    assert (stop.stopped, trainer.state.global_step) == (False, 6)
    assert all(torch.equal(tensor, trainer.model.state_dict()[name]) for name, tensor in uninterrupted.items())
    assert [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry] == [2, 4, 6]


def test_interrupted_checkpoints_and_those_without_optimiser_are_passed_over(tmp_path, caplog):
    assert last_complete_checkpoint(str(tmp_path / "none")) is None
    for number, state in {2: "{}", 3: None, 4: "", 5: '{"epoch": 1', 10: "{}"}.items():
        folder = tmp_path / f"checkpoint-{number}"
        folder.mkdir()
        (folder / "rng_state.pth").touch()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    (folder / "rng_state.pth").unlink()
    assert last_complete_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-2")
    assert caplog.text.count("is not a complete checkpoint and is passed over") == 4


@pytest.mark.slow
def test_kill_battery():
    subprocess.run([sys.executable, Path(__file__).with_name("kill_battery.py")], timeout=900, check=True)
