"""Trainings and evaluations that must come out the same however they are cut: by accumulation or on two processes.

torchrun starts this file as the program of each of several processes; then its arguments are a folder and the models
of `train`.
"""

import os
import sys
from pathlib import Path

import torch
from conftest import CPU_ARGUMENTS, make_pairs
from datasets import Dataset, concatenate_datasets
from oracles import COMMON, LORA, load, weights
from pair_oracle import OPTIONS, make_pool
from peft import LoraConfig
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import BitsAndBytesConfig, TrainerCallback

from trl_capo import CAPOConfig, CAPOTrainer, PairLog
from trl_capo.callbacks.pair_log import read_log

# Into the second epoch of 6 steps; every rate before and after an update differs.
AUTO = COMMON | {"noise_rate": "auto", "train_sampling_strategy": "random"}
AUTO |= {"max_steps": 8, "save_strategy": "no"}
IN_ORDER = {"train_sampling_strategy": "sequential", "num_train_epochs": 1, "max_steps": -1}
CASES = ["full", "lora", "one language each", "padding free", "precomputed", "qlora", "stream", "uneven", "weighted"]


class EveryStep(TrainerCallback):
    """Keeps the trained weights after each step."""

    def __init__(self) -> None:
        self.weights: list[dict] = []

    def on_step_end(self, args, state, control, model, **kwargs) -> None:
        self.weights.append({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad})


def training_pairs(name: str, folder: Path, processes: int) -> Dataset:
    if name == "weighted":
        return make_pairs().add_column("weight", [0.0, 0.5, 1.0, 1.5, 2.0, 0.25] * 4)
    if name == "uneven":  # the last step lacks two of 22 pairs; on several processes, Accelerate repeats the first two
        rows = make_pairs().select(range(22))
        return rows if processes > 1 else concatenate_datasets([rows, rows.select(range(2))])
    if name == "one language each":  # batches of 2 go to two processes in turns: one of them gets `de` alone
        return make_pairs().remove_columns("language").add_column("language", ["de", "de", "sw", "sw"] * 6)
    # TRL shares precomputed log-probs through a file beside the data, so they are on a disk.
    return Dataset.load_from_disk(folder / "data")


def train(name: str, folder: Path, model: str, other: str, quantizable: str, processes: int = 1, **sizes) -> dict:
    """What one training logged, its pairs, and its weights after each step and in the end."""
    pairs, stream = training_pairs(name, folder, processes), name == "stream"
    data = pairs.to_iterable_dataset() if stream else pairs
    options = {"train_dataset": data, "eval_dataset": pairs.select(range(8))}
    log = Path(folder, "logs", "-".join([name, str(processes), *map(str, sizes.values())]))
    arguments = AUTO | sizes | {"output_dir": str(folder), "precompute_ref_log_probs": name == "precomputed"}
    arguments["padding_free"] = name == "padding free"
    if name in ("uneven", "one language each"):
        arguments |= IN_ORDER
    if name == "qlora":
        options["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    if "lora" in name:
        options["peft_config"] = LoraConfig(**LORA)
    else:
        options["ref_model"] = load(other)
    steps, args = EveryStep(), CAPOConfig(**CPU_ARGUMENTS | arguments)
    callbacks = [steps] if stream else [steps, PairLog(log)]
    trainer = CAPOTrainer(quantizable if name == "qlora" else model, args=args, callbacks=callbacks, **options)
    trainer.train()
    if name != "qlora":  # on the CPU, bitsandbytes evaluates in bfloat16 kernels of its own, to 3 digits
        trainer.evaluate()
    state = weights(trainer.accelerator.unwrap_model(trainer.model))
    read = trainer.is_world_process_zero() and not stream  # the main process writes the log
    rows = [row for batch in read_log(log).batches() for row in batch.to_pylist()] if read else []
    return {"logs": trainer.state.log_history, "steps": steps.weights, "weights": state, "pairs": rows}


def train_sharded(folder: Path, model: str, other: str, processes: int = 1, **sizes) -> dict:
    """Four steps by hand, with the policy sharded by FSDP2 and without padding on several processes; as `train`."""
    options = AUTO | IN_ORDER | sizes | {"output_dir": str(folder), "padding_free": processes > 1}
    args = CAPOConfig(**CPU_ARGUMENTS | options)
    trainer = CAPOTrainer(model, load(other), args=args, train_dataset=make_pairs())
    policy, logs, steps = trainer.model, [], []
    if processes > 1:
        for part in (*policy.model.layers, policy):
            fully_shard(part, mesh=init_device_mesh("cpu", (processes,)))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
    policy.train()
    for _, batch in zip(range(4), trainer.get_train_dataloader(), strict=False):
        loss = trainer.compute_loss(policy, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        logs.append({"loss": trainer.accelerator.gather(loss.detach()).mean().item()})
        trainer.log(logs[-1])
        whole = policy.state_dict().items()
        steps.append({k: (v.full_tensor() if processes > 1 else v).detach().clone() for k, v in whole})
    return {"logs": logs, "steps": steps, "weights": steps[-1]}


def evaluation_cases() -> dict[str, tuple[Dataset, int, dict]]:
    """Pairs, batch size of each process, options."""
    pool, parity = make_pool(), make_pool().remove_columns("language")
    cases = {f"pool {size}": (pool.select(range(23)), size, {}) for size in (1, 3, 8)}
    cases["kept columns"] = (pool.select(range(23)), 3, {"remove_unused_columns": False, "noise_rate": 0})
    cases["long prompts"] = (pool, 3, {"max_length": 30})
    # Batches of 1 go to the processes in turns: each group is missing in one of them.
    cases["parity"] = (parity.add_column("language", ["even", "odd"] * 12), 1, {})
    cases["last pair alone"] = (parity.add_column("language", ["most"] * 23 + ["last"]), 4, {})
    return cases


def evaluate(name: str, folder: Path, policy: str, other: str) -> dict[str, float]:
    rows, size, options = evaluation_cases()[name]
    options = OPTIONS | options | {"per_device_eval_batch_size": size, "output_dir": str(folder)}
    data = {"train_dataset": Dataset.load_from_disk(folder / "data"), "eval_dataset": rows}
    return CAPOTrainer(load(policy), load(other), CAPOConfig(**CPU_ARGUMENTS | options), **data).evaluate()


if __name__ == "__main__":
    place, *models = Path(sys.argv[1]), *sys.argv[2:]
    two = {"processes": 2, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}
    results = {name: train(name, place, *models, **two) for name in CASES}
    results["sharded"] = train_sharded(place, *models[:2], **two)
    results["evaluations"] = {name: evaluate(name, place, *models[:2]) for name in evaluation_cases()}
    torch.save(results, place / f"{os.environ['RANK']}.pt")
