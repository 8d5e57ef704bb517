"""The same training, computed in other ways: two processes, accumulation, a checkpoint, a noise rate of 0 in TRL.

Two processes on the CPU talk through gloo. They are started by torchrun with training_cases.py as the program, and by
`trl-capo train` with an accelerate configuration file, and are compared with one process that has twice the batch:
both see the same permutation of the pairs, cut into steps of 4. Tolerances are those of float32 sums in another order.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import CPU_ARGUMENTS, free_port, logged, make_pairs, save_tiny_model, tiny_config
from peft import LoraConfig
from safetensors.torch import load_file
from test_modes import COMMON, LORA, PLAIN, Oracle, expected_logs, load, same, weights
from training_cases import AUTO, CASES, IN_ORDER, LIVE, EveryStep, train, train_sharded
from trl import DPOConfig, DPOTrainer

from trl_capo import CAPOConfig, CAPOTrainer
from trl_capo.agreement import NOISE_RATES

LOSSES = "sigmoid hinge ipo exo_pair nca_pair robust bco_pair sppo_hard aot aot_unpaired apo_zero apo_down discopop"
# Means over the tokens of a micro-batch, of which TRL logs the mean; what takes time; and
# the share of an epoch, which Transformers counts in micro-batches.
BY_MICRO_BATCH = ("entropy", "mean_token_accuracy", "logits/chosen", "logits/rejected")
NOT_COMPARED = ("runtime", "per_second", "total_flos", "epoch")


def assert_same_training(one: dict, other: dict, but: tuple[str, ...] = (), atol=2e-4):
    """Everything that is logged, step by step, and the weights after each step."""
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
    """The rows of pair logs, in each step in whatever order; rows 22 and 23 of `uneven` are 0 and 1 once more."""
    assert len(one) == len(other)
    assert all([row["step"] for row in rows] == sorted(row["step"] for row in rows) for rows in (one, other))
    ordered = [sorted(rows, key=lambda row: (row["step"], row["pair"] % 22, row["pair"])) for rows in (one, other)]
    for expected, found in zip(*ordered, strict=True):
        assert [found["pair"] % 22, found["group"]] == [expected["pair"] % 22, expected["group"]]
        for key in expected.keys() - {"pair", "group"}:
            assert found[key] == pytest.approx(expected[key], rel=2e-3, abs=2e-3), key


def run(command: list[str], **variables):
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **variables})
    assert done.returncode == 0, done.stdout + done.stderr


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
    """Batches of 4. References are computed live: two processes with precomputed ones must equal them."""
    results = {name: train(name, folder, *models) for name in LIVE}
    return results | {"precomputed": results["full"], "sharded": train_sharded(folder, *models[:2])}


@pytest.fixture(scope="module")
def two_processes(folder, models) -> list[dict]:
    """Batches of 2 on each."""
    port = free_port()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    program = str(Path(__file__).with_name("training_cases.py"))
    run([*launcher, program, str(folder), *models], OMP_NUM_THREADS="1")
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("name", sorted(CASES | {"sharded"}))
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


@pytest.mark.parametrize("name", ["full", "lora", "precomputed", "weighted"])
def test_accumulation_trains_as_one_big_batch(one_process, folder, models, name):
    """Four batches of 1, with the rate estimated: its update sees all micro-batches of the step."""
    sizes = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    assert_same_training(one_process[name], train(name, folder, *models, **sizes), but=BY_MICRO_BATCH)


def test_the_last_step_of_an_epoch_may_have_fewer_micro_batches(make_args, model_dir, other_model_dir, pairs):
    """22 pairs in steps of 4: the last has 2 pairs, in one batch of 2 or in two of 1."""
    runs = []
    for sizes in ({}, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}):
        args, rows = make_args(**AUTO | IN_ORDER | sizes), pairs.select(range(22))
        steps = EveryStep()
        trainer = CAPOTrainer(model_dir, load(other_model_dir), args=args, train_dataset=rows, callbacks=[steps])
        trainer.train()
        runs.append({"logs": trainer.state.log_history, "steps": steps.weights})
    assert_same_training(*runs, but=BY_MICRO_BATCH)
    assert len(runs[0]["steps"]) == 6


def test_command_starts_two_processes(model_dir, pairs, tmp_path, make_args):
    """Two processes of batch 2 through the command and its accelerate options, one of batch 4 in Python.

    accelerate starts several CPU processes only with MPI; MULTI_GPU is torchrun, and `use_cpu` makes it gloo.
    """
    pairs.to_json(tmp_path / "train.jsonl", force_ascii=False)
    port = free_port()
    launch = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU", "use_cpu": False}
    launch |= {"num_processes": 2, "num_machines": 1, "machine_rank": 0, "main_process_port": port}
    (tmp_path / "two.yaml").write_text(json.dumps(launch))
    options = CPU_ARGUMENTS | AUTO | {"per_device_train_batch_size": 2, "output_dir": str(tmp_path / "command")}
    options |= {"model_name_or_path": model_dir, "dataset_name": str(tmp_path / "train.jsonl")}
    (tmp_path / "run.yaml").write_text(json.dumps(options | {"save_strategy": "steps", "save_steps": 8}))
    command = [str(Path(sys.executable).with_name("trl-capo")), "train", "--config", str(tmp_path / "run.yaml")]
    run([*command, "--accelerate_config", str(tmp_path / "two.yaml")])
    trainer = CAPOTrainer(model_dir, args=make_args(**AUTO), train_dataset=pairs)
    trainer.train()
    state = json.loads((tmp_path / "command" / "checkpoint-8" / "trainer_state.json").read_text())
    for key in ("loss", "capo/noise_rate", "capo/scale", "capo/scale_min", "capo/contradicted", "num_tokens"):
        values = [entry[key] for entry in state["log_history"] if key in entry]
        assert values == pytest.approx(logged(trainer, key), rel=2e-3, abs=1e-5), key
    saved, trained = load_file(tmp_path / "command" / "model.safetensors"), weights(trainer.model)
    torch.testing.assert_close(saved, {name: trained[name] for name in saved}, rtol=1e-2, atol=2e-4)


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
    for key in ("loss", "capo/noise_rate", "capo/scale", "grad_norm"):
        assert logged(runs[0], key) == logged(runs[1], key)
    assert len(set(logged(runs[0], "capo/noise_rate/de"))) == 6  # it moves in the first epoch's 6 steps
    assert same(weights(runs[0].model), weights(runs[1].model))
    card = (tmp_path / "output" / "README.md").read_text()
    assert "CAPO" in card
    assert "2511.07691" in card


def test_named_evaluation_sets_keep_the_rate_and_show_their_own_metrics(make_args, model_dir, other_model_dir, pairs):
    args, rows = make_args(**COMMON | {"noise_rate": "auto"}), pairs.select(range(4))
    sets = {"right": rows, "flipped": rows.rename_columns({"chosen": "rejected", "rejected": "chosen"})}
    trainer = CAPOTrainer(model_dir, load(other_model_dir), args=args, train_dataset=pairs, eval_dataset=sets)
    metrics = trainer.evaluate()
    start = sum(NOISE_RATES) / len(NOISE_RATES)  # while nothing is known, every rate is as likely as any other
    for name, dataset in sets.items():
        oracle = Oracle(dataset, load(other_model_dir))
        oracle.on_step_begin(args, trainer.state, None, load(model_dir))
        expected = expected_logs(oracle.steps[0], start, args) | {"capo/noise_rate": start}
        assert {key: metrics[f"eval_{name}_{key}"] for key in expected} == pytest.approx(expected, rel=1e-4)
    trainer.train()
    keys = [f"eval_{name}_capo/noise_rate" for name in sets]
    rates = {metrics[key] for metrics in (trainer.evaluate(), trainer.evaluate()) for key in keys}
    assert len(rates) == 1
    assert rates.isdisjoint(logged(trainer, "capo/noise_rate"))


@pytest.mark.parametrize("loss_type", [*LOSSES.split(), "sft", "sigmoid_norm"])
def test_noise_rate_zero_is_dpo_for_every_loss_of_trl(make_args, model_dir, other_model_dir, pairs, loss_type):
    smoothing = 0.1 if loss_type in ("exo_pair", "robust") else 0.0
    options, runs = PLAIN | {"loss_type": [loss_type], "label_smoothing": smoothing}, []
    for trainer_class, config, own in ((DPOTrainer, DPOConfig, {}), (CAPOTrainer, CAPOConfig, {"noise_rate": 0.0})):
        args = make_args(config, **options, **own)
        runs.append(trainer_class(model_dir, load(other_model_dir), args=args, train_dataset=pairs))
        runs[-1].train()
    assert same(weights(runs[0].model), weights(runs[1].model))
    for dpo, capo in zip(runs[0].state.log_history[:-1], runs[1].state.log_history[:-1], strict=True):
        assert dpo.items() <= capo.items()
        assert all(
            key.startswith(("capo/", "rewards/accuracies/", "rewards/margins/")) for key in capo.keys() - dpo.keys()
        )
