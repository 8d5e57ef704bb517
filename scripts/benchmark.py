"""Measure what CAPO costs over DPO, interleaved in one run: time of a step, tokens per second and peak memory.

    python scripts/benchmark.py [--model FOLDER] [--train full lora qlora] [--pairs 8] [--tokens 128 512] [--steps 20]
                                [--languages 12] [--layers 6] [--vocabulary 32000] [--memory] [--rounds 3]

It prints a row per way to train, pairs per batch and tokens per sequence (half of them in the prompt). Both trainers
get the same batches and take turns at going first, so that other load on the machine affects both. A step is forward,
loss, backward and optimiser step. With `--languages` CAPO estimates and reports a noise rate for each. `--memory` adds
the median peak of `--rounds` separate processes per trainer: of the GPU's allocator, or on a CPU (Linux) the resident
set. Ratios are CAPO over DPO.
"""

import argparse
import itertools
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, logging
from transformers.trainer_callback import PrinterCallback
from trl import DPOConfig, DPOTrainer

from trl_capo import CAPOConfig, CAPOTrainer

KINDS = {"dpo": (DPOTrainer, DPOConfig), "capo": (CAPOTrainer, CAPOConfig)}
GPU = torch.cuda.is_available()
WORDS = ["the", "of", "and", "in", "to", "is", "for", "on", "with", "as"]  # one token each in most vocabularies


def save_random_model(folder: str, layers: int, vocabulary: int) -> str:
    tokens = ["<pad>", "<end>", *WORDS, *map(str, range(vocabulary))][:vocabulary]
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>").save_pretrained(folder)
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": layers, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **sizes, max_position_embeddings=8192)).save_pretrained(folder)
    return folder


def make_rows(languages: int, pairs: int, tokens: int) -> Dataset:
    """Make four batches of pairs whose sequences have `tokens` tokens; TRL ends an answer with one of its own."""

    def text(start: int, count: int) -> str:
        return "".join(f" {WORDS[(start + k) % len(WORDS)]}" for k in range(count))

    prompt, answer = tokens - tokens // 2, tokens // 2 - 1
    rows = [
        {
            "prompt": text(row, prompt),
            "chosen": text(3 * row + 1, answer),
            "rejected": text(5 * row + 2, answer),
            "language": f"language {row % max(1, languages)}",
        }
        for row in range(4 * pairs)
    ]
    return Dataset.from_list(rows)


