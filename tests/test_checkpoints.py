"""Which checkpoint a training goes on from, and that it goes on as if it had not stopped."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import CPU_ARGUMENTS, logged
from datasets import DatasetDict
from test_modes import same, weights
from transformers.trainer_pt_utils import safe_globals
from transformers.trainer_utils import get_last_checkpoint
from trl import DPOConfig, DPOTrainer

from trl_capo import CAPOConfig, CAPOTrainer
from trl_capo.checkpoints import choose_checkpoint, find_fault
from trl_capo.train import main

SAVING = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory, model_dir, pairs) -> Path:
    """An output folder with the checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("saved")
    args = CAPOConfig(**CPU_ARGUMENTS | SAVING | {"output_dir": str(folder)})
    CAPOTrainer(model_dir, args=args, train_dataset=pairs).train()
    return folder


@pytest.fixture
def output(two_checkpoints, tmp_path) -> Path:
    """A copy to break."""
    return shutil.copytree(two_checkpoints, tmp_path / "output")


def test_the_last_whole_checkpoint_is_chosen(output):
    assert choose_checkpoint(True, str(output)) == get_last_checkpoint(str(output)) == str(output / "checkpoint-2")
    assert choose_checkpoint(str(output / "checkpoint-1"), str(output)) == str(output / "checkpoint-1")
    assert choose_checkpoint(False, str(output)) is choose_checkpoint(None, str(output)) is None


