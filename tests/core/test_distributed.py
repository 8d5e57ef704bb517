"""The same training, computed in other ways: two processes, accumulation, a checkpoint.

Two processes on the CPU talk through gloo. torchrun starts them once, with training_cases.py as the program, and they
are compared with one process that has twice the batch: both see the same permutation of the pairs, in steps of 4. The
tolerances are those of float32 sums in another order.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import free_port, logged, make_pairs, save_tiny_model, tiny_config
from oracles import LORA, load, same, weights
from pair_oracle import assert_metrics, in_evaluation, score_pairs
from peft import LoraConfig
from training_cases import AUTO, CASES, evaluation_cases, train, train_sharded

from trl_capo import CAPOTrainer

# TRL logs the mean of these means over the tokens of each micro-batch. Times differ from run to run, and Transformers
# counts the share of an epoch in micro-batches.
BY_MICRO_BATCH = ("entropy", "mean_token_accuracy", "logits/chosen", "logits/rejected")
NOT_COMPARED = ("runtime", "per_second", "total_flos", "epoch")


def assert_same_training(one: dict, other: dict, but: tuple[str, ...] = (), atol=2e-4):
    """Everything that is logged, step by step, the logged pairs, and the weights after each step."""
    assert len(one["logs"]) == len(other["logs"]) >= 4
    for entry, found in zip(one["logs"], other["logs"], strict=True):
        compared = [key for key in entry if not key.endswith((*NOT_COMPARED, *but))]
        assert entry.keys() == found.keys()
        expected = {key: pytest.approx(entry[key], rel=2e-3, abs=1e-5) for key in compared}
        assert {key: found[key] for key in compared} == expected
    assert_same_pairs(one.get("pairs", []), other.get("pairs", []))
    torch.testing.assert_close(one["steps"], other["steps"], rtol=1e-2, atol=atol)
    assert len(one["steps"]) == len(other["steps"]) >= 4


def assert_same_pairs(one: list[dict], other: list[dict]):
    """The rows of pair logs, in each step in any order; rows 22 and 23 of `uneven` are 0 and 1 once more."""
    assert len(one) == len(other)
    assert all([row["step"] for row in rows] == sorted(row["step"] for row in rows) for rows in (one, other))
    ordered = [sorted(rows, key=lambda row: (row["step"], row["pair"] % 22, row["pair"])) for rows in (one, other)]
    for expected, found in zip(*ordered, strict=True):
        assert [found["pair"] % 22, found["group"]] == [expected["pair"] % 22, expected["group"]]
        for key in expected.keys() - {"pair", "group"}:
            assert found[key] == pytest.approx(expected[key], rel=2e-3, abs=2e-3), key


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With the data on a disk, and a model whose layers are large enough for 4 bits."""
    folder = tmp_path_factory.mktemp("cut")
    make_pairs().save_to_disk(folder / "data")
    save_tiny_model(folder / "quantizable", seed=0, config=tiny_config(hidden_size=64))
    return folder


@pytest.fixture(scope="module")
def models(folder, model_dir, other_model_dir) -> list[str]:
    return [model_dir, other_model_dir, str(folder / "quantizable")]


@pytest.fixture(scope="module")
def one_process(folder, models) -> dict:
    """Batches of 4. Two processes without padding or with precomputed references must equal the padded live ones."""
    same_as_full = ("padding free", "precomputed")
    results = {name: train(name, folder, *models) for name in CASES if name not in same_as_full}
    return results | dict.fromkeys(same_as_full, results["full"]) | {"sharded": train_sharded(folder, *models[:2])}


@pytest.fixture(scope="module")
def two_processes(folder, models) -> list[dict]:
    """Batches of 2 on each."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    program, tests = Path(__file__).with_name("training_cases.py"), str(Path(__file__).parents[1])
    variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])}
    command = [*launcher, str(program), str(folder), *models]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ | variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("name", [*CASES, "sharded"])
def test_two_processes_train_as_one_with_twice_the_batch(one_process, two_processes, name):
    """Sharded is FSDP2 on the CPU: torch's `fully_shard`, since Accelerate falls back to plain data parallelism."""
    main, other = (rank[name] for rank in two_processes)
    # Gradients of adapters on 4-bit weights are bfloat16: near 0, rounding decides the sign of Adam's step.
    rounded = {"but": ("grad_norm",), "atol": 2 * AUTO["learning_rate"]} if name == "qlora" else {}
    assert_same_training(one_process[name], main, **rounded)
    assert same(main["weights"], other["weights"])
    rates = [entry["capo/noise_rate"] for entry in main["logs"] if "capo/noise_rate" in entry]
    assert rates == [entry["capo/noise_rate"] for entry in other["logs"] if "capo/noise_rate" in entry]
    assert len(set(rates)) > len(rates) // 2


@pytest.mark.parametrize("name", list(evaluation_cases()))
def test_two_processes_count_every_evaluated_pair_once(two_processes, model_dir, other_model_dir, name):
    rows, _, options = evaluation_cases()[name]
    scored = score_pairs(load(model_dir), load(other_model_dir), rows, limit=options.get("max_length", 10**6))
    for rank in two_processes:
        assert_metrics(rank["evaluations"][name], in_evaluation(scored))


@pytest.mark.parametrize("name", ["full", "lora", "precomputed", "weighted"])
def test_accumulation_trains_as_one_big_batch(one_process, folder, models, name):
    """Four batches of 1, with the rate estimated: its update sees all micro-batches of the step."""
    sizes = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    assert_same_training(one_process[name], train(name, folder, *models, **sizes), but=BY_MICRO_BATCH)


@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.parametrize("peft_config", [None, LoraConfig(**LORA)], ids=["full", "lora"])
def test_resumed_run_equals_uninterrupted_run(make_args, model_dir, pairs, tmp_path, restore, peft_config):
    """8 steps at once and from the checkpoint of step 3, into the second epoch of 6 steps; bit for bit."""
    options = {"save_strategy": "steps", "save_steps": 3, "restore_callback_states_from_checkpoint": restore}
    runs = []
    for checkpoint in (None, str(tmp_path / "output" / "checkpoint-3")):
        args = make_args(**AUTO | options)
        runs.append(CAPOTrainer(model_dir, args=args, train_dataset=pairs, peft_config=peft_config))
        runs[-1].train(resume_from_checkpoint=checkpoint)
    for key in ("loss", "capo/noise_rate", "capo/scale", "grad_norm", "rewards/margins/日本"):
        assert logged(runs[0], key) == logged(runs[1], key)
    assert len(set(logged(runs[0], "capo/noise_rate/de"))) == 6  # it moves in the first epoch's 6 steps
    assert same(weights(runs[0].model), weights(runs[1].model))