def make_trainer(kind: str, args: argparse.Namespace, how: str, pairs: int, tokens: int, folder: str) -> DPOTrainer:
    trainer_class, config_class = KINDS[kind]
    own = {"group_column": "language" if args.languages else None} if kind == "capo" else {}
    quiet = {"report_to": "none", "disable_tqdm": True, "logging_steps": 10_000, "save_strategy": "no"}
    own |= {"per_device_train_batch_size": pairs, "max_length": None, "gradient_checkpointing": False, "max_steps": 1}
    training = config_class(folder, use_cpu=not GPU, bf16=GPU, **quiet, **own)
    options = {"peft_config": None if how == "full" else LoraConfig(r=16, target_modules="all-linear")}
    if how == "qlora":
        dtype = torch.bfloat16 if GPU else torch.float32
        options["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype)
    rows = make_rows(args.languages, pairs, tokens)
    trainer = trainer_class(args.model, args=training, train_dataset=rows, **options)
    trainer.remove_callback(PrinterCallback)
    return trainer


def wait_for_gpu() -> float:
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter()


def time_step(trainer: DPOTrainer, batch: dict) -> float:
    start = wait_for_gpu()
    trainer.training_step(trainer.model_wrapped, dict(batch))
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    return wait_for_gpu() - start


def measure_time(args: argparse.Namespace, *case) -> tuple[dict[str, list[float]], int]:
    """Return the seconds of every step by trainer, and the tokens in a batch."""
    trainers = {kind: make_trainer(kind, args, *case) for kind in KINDS}
    for trainer in trainers.values():
        trainer.train()  # one step, which prepares the model and the optimiser
        trainer.model.train()
    batches = {kind: list(trainer.get_train_dataloader()) for kind, trainer in trainers.items()}
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for index in range(args.steps + 2):
        for kind in KINDS if index % 2 else reversed(KINDS):
            seconds = time_step(trainers[kind], batches[kind][index % len(batches[kind])])
            if index >= 2:
                times[kind].append(seconds)
    return times, batches["dpo"][0]["input_ids"].numel()


def measure_memory(args: argparse.Namespace, how: str, pairs: int, tokens: int) -> dict[str, float]:
    """Return the median peak in MiB of several processes per trainer."""
    case = ["--train", how, "--pairs", str(pairs), "--tokens", str(tokens), "--model", args.model]
    command = [sys.executable, __file__, *case, "--languages", str(args.languages), "--peak_of"]
    peaks: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(args.rounds):
        for kind, values in peaks.items():
            done = subprocess.run([*command, kind], check=True, capture_output=True, text=True)
            values.append(json.loads(done.stdout.strip().splitlines()[-1]))
    return {kind: statistics.median(values) for kind, values in peaks.items()}


def peak_of(kind: str, *case) -> float:
    """Train for three steps and return the peak memory of this process in MiB."""
    trainer = make_trainer(kind, *case)
    trainer.args.max_steps = 3
    trainer.train()
    if GPU:
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 1024


def row(args: argparse.Namespace, how: str, pairs: int, tokens: int, folder: str) -> list[str]:
    times, batch_tokens = measure_time(args, how, pairs, tokens, folder)
    medians = {kind: statistics.median(values) for kind, values in times.items()}
    ratios = statistics.quantiles(capo / dpo for dpo, capo in zip(times["dpo"], times["capo"], strict=True))
    cells = [how, f"{pairs}", f"{batch_tokens // (2 * pairs):,}", f"{medians['dpo']:.4f}", f"{medians['capo']:.4f}"]
    cells += [f"{batch_tokens / medians['capo']:,.0f}", f"{medians['capo'] / medians['dpo']:.3f}"]
    cells += [f"{ratios[0]:.3f} to {ratios[2]:.3f}"]
    if args.memory:
        memory = measure_memory(args, how, pairs, tokens)
        cells += [f"{memory['dpo']:,.0f}", f"{memory['capo'] / memory['dpo']:.4f}"]
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder of a model with its tokenizer; default: a small random Llama")
    parser.add_argument("--train", nargs="+", choices=["full", "lora", "qlora"], default=["full", "lora"])
    parser.add_argument("--pairs", nargs="+", type=int, default=[8], help="pairs per batch")
    parser.add_argument("--tokens", nargs="+", type=int, default=[128], help="tokens per sequence")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--languages", type=int, default=0)
    parser.add_argument("--layers", type=int, default=6, help="layers of the random model")
    parser.add_argument("--vocabulary", type=int, default=32_000, help="tokens in the random model's vocabulary")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--rounds", type=int, default=3, help="processes per trainer that measure memory")
    parser.add_argument("--peak_of", choices=KINDS, help=argparse.SUPPRESS)  # for the processes that measure memory
    args = parser.parse_args()
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        args.model = args.model or save_random_model(f"{folder}/model", args.layers, args.vocabulary)
        if args.peak_of:
            print(json.dumps(peak_of(args.peak_of, args, args.train[0], args.pairs[0], args.tokens[0], folder)))
            return
        heads = ["train", "pairs", "tokens", "DPO s", "CAPO s", "tokens/s", "time ratio", "quartiles"]
        heads += ["DPO MiB", "memory ratio"] if args.memory else []
        print(f"| {' | '.join(heads)} |\n|{'---|' + '---:|' * (len(heads) - 1)}", flush=True)
        for case in itertools.product(args.train, args.pairs, args.tokens):
            print(f"| {' | '.join(row(args, *case, folder))} |", flush=True)


if __name__ == "__main__":
    main()