def test_a_checkpoint_that_lacks_any_part_of_any_file_is_passed_over(output, caplog):
    last = output / "checkpoint-2"
    files = sorted(path for path in last.rglob("*") if path.is_file())
    assert len(files) > 8
    for file in files:
        content = file.read_bytes()
        if file.name != "capo_state.json":  # without it, it is a checkpoint of DPOTrainer
            file.unlink()
            assert choose_checkpoint(True, str(output)) == str(output / "checkpoint-1"), file
            assert f"checkpoint-2 is passed over, as it is no whole checkpoint: {file.name}" in caplog.text
        for size in {0, len(content) // 2, len(content) - 2}:
            caplog.clear()
            file.write_bytes(content[:size])
            assert choose_checkpoint(True, str(output)) == str(output / "checkpoint-1"), (file, size)
            assert file.name in caplog.text
        file.write_bytes(content)
        caplog.clear()
    assert find_fault(last) is None


NAMES = ["optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors"]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_the_right_size_and_other_bytes_is_found(output, name, caplog):
    """All zeros; all inverted; and inverted in part, which torch and safetensors say nothing of only in between."""
    file = output / "checkpoint-2" / name
    content = file.read_bytes()
    inverted = bytes(255 - byte for byte in content)
    for damaged in (bytes(len(content)), inverted, inverted[:200] + content[200:], content[:-200] + inverted[-200:]):
        if name == "model.safetensors" and damaged[:200] == content[:200]:
            continue  # numbers, which have no checksum
        file.write_bytes(damaged)
        assert choose_checkpoint(True, str(output)) == str(output / "checkpoint-1")
        assert f"it is no whole checkpoint: {name}: it" in caplog.text
        caplog.clear()
    file.write_bytes(content)
    assert find_fault(output / "checkpoint-2") is None


def read(file: Path) -> str:
    with safe_globals():
        return repr(torch.load(file, weights_only=True))


@pytest.mark.parametrize("name", NAMES[:3])
def test_damage_anywhere_in_a_file_of_torch_is_found_or_does_no_harm(output, name):
    """Held against torch itself: what it loads of a file in which no fault is found is what was saved."""
    file = output / "checkpoint-2" / name
    content = file.read_bytes()
    saved = read(file)
    for place in range(0, len(content), max(16, len(content) // 60)):
        inverted = bytes(255 - byte for byte in content[place : place + 8])
        file.write_bytes(content[:place] + inverted + content[place + 8 :])
        if find_fault(output / "checkpoint-2") is None:
            assert read(file) == saved, place


def test_a_training_goes_on_from_the_checkpoint_before_a_damaged_one(output, make_args, model_dir, pairs, caplog):
    """The bytes of the optimiser's numbers are other ones: torch would load them without a word."""
    file = output / "checkpoint-2" / "optimizer.pt"
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(255 - byte for byte in content[middle : middle + 64])
    file.write_bytes(content)
    trainer = CAPOTrainer(model_dir, args=make_args(**SAVING | {"max_steps": 3}), train_dataset=pairs)
    trainer.train(resume_from_checkpoint=True)
    assert "checkpoint-2 is passed over, as it is no whole checkpoint: optimizer.pt: its part" in caplog.text
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [1, 2, 3]
    assert find_fault(output / "checkpoint-2") is None  # written again


@pytest.mark.parametrize("name", ["trainer_state.json", "capo_state.json"])
@pytest.mark.parametrize("content", ["[]", "{}", "null", '{"global_step": "a"}', '{"global_step": 2, "nosuch": 1}'])
def test_a_state_that_says_nothing_is_none(output, name, content):
    (output / "checkpoint-2" / name).write_text(content)
    assert choose_checkpoint(True, str(output)) == str(output / "checkpoint-1")


def test_a_checkpoint_of_the_model_alone_is_not_gone_on_from(make_args, model_dir, pairs):
    """Without the optimiser's state the training would go on otherwise than it would have."""
    args = make_args(**SAVING | {"save_only_model": True})
    CAPOTrainer(model_dir, args=args, train_dataset=pairs).train()
    with pytest.raises(ValueError, match="it has the model alone, not where its training was"):
        choose_checkpoint(f"{args.output_dir}/checkpoint-2", args.output_dir)


def test_without_a_whole_checkpoint_training_starts_from_the_beginning(output, make_args, model_dir, pairs, caplog):
    for number in (1, 2):
        (output / f"checkpoint-{number}" / "trainer_state.json").unlink()
    trainer = CAPOTrainer(model_dir, args=make_args(**SAVING), train_dataset=pairs)
    trainer.train(resume_from_checkpoint=True)
    assert "There is no whole checkpoint" in caplog.text
    assert len(logged(trainer, "loss")) == 2
    assert {find_fault(output / f"checkpoint-{number}") for number in (1, 2)} == {None}


def test_a_broken_checkpoint_is_refused_where_it_is_named(output, make_args, model_dir, pairs, tmp_path, capfd):
    broken = output / "checkpoint-2"
    (broken / "optimizer.pt").unlink()
    trainer = CAPOTrainer(model_dir, args=make_args(), train_dataset=pairs)
    with pytest.raises(ValueError, match="checkpoint-2'.*optimizer.pt is missing"):
        trainer.train(resume_from_checkpoint=str(broken))
    pairs.to_json(tmp_path / "train.jsonl", force_ascii=False)
    arguments = ["--use_cpu", "--bf16", "false", "--output_dir", str(tmp_path / "new")]
    arguments += ["--model_name_or_path", model_dir, "--dataset_name", str(tmp_path / "train.jsonl")]
    for folder, reason in ((broken, "optimizer.pt is missing"), (tmp_path / "none", "there is no such folder")):
        assert main([*arguments, "--resume_from_checkpoint", str(folder)]) == 2
        assert reason in capfd.readouterr().err


def test_a_checkpoint_is_not_whole_while_it_is_written_again(output, make_args, model_dir, pairs):
    """Saving fails at a file whose place a folder has taken: what was there before must not count as saved."""
    (output / "checkpoint-2" / "optimizer.pt").unlink()
    (output / "checkpoint-2" / "optimizer.pt").mkdir()
    trainer = CAPOTrainer(model_dir, args=make_args(**SAVING), train_dataset=pairs)
    with pytest.raises((OSError, RuntimeError)):
        trainer.train()
    assert "trainer_state.json" in find_fault(output / "checkpoint-2")
    assert choose_checkpoint(True, str(output)) == str(output / "checkpoint-1")


def test_a_metric_to_choose_by_that_no_evaluation_has_is_named_at_the_first(model_dir, pairs, tmp_path, capfd):
    DatasetDict(train=pairs, test=pairs.select(range(4))).save_to_disk(tmp_path / "data")
    best = {"save_strategy": "best", "metric_for_best_model": "nosuch", "eval_strategy": "steps", "eval_steps": 1}
    options = {"model_name_or_path": model_dir, "dataset_name": str(tmp_path / "data"), "output_dir": str(tmp_path)}
    words = [word for key, value in (CPU_ARGUMENTS | best | options).items() for word in (f"--{key}", str(value))]
    assert main(words) == 1
    said = capfd.readouterr().err
    assert all(name in said for name in ("trl-capo train: error: ", "'eval_nosuch'", "eval_rewards/accuracies"))
    assert "Traceback" not in said


def test_a_reference_that_follows_the_policy_goes_on_from_where_it_was(make_args, model_dir, pairs):
    """Every second step half way; the one of step 2 is in the checkpoint of step 3."""
    moving = {"sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.5, "learning_rate": 1e-2}
    args = make_args(**moving, max_steps=5, save_strategy="steps", save_steps=3, save_total_limit=None)
    whole, resumed = (CAPOTrainer(model_dir, args=args, train_dataset=pairs) for _ in range(2))
    whole.train()
    shutil.rmtree(Path(args.output_dir, "checkpoint-5"))
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(whole.model), weights(resumed.model))
    assert same(weights(whole.ref_model), weights(resumed.ref_model))
    assert not same(weights(whole.ref_model), weights(whole.model))


def test_a_checkpoint_without_the_reference_that_moves_is_gone_on_from_with_a_warning(
    output, make_args, model_dir, pairs, caplog
):
    args = make_args(max_steps=3, output_dir=str(output), sync_ref_model=True, ref_model_sync_steps=1)
    trainer = CAPOTrainer(model_dir, args=args, train_dataset=pairs)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3
    assert caplog.text.count("checkpoint-2 does not hold the reference") == 1


def test_a_checkpoint_of_dpo_trainer_can_be_gone_on_from(make_args, model_dir, pairs):
    args = make_args(DPOConfig, **SAVING)
    DPOTrainer(model_dir, args=args, train_dataset=pairs).train()
    shutil.rmtree(Path(args.output_dir, "checkpoint-2"))
    trainer = CAPOTrainer(model_dir, args=make_args(**SAVING), train_dataset=pairs)
    trainer.train(resume_from_checkpoint=True)
    assert len(logged(trainer, "loss")) == trainer.state.global_step == 2


@pytest.mark.parametrize("form", ["rows", "stream", "accumulated"])
def test_logging_windows_span_checkpoints(make_args, model_dir, pairs, form):
    """Saved at step 3, logged at 4 and 8: what a resumed run logs is what the uninterrupted one did, bit for bit."""
    options = {"max_steps": 8, "save_strategy": "steps", "save_steps": 3, "logging_steps": 4}
    options |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2} if form == "accumulated" else {}
    runs = []
    for checkpoint, steps in ((None, 4), ("checkpoint-3", 4), (None, 1)):
        args = make_args(**options | {"logging_steps": steps})
        data = pairs.to_iterable_dataset() if form == "stream" else pairs
        runs.append(CAPOTrainer(model_dir, args=args, train_dataset=data))
        runs[-1].train(resume_from_checkpoint=checkpoint and str(Path(args.output_dir, checkpoint)))
    one, other, _ = (trainer.state.log_history for trainer in runs)
    assert [entry["step"] for entry in one] == [4, 8, 8]
    assert one[:-1] == other[:-1]
    assert {"loss", "rewards/margins", "rewards/margins/de", "num_tokens", "capo/scale_min"} <= one[0].keys()
    assert same(*(weights(trainer.model) for trainer in runs[:2]))
    last_five = logged(runs[2], "loss")[3:]  # Transformers gives the mean of the steps of this `train()`
    assert other[-1]["train_loss"] == pytest.approx(sum(last_five) / 5)
