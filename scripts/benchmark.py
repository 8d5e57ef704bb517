"""What CAPO costs over DPO: time of a training step and peak memory, interleaved in one run.

    python scripts/benchmark.py [--model demo/model] [--tiny] [--lora] [--steps 20] [--batch_size 8]

Both trainers get the same batches in turn, first one and then the other leading, so that what else the machine does
hits both. Time is the median over steps of forward, loss, backward and optimiser step. Memory is the peak of a process
of its own per trainer: of the GPU's allocator, or on a CPU the resident set. `--tiny` takes a tiny random
Llama. A ratio is CAPO over DPO.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import DPOConfig, DPOTrainer

from trl_capo import CAPOConfig, CAPOTrainer


def make_trainer(kind: str, args: argparse.Namespace, folder: str) -> DPOTrainer:
    cls, config = {"dpo": (DPOTrainer, DPOConfig), "capo": (CAPOTrainer, CAPOConfig)}[kind]
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    rows = [
        {
            "prompt": " ".join(words[(row + k) % 8] for k in range(args.words)),
            "chosen": " " + " ".join(words[(row * 3 + k) % 8] for k in range(args.words)),
            "rejected": " " + " ".join(words[(row * 5 + k) % 8] for k in range(args.words)),
        }
        for row in range(4 * args.batch_size)
    ]
    gpu = torch.cuda.is_available()
    training = config(
        folder,
        per_device_train_batch_size=args.batch_size,
        use_cpu=not gpu,
        bf16=gpu,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        logging_steps=10_000,
        save_strategy="no",
        max_steps=1,
    )
    peft_config = LoraConfig(r=16, target_modules="all-linear") if args.lora else None
    return cls(args.model, args=training, train_dataset=Dataset.from_list(rows), peft_config=peft_config)


def step(trainer: DPOTrainer, batch: dict) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    trainer.training_step(trainer.model_wrapped, dict(batch))
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure_time(args: argparse.Namespace, folder: str) -> dict[str, list[float]]:
    trainers = {kind: make_trainer(kind, args, folder) for kind in ("dpo", "capo")}
    for trainer in trainers.values():
        trainer.train()  # one step: prepares the model and the optimiser
        trainer.model.train()
    batches = list(trainers["dpo"].get_train_dataloader())
    times: dict[str, list[float]] = {"dpo": [], "capo": []}
    for index in range(args.steps + 2):
        for kind in ("dpo", "capo") if index % 2 else ("capo", "dpo"):
            seconds = step(trainers[kind], batches[index % len(batches)])
            if index >= 2:
                times[kind].append(seconds)
    return times


def measure_memory(args: argparse.Namespace, folder: str) -> float:
    trainer = make_trainer(args.memory, args, folder)
    trainer.args.max_steps = 3
    trainer.train()
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo/model", help="folder of a model with its tokenizer")
    parser.add_argument("--tiny", action="store_true", help="a tiny random Llama with that model's tokenizer instead")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=8, help="pairs")
    parser.add_argument("--words", type=int, default=16, help="words of the prompt, and of each answer")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--memory", choices=["dpo", "capo"], help=argparse.SUPPRESS)  # one process measures itself
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.tiny:
            tokenizer = AutoTokenizer.from_pretrained(args.model)
            args.model = f"{folder}/tiny"
            sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
            LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(args.model)
            tokenizer.save_pretrained(args.model)
        if args.memory:
            print(json.dumps(measure_memory(args, folder)))
            return
        times = measure_time(args, folder)
    medians = {kind: statistics.median(values) for kind, values in times.items()}
    ratios = [capo / dpo for dpo, capo in zip(times["dpo"], times["capo"], strict=True)]
    quartiles = statistics.quantiles(ratios)
    command = [sys.executable, __file__, *sys.argv[1:], "--memory"]
    peaks = {kind: [] for kind in ("dpo", "capo")}
    for _ in range(3):
        for kind, values in peaks.items():
            done = subprocess.run([*command, kind], check=True, capture_output=True, text=True)
            values.append(float(done.stdout.strip().splitlines()[-1]))
    memory = {kind: statistics.median(values) for kind, values in peaks.items()}
    print(f"step time, median of {args.steps}: DPO {medians['dpo']:.4f} s, CAPO {medians['capo']:.4f} s")
    print(
        f"ratio of the medians {medians['capo'] / medians['dpo']:.4f}; of neighbours: median "
        f"{statistics.median(ratios):.4f}, quartiles {quartiles[0]:.4f} to {quartiles[2]:.4f}"
    )
    print(
        f"peak memory, median of 3: DPO {memory['dpo']:.0f} MiB, CAPO {memory['capo']:.0f} MiB, "
        f"ratio {memory['capo'] / memory['dpo']:.4f}"
    )


if __name__ == "__main__":
    main()
