"""SIGTERM while training: a checkpoint, exit code 143, and nothing lost.

Several processes and random moments are in kill_battery.py, the launcher in test_cluster.py.
"""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from test_modes import same, weights
from transformers import TrainerCallback

from trl_capo import CAPOTrainer

OPTIONS = {"max_steps": 6, "logging_steps": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}


class Terminate(TrainerCallback):
    """Sends this process SIGTERM at an event of a step."""

    def __init__(self, event: str, step: int) -> None:
        def send(args, state, control, **kwargs) -> None:
            if state.global_step == step:
                signal.raise_signal(signal.SIGTERM)

        setattr(self, event, send)


@pytest.fixture
def handled():
    """The signals that reach the handler of whoever trains; his handler must be back after training."""
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    handler = signal.getsignal(signal.SIGTERM)
    yield received
    assert signal.getsignal(signal.SIGTERM) is handler
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("event", "step", "saved", "strategy"),
    [
        ("on_train_begin", 0, 1, "no"),
        ("on_substep_end", 2, 3, "steps"),
        ("on_step_end", 3, 4, "best"),  # where Transformers decides by the evaluation, which is no better
        ("on_evaluate", 4, 5, "epoch"),
    ],
)
def test_the_step_is_finished_and_saved(make_args, model_dir, pairs, handled, event, step, saved, strategy):
    """Whatever is saved otherwise. A signal after the gradient counts for the next step."""
    options = {"save_strategy": strategy, "save_steps": 4, "eval_strategy": "steps", "eval_steps": 2}
    if strategy == "best":  # the first evaluation's
        options |= {"metric_for_best_model": "rewards/margins", "greater_is_better": False}
    runs = []
    for callbacks in ([], [Terminate(event, step)]):
        args = make_args(**OPTIONS | options, output_dir=str(Path(make_args().output_dir, str(len(callbacks)))))
        data = {"train_dataset": pairs, "eval_dataset": pairs.select(range(4))}
        runs.append(CAPOTrainer(model_dir, args=args, callbacks=callbacks, **data))
        if callbacks:
            with pytest.raises(SystemExit) as stop:
                runs[-1].train()
            assert stop.value.code == 143
            assert Path(args.output_dir, f"checkpoint-{saved}").is_dir()
            assert runs[-1].state.global_step == saved
            runs[-1] = CAPOTrainer(model_dir, args=args, **data)
        runs[-1].train(resume_from_checkpoint=bool(callbacks))
    assert handled == []
    assert same(*(weights(trainer.model) for trainer in runs))
    one, other = ([_timeless(entry) for entry in trainer.state.log_history[:-1]] for trainer in runs)
    assert one == other
    assert len(one) >= 4


def _timeless(entry: dict) -> dict:
    return {key: value for key, value in entry.items() if not key.endswith(("runtime", "per_second"))}


def test_what_is_saved_of_the_model_alone_otherwise_is_gone_on_from(make_args, model_dir, pairs, handled):
    args = make_args(**OPTIONS, save_only_model=True, save_strategy="steps", save_steps=3)
    stopped, resumed, whole = (CAPOTrainer(model_dir, args=args, train_dataset=pairs) for _ in range(3))
    stopped.add_callback(Terminate("on_substep_end", 2))
    with pytest.raises(SystemExit):
        stopped.train()
    resumed.train(resume_from_checkpoint=str(Path(args.output_dir, "checkpoint-3")))
    whole.train()
    assert same(weights(resumed.model), weights(whole.model))


@pytest.mark.parametrize("strategy", ["no", "steps"])
@pytest.mark.parametrize("event", ["on_step_end", "on_evaluate", "on_train_end"])
def test_after_the_last_step_it_is_saved_and_resuming_trains_no_further(
    make_args, model_dir, pairs, handled, event, strategy
):
    """The training does not count as completed; 3 of the 6 steps of an epoch, at a constant learning rate."""
    options = {"save_strategy": strategy, "eval_strategy": "epoch", "lr_scheduler_type": "constant", "max_steps": 3}
    args = make_args(per_device_train_batch_size=2, **options)
    data = {"args": args, "train_dataset": pairs, "eval_dataset": pairs.select(range(4))}
    trainer = CAPOTrainer(model_dir, **data, callbacks=[Terminate(event, 3)])
    with pytest.raises(SystemExit) as stop:
        trainer.train()
    assert stop.value.code == 143
    assert handled == []
    resumed = CAPOTrainer(model_dir, **data)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 3
    assert same(weights(trainer.model), weights(resumed.model))
    (saved,) = Path(args.output_dir).glob("checkpoint-*")
    assert saved.name == "checkpoint-3"
    before = (saved / "capo_state.json").read_bytes()
    again = CAPOTrainer(model_dir, **data, callbacks=[Terminate("on_train_end", 3)])
    with pytest.raises(SystemExit):
        again.train(resume_from_checkpoint=True)
    assert (saved / "capo_state.json").read_bytes() == before


def test_a_failed_training_leaves_the_signal_as_it_was(make_args, model_dir, pairs, handled):
    class Fail(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise RuntimeError("on purpose")

    trainer = CAPOTrainer(model_dir, args=make_args(), train_dataset=pairs, callbacks=[Fail()])
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer.train()
    signal.raise_signal(signal.SIGTERM)
    assert handled == [signal.SIGTERM]


def test_training_in_another_thread_leaves_signals_alone(make_args, model_dir, pairs, handled):
    trainer = CAPOTrainer(model_dir, args=make_args(), train_dataset=pairs, callbacks=[Terminate("on_step_begin", 1)])
    thread = threading.Thread(target=trainer.train)
    thread.start()
    thread.join()
    assert trainer.state.global_step == 3
    assert handled == [signal.SIGTERM]


def test_kill_battery():
    """Three of the kills of `make test-kills`: two processes, LoRA, references computed beforehand."""
    battery = [sys.executable, str(Path(__file__).with_name("kill_battery.py")), "--kills", "3", "--cases"]
    done = subprocess.run([*battery, "two processes, LoRA, precomputed"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "after 3 kills as undisturbed" in done.stdout
