"""Trainings that must come out the same however they are cut: on one process, by accumulation, on two processes.

Started by torchrun, this file trains all of them in one process of several. Its arguments: a folder, and the models of
`train`.
"""

import os
import sys
from pathlib import Path

import torch
from conftest import CPU_ARGUMENTS, make_pairs
from datasets import Dataset, concatenate_datasets
from peft import LoraConfig
from test_modes import COMMON, LORA, load, weights
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import BitsAndBytesConfig, TrainerCallback

from trl_capo import CAPOConfig, CAPOTrainer
from trl_capo.pair_log import read_log

# Into the second epoch of 6 steps; every rate before and after an update differs.
AUTO = COMMON | {"noise_rate": "auto", "train_sampling_strategy": "random", "max_steps": 8, "save_strategy": "no"}
IN_ORDER = {"train_sampling_strategy": "sequential", "num_train_epochs": 1, "max_steps": -1}
LIVE = {"full", "lora", "qlora", "one language each", "stream of one language each", "uneven", "weighted"}
CASES = {*LIVE, "precomputed"}


class EveryStep(TrainerCallback):
    """Keeps the trained weights after each step."""

    def __init__(self) -> None:
        self.weights: list[dict] = []

    def on_step_end(self, args, state, control, model, **kwargs) -> None:
        self.weights.append({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad})


def one_language_each() -> Dataset:
    """Batches of 2 go to two processes in turns: one of them gets nothing but `de`, the other nothing but `sw`."""
    rows = make_pairs().remove_columns("language")
    return rows.add_column("language", ["de", "de", "sw", "sw"] * 6)


def uneven(processes: int) -> Dataset:
    """22 pairs, whose last step lacks two; Accelerate fills it up from the beginning, for several processes alone."""
    rows = make_pairs().select(range(22))
    return rows if processes > 1 else concatenate_datasets([rows, rows.select(range(2))])


def train(name: str, folder: Path, model: str, other: str, quantizable: str, processes: int = 1, **sizes) -> dict:
    """What one training logged, and its weights after each step and in the end; sizes are options of batches."""
    pairs = Dataset.load_from_disk(folder / "data")  # TRL shares precomputed log-probs through a file beside the data
    options = {"train_dataset": pairs, "eval_dataset": pairs.select(range(8))}
    log = Path(folder, "logs", "-".join([name, *(str(size) for size in sizes.values() if isinstance(size, int))]))
    arguments = AUTO | sizes | {"output_dir": str(folder), "pair_log": "stream" not in name and str(log)}
    if name == "precomputed":
        arguments["precompute_ref_log_probs"] = True
    elif name == "qlora":
        options["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    elif name == "weighted":
        options["train_dataset"] = pairs.add_column("weight", [0.0, 0.5, 1.0, 1.5, 2.0, 0.25] * 4)
    elif name == "uneven":
        options["train_dataset"], arguments = uneven(processes), arguments | IN_ORDER
    elif "one language each" in name:
        options["train_dataset"], arguments = one_language_each(), arguments | IN_ORDER
        if "stream" in name:
            stream = options["train_dataset"].to_iterable_dataset()
            options["train_dataset"], arguments["max_steps"] = stream, 6
    if "lora" in name:
        options["peft_config"] = LoraConfig(**LORA)
    else:
        options["ref_model"] = load(other)
    steps, args = EveryStep(), CAPOConfig(**CPU_ARGUMENTS | arguments)
    trainer = CAPOTrainer(quantizable if name == "qlora" else model, args=args, callbacks=[steps], **options)
    trainer.train()
    if name != "qlora":  # on the CPU, bitsandbytes evaluates in bfloat16 kernels of its own, to 3 digits
        trainer.evaluate()
    state = weights(trainer.accelerator.unwrap_model(trainer.model))
    result = {"logs": trainer.state.log_history, "steps": steps.weights, "weights": state}
    if "stream" not in name and trainer.is_world_process_zero():
        result["pairs"] = [row for batch in read_log(log).batches() for row in batch.to_pylist()]
    return result


def train_sharded(folder: Path, model: str, other: str, processes: int = 1, **sizes) -> dict:
    """Four steps by hand, with the policy sharded by FSDP2 over the processes; as `train`."""
    args = CAPOConfig(**CPU_ARGUMENTS | AUTO | IN_ORDER | sizes | {"output_dir": str(folder)})
    trainer = CAPOTrainer(model, load(other), args=args, train_dataset=make_pairs())
    policy, logs, steps = trainer.model, [], []
    if processes > 1:
        mesh = init_device_mesh("cpu", (processes,))
        for part in (*policy.model.layers, policy):
            fully_shard(part, mesh=mesh)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
    policy.train()
    for _, batch in zip(range(4), trainer.get_train_dataloader(), strict=False):
        loss = trainer.compute_loss(policy, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        entry = {"loss": trainer.accelerator.gather(loss.detach()).mean().item()}
        logs.append(entry | trainer._capo_recorder.take_training() | trainer._capo_estimate.by_group())
        whole = policy.state_dict().items()
        steps.append({k: (v.full_tensor() if processes > 1 else v).detach().clone() for k, v in whole})
    return {"logs": logs, "steps": steps, "weights": steps[-1]}


if __name__ == "__main__":  # one of the processes that torchrun starts
    place, *models = Path(sys.argv[1]), *sys.argv[2:]
    two = {"processes": 2, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}
    results = {name: train(name, place, *models, **two) for name in sorted(CASES)}
    results["sharded"] = train_sharded(place, *models[:2], **two)
    torch.save(results, place / f"{os.environ['RANK']}.pt")
