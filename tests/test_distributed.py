"""The same training, computed in other ways: two processes, accumulation, a checkpoint, a noise rate of 0 in TRL.

Two processes on the CPU talk through gloo. They are started by torchrun with this file as the program, and by
`trl-capo train` with an accelerate configuration file, and are compared with one process that has twice the batch:
both see the same permutation of the pairs, cut into steps of 4. Tolerances are those of float32 sums in another order.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import CPU_ARGUMENTS, logged, make_pairs
from peft import LoraConfig
from safetensors.torch import load_file
from test_modes import COMMON, LORA, PLAIN, Oracle, expected_logs, load, same, weights
from trl import DPOConfig, DPOTrainer

from trl_capo import CAPOConfig, CAPOTrainer
from trl_capo.agreement import NOISE_RATES

LOSSES = "sigmoid hinge ipo exo_pair nca_pair robust bco_pair sppo_hard aot aot_unpaired apo_zero apo_down discopop"
# Into the second epoch of 6 steps; every rate before and after an update differs.
AUTO = COMMON | {"noise_rate": "auto", "train_sampling_strategy": "random", "max_steps": 8, "save_strategy": "no"}
COMPARED = ["loss", "grad_norm", "rewards/margins", "eval_loss"]
CAPO = ["noise_rate", "confidence", "scale", "scale_min", "scale_max", "contradicted"]
COMPARED += [f"{prefix}capo/{name}" for prefix in ("", "eval_") for name in CAPO]


def train_both(folder, model_dir, other_model_dir, **options) -> dict:
    """Full fine-tuning, then LoRA; the logs and weights of each."""
    results = {}
    for name, ref_model, peft_config in (("full", load(other_model_dir), None), ("lora", None, LoraConfig(**LORA))):
        data = {"train_dataset": make_pairs(), "eval_dataset": make_pairs(8)}
        args = CAPOConfig(**CPU_ARGUMENTS | AUTO | {"output_dir": str(folder)} | options)
        trainer = CAPOTrainer(model_dir, ref_model, args=args, peft_config=peft_config, **data)
        trainer.train()
        trainer.evaluate()
        state = weights(trainer.accelerator.unwrap_model(trainer.model))
        results[name] = {"weights": state, **{key: logged(trainer, key) for key in COMPARED}}
    return results


def assert_same_training(one: dict, other: dict):
    assert len(set(one["capo/noise_rate"])) > len(one["loss"]) // 2
    for key in COMPARED:
        assert one[key] == pytest.approx(other[key], rel=2e-3, abs=1e-5), key
        assert len(one[key]) == (1 if key.startswith("eval_") else 8)
    torch.testing.assert_close(one["weights"], other["weights"], rtol=1e-2, atol=2e-4)


def run(command: list[str], **variables):
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **variables})
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def one_process(model_dir, other_model_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    return train_both(folder, model_dir, other_model_dir, per_device_train_batch_size=4, per_device_eval_batch_size=4)


def test_two_processes_train_as_one_with_twice_the_batch(one_process, model_dir, other_model_dir, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    run([*launcher, __file__, str(tmp_path), model_dir, other_model_dir], OMP_NUM_THREADS="1")
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for name, expected in one_process.items():
        assert_same_training(ranks[0][name], expected)
        assert ranks[0][name]["capo/noise_rate"] == ranks[1][name]["capo/noise_rate"]
        assert same(ranks[0][name]["weights"], ranks[1][name]["weights"])


def test_accumulation_trains_as_one_big_batch(one_process, model_dir, other_model_dir, tmp_path):
    """With the rate estimated: its update sees all micro-batches of the step."""
    sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "per_device_eval_batch_size": 4}
    for name, result in train_both(tmp_path, model_dir, other_model_dir, **sizes).items():
        assert_same_training(result, one_process[name])


def test_command_starts_two_processes(model_dir, pairs, tmp_path, make_args):
    """Two processes of batch 2 through the command and its accelerate options, one of batch 4 in Python.

    accelerate starts several CPU processes only with MPI; MULTI_GPU is torchrun, and `use_cpu` makes it gloo.
    """
    pairs.to_json(tmp_path / "train.jsonl", force_ascii=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
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


if __name__ == "__main__":  # one of the processes that torchrun starts
    output, *folders = sys.argv[1:]
    sizes = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}
    torch.save(train_both(output, *folders, **sizes), Path(output, os.environ["RANK"] + ".pt"))
