"""A dry run reports what a run would meet, without weights; tests/test_errors.py has its mistakes."""

import json

import pytest
import yaml
from conftest import CPU_ARGUMENTS, byte_tokenizer, make_pairs, run_main, tiny_config
from trl import DPOConfig, DPOTrainer

from trl_capo.train import dry_run
from trl_capo.train.dry_run import launched_processes, optimiser_steps


@pytest.fixture
def report(tmp_path):
    """Exit code and output of a dry run on rows, with a model's folder without weights; options override defaults."""
    tiny_config().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")

    def run(rows=None, words=(), **changes) -> tuple[int, str]:
        rows = make_pairs().to_list() if rows is None else rows
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / "pairs.jsonl").write_text("".join(lines), encoding="utf-8")
        options = CPU_ARGUMENTS | {"dataset_name": str(tmp_path / "pairs.jsonl"), "output_dir": str(tmp_path / "out")}
        options |= {"model_name_or_path": str(tmp_path / "model"), "dry_run": True} | changes
        (tmp_path / "run.yaml").write_text(yaml.dump(options))
        before = sorted(tmp_path.rglob("*"))
        code, out, err = run_main(dry_run.main, "--config", tmp_path / "run.yaml", *words)
        assert sorted(tmp_path.rglob("*")) == before
        return code, " ".join((out if code == 0 else err).split())

    return run


def test_settings_data_lengths_and_steps_are_reported(report):
    """24 pairs in 6 batches make 3 steps per epoch; the longest pair has 17 + 15 bytes and the token for the end."""
    code, output = report(max_steps=-1, num_train_epochs=2, gradient_accumulation_steps=2, beta=0.3, hub_token="hf_x")
    assert code == 0, output
    assert "beta=0.3" in output[output.index("Settings") : output.index("Data")]
    assert "hf_x" not in output
    assert "24 training pairs in 3 groups by language evidence about noise: 0 trusted labels; 10 to 20" in output
    assert " 33 0.0 " in output[output.index("all pairs 24") :]
    assert "6 optimiser steps of 8 pairs (4 per device x 2 accumulated x 1 process), 2.0 epochs of 24 pairs" in output


def test_warnings_leave_the_exit_code_0(report):
    rows = make_pairs().to_list()
    rows += rows[:2]
    rows[5]["rejected"] = rows[5]["chosen"]
    rows[2]["prompt"] = "x" * 90
    rows = [row | {"trusted": number < 30} for number, row in enumerate(rows * 2)]
    code, output = report(rows, max_length=80)
    assert (code, "30 trusted labels, 9 to 11 per group; 10 to 20" in output) == (0, True)
    assert output.count("- train_dataset:") == 1  # an equal pair
    assert "no error, 3 warnings" in output  # and one that is cut, and one whose prompt is too long
    code, output = report(max_length=25, eval_strategy="steps", dataset_test_split="train")
    assert "- eval_dataset: max_length=25 cuts pairs" in output


def test_streams_and_launch_options(report):
    code, output = report(dataset_streaming=True, words=["--accelerate_config", "zero3", "--num_processes", "3"])
    assert code == 0, output
    assert "24 training pairs at the start of a stream" in output
    assert "3 optimiser steps of 12 pairs (4 per device x 1 accumulated x 3 processes), from a stream" in output


@pytest.mark.parametrize("drop_last", [False, True])
def test_steps_are_those_of_the_trainer(make_args, model_dir, drop_last):
    for pairs, batch, accumulation, epochs in ((23, 4, 4, 2), (7, 2, 3, 1.5)):
        sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        sizes |= {"num_train_epochs": epochs, "max_steps": -1, "dataloader_drop_last": drop_last, "learning_rate": 0.0}
        args = make_args(DPOConfig, **sizes)
        trainer = DPOTrainer(model_dir, args=args, train_dataset=make_pairs(pairs))
        trainer.train()
        assert optimiser_steps(args, pairs, 1) == trainer.state.global_step
    # By hand: 26 pairs are 7 batches of 4, the last incomplete; 3 processes take 3 (or 2) each, in 2 steps (or 1).
    args = make_args(max_steps=-1, num_train_epochs=3, gradient_accumulation_steps=2, dataloader_drop_last=drop_last)
    assert optimiser_steps(args, 26, 3) == (3 if drop_last else 6)


@pytest.mark.parametrize(
    ("words", "processes"),
    [
        ("--num_processes 4", 4),
        ("--accelerate_config zero2", 8),
        ("--accelerate_config fsdp2 --num_processes 16", 16),
        ("--use_deepspeed --zero_stage 3 --num_processes 2", 2),
    ],
)
def test_processes_are_those_of_the_launch_options(words, processes):
    assert launched_processes(words.split()) == processes
