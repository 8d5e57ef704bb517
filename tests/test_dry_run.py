"""A dry run sees what a training would meet, and leaves no trace."""

import pytest
from conftest import as_conversation, make_pairs, tiny_config
from dry_run_fixtures import runner, save_hollow_model, without_weights  # noqa: F401
from transformers import MambaConfig
from trl import DPOConfig, DPOTrainer

from trl_capo.dry_run_figures import optimiser_steps
from trl_capo.memory import peak_memory


def test_sound_data_and_settings_are_described(dry_run):
    """24 pairs, 8 a language; the longest prompt and answer are known by the bytes; 6 batches, 3 steps an epoch."""
    code, output = dry_run(max_steps=-1, num_train_epochs=2, gradient_accumulation_steps=2, beta=0.3)
    assert code == 0
    longest = max(len((r["prompt"] + r[s]).encode()) + 1 for r in make_pairs() for s in ("chosen", "rejected"))
    assert "beta=0.3" in output[output.index("set:") : output.index("default:")]
    assert "noise_rate=auto" in output[output.index("default:") : output.index("Tokens")]
    assert "日本 8" in output
    assert f" {longest} 0.0 " in output[output.index("all pairs 24") :]
    assert "6 optimiser steps of 8 pairs, 2.0 epochs of 24 pairs (4 a device x 2 accumulated x 1 process)" in output
    assert f"at 4 pairs of {longest} tokens" in output
    assert "parameters 37,280" in output
    assert output.endswith("Dry run: 0 problems, 0 warnings. Nothing was trained or written.")


def test_conversations_streams_mixtures_and_launch_options(dry_run, tmp_path):
    code, output = dry_run([as_conversation(row) for row in make_pairs()], dataset_streaming=True)
    assert (code, "first rows of a stream" in output, "3 optimiser steps of 4 pairs, a stream" in output) == (
        0,
        True,
        True,
    )
    code, output = dry_run(dataset_streaming=True, max_steps=-1)
    assert code == 1
    assert "max_steps: a stream has no known length" in output
    mixture = [{"path": "json", "data_files": str(tmp_path / "pairs.jsonl")}] * 2
    code, output = dry_run(dataset_name=None, datasets=mixture)
    assert (code, "24 of 48 rows: repeats an earlier pair" in output) == (0, True)
    code, output = dry_run(words=["--accelerate_config", "zero3", "--num_processes", "3"])
    assert (code, "4 a device x 1 accumulated x 3 processes" in output) == (0, True)


def test_warnings_leave_the_exit_code_0(dry_run):
    rows = make_pairs().to_list()
    rows += [rows[0], rows[1] | {"chosen": rows[1]["rejected"], "rejected": rows[1]["chosen"]}]
    rows[5]["rejected"] = rows[5]["chosen"]
    rows[2]["prompt"] = "x" * 90
    code, output = dry_run(rows, max_length=80)
    assert code == 0
    assert "chosen equals rejected, which says nothing of a preference, in 1 of 26 rows (row 5)" in output
    assert "1 of 26 rows: repeats an earlier pair" in output
    assert "1 of 26 rows: contradicts an earlier pair" in output
    assert "max_length=80 cuts 3.8% of the pairs (日本 12.5%)" in output
    assert "1 of 26 pairs (日本 1) are left out" in output
    assert "of 25 pairs (4 a device" in output
    assert "0 problems, 5 warnings" in output


def test_no_weights_are_loaded(dry_run, tmp_path):
    """Weights of 16 GiB, of which the file has only the head."""
    sizes = {"hidden_size": 8192, "intermediate_size": 32768, "num_hidden_layers": 4, "num_attention_heads": 64}
    config = tiny_config(architectures=["LlamaForCausalLM"], **sizes, num_key_value_heads=64)
    before = peak_memory()
    code, output = dry_run(model_name_or_path=save_hollow_model(tmp_path / "huge", config))
    assert (code, "parameters 4,2" in output) == (0, True), output
    assert peak_memory() - before < 2**30


def test_a_machine_without_a_gpu_checks_for_one_that_has(dry_run):
    code, output = dry_run(use_cpu=None, bf16=True)
    assert code == 0
    assert "the rest is checked for one that has" in output
    assert "main memory" not in output
    code, output = dry_run(use_cpu=None, bf16=True, noise_rate=0.7)
    assert (code, "noise_rate=0.7" in output, "1 problem, 1 warning" in output) == (1, True, True), output


def test_secrets_are_not_shown(dry_run):
    assert "geheim" not in dry_run(hub_token="geheim")[1]


def test_a_memory_that_is_too_small_is_a_warning(dry_run):
    """A micro-batch of 10 million pairs of tens of bytes takes terabytes."""
    code, output = dry_run(per_device_train_batch_size=10_000_000)
    assert code == 0
    assert "GiB a device, and here are" in output


def test_a_model_of_another_kind_is_trained_without_an_estimate(dry_run, tmp_path):
    """Mamba has no attention, whose width the formula asks for."""
    config = MambaConfig(architectures=["MambaForCausalLM"], vocab_size=260, hidden_size=8, num_hidden_layers=1)
    code, output = dry_run(model_name_or_path=save_hollow_model(tmp_path / "mamba", config))
    assert (code, "the memory is not estimated" in output) == (0, True)


@pytest.mark.parametrize("drop_last", [False, True])
def test_steps_are_those_of_the_trainer(make_args, model_dir, drop_last):
    for pairs, batch, accumulation, epochs in ((24, 4, 1, 3), (23, 4, 4, 2), (7, 2, 3, 1.5), (5, 8, 2, 1)):
        sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        sizes |= {"num_train_epochs": epochs, "max_steps": -1, "dataloader_drop_last": drop_last, "learning_rate": 0.0}
        if drop_last and pairs < batch:
            continue  # nothing is left of them
        args = make_args(DPOConfig, **sizes)
        trainer = DPOTrainer(model_dir, args=args, train_dataset=make_pairs(pairs))
        trainer.train()
        assert optimiser_steps(args, pairs, 1) == trainer.state.global_step


def test_steps_of_several_processes_by_hand(make_args):
    """26 pairs in batches of 4 are 7 batches; 3 processes take 3 each, some again; of 2 accumulated, 2 steps."""
    args = make_args(max_steps=-1, num_train_epochs=3, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    assert optimiser_steps(args, 26, 3) == 6


def test_weights_that_cannot_be_used_are_problems(dry_run):
    rows = [row | {"weight": -1 if index == 3 else 1} for index, row in enumerate(make_pairs().to_list())]
    code, output = dry_run(rows, loss_type="ipo", noise_rate=0)
    assert code == 1
    assert "weight is negative in 1 of 24 rows (row 3)" in output
    assert "with loss_type=['ipo'] there are none" in output
