"""Measure CAPO and padding-free CAPO against DPO, interleaved in one run: time of a step, tokens/s and peak memory.

    python scripts/benchmark.py [--model FOLDER] [--train full lora qlora] [--pairs 8] [--tokens 128 512] [--steps 20]
                                [--lengths 50 1500 30 600] [--languages 12] [--layers 6] [--hidden 256]
                                [--vocabulary 32000] [--memory] [--rounds 3] [--profile]

It prints a row per way to train, pairs per batch and tokens per sequence, half of them in the prompt. `--lengths`
draws the lengths of prompts and answers log-uniformly instead, each between two bounds. All trainers get the same
batches and take turns at going first. A step is forward, loss, backward and optimiser step. `--memory` adds the median
peak of `--rounds` processes per trainer: of the GPU's allocator, or on a CPU (Linux) the resident set. `--profile`
adds where the time of a CPU step goes, and the time of its matrix products if each token were computed once.
"""

import argparse
import itertools
import json
import math
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, logging
from transformers.trainer_callback import PrinterCallback
from trl import DPOConfig, DPOTrainer

from trl_capo import CAPOConfig, CAPOTrainer

KINDS = {"dpo": (DPOTrainer, DPOConfig, {}), "capo": (CAPOTrainer, CAPOConfig, {})}
KINDS["padding-free"] = (CAPOTrainer, CAPOConfig, {"padding_free": True})
GPU = torch.cuda.is_available()
WORDS = ["the", "of", "and", "in", "to", "is", "for", "on", "with", "as"]  # one token each in most vocabularies


def save_random_model(folder: str, layers: int, vocabulary: int, hidden: int = 256) -> str:
    tokens = ["<pad>", "<end>", *WORDS, *map(str, range(vocabulary))][:vocabulary]
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>").save_pretrained(folder)
    sizes = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": layers}
    sizes["num_attention_heads"] = hidden // 64
    LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **sizes, max_position_embeddings=8192)).save_pretrained(folder)
    return folder


def make_rows(args: argparse.Namespace, pairs: int, tokens: int) -> Dataset:
    """Make four batches of pairs; TRL ends an answer with a token of its own."""
    draw, half = random.Random(0), tokens // 2
    bounds = [math.log(bound) for bound in args.lengths or (tokens - half, tokens - half, half, half)]

    def text(start: int, low: float, high: float, less: int = 0) -> str:
        length = round(math.exp(draw.uniform(low, high))) - less
        return "".join(f" {WORDS[(start + k) % len(WORDS)]}" for k in range(length))

    rows = []
    for row in range(4 * pairs):
        answers = {"chosen": text(3 * row + 1, *bounds[2:], 1), "rejected": text(5 * row + 2, *bounds[2:], 1)}
        language = {"language": f"language {row % max(1, args.languages)}"}
        rows.append({"prompt": text(row, *bounds[:2])} | answers | language)
    return Dataset.from_list(rows)


def make_trainer(kind: str, args: argparse.Namespace, how: str, pairs: int, tokens: int, folder: str) -> DPOTrainer:
    trainer_class, config_class, own = KINDS[kind]
    own = own | ({} if kind == "dpo" else {"group_column": "language" if args.languages else None})
    quiet = {"report_to": "none", "disable_tqdm": True, "logging_steps": 10_000, "save_strategy": "no"}
    own |= {"per_device_train_batch_size": pairs, "max_length": None, "gradient_checkpointing": False, "max_steps": 1}
    training = config_class(folder, use_cpu=not GPU, bf16=GPU, **quiet, **own)
    options = {"peft_config": None if how == "full" else LoraConfig(r=16, target_modules="all-linear")}
    if how == "qlora":
        dtype = torch.bfloat16 if GPU else torch.float32
        options["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype)
    rows = make_rows(args, pairs, tokens)
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
    """Return the seconds of every step by trainer, and the mean number of tokens of a batch, without padding."""
    trainers = {kind: make_trainer(kind, args, *case) for kind in KINDS}
    for trainer in trainers.values():
        trainer.train()  # one step, which prepares the model and the optimiser
        trainer.model.train()
    batches = {kind: list(trainer.get_train_dataloader()) for kind, trainer in trainers.items()}
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    warm_up = 0 if args.profile else 2
    for index in range(args.steps + warm_up):
        for kind in KINDS if index % 2 else reversed(KINDS):
            seconds = time_step(trainers[kind], batches[kind][index % len(batches[kind])])
            times[kind] += [seconds] if index >= warm_up else []
    if args.profile:
        for kind, trainer in trainers.items():
            print(f"{kind}: {profile(trainer, batches[kind][0])}")
        print(f"limit: {limit(trainers['dpo'], batches['dpo'][0]):.2f} s")
    return times, int(statistics.mean(batch["attention_mask"].sum().item() for batch in batches["dpo"]))


def profile(trainer: DPOTrainer, batch: dict) -> dict[str, float]:
    """Return the seconds that a step on a CPU spends in each part of the model."""
    seconds = dict.fromkeys(("head", "attention", "other matrix products", "rest"), 0.0)
    with torch.profiler.profile() as profiler:
        time_step(trainer, batch)
    for event in profiler.events():
        part, parent = "other matrix products" if event.name in ("aten::mm", "aten::addmm") else "rest", event
        while parent is not None:
            part = "head" if "ChunkedLogProb" in parent.name else part
            part = "attention" if "scaleddotproduct" in parent.name.lower().replace("_", "") else part
            parent = parent.cpu_parent
        seconds[part] += event.self_cpu_time_total / 1e6
    return {part: round(value, 2) for part, value in seconds.items()}


def limit(trainer: DPOTrainer, batch: dict) -> float:
    """Return the seconds of a step's matrix products, for policy and reference, at the speed of a large one."""
    ids, mask, scored = batch["input_ids"], batch["attention_mask"], batch["completion_mask"]
    same = (torch.eq(*ids.chunk(2)) & mask.chunk(2)[0].bool() & mask.chunk(2)[1].bool()).cumprod(dim=1).sum()
    layers = sum(parameter.numel() for parameter in trainer.model.base_model.layers.parameters())
    flops = 8 * ((mask.sum() - same) * layers + scored.sum() * trainer.model.lm_head.weight.numel()).item()
    one, other = torch.randn(4096, 1024), torch.randn(1024, 1024)
    return flops / (2 * 4096 * 1024**2) * min(timeit.repeat(lambda: torch.mm(one, other), number=1, repeat=10))


def measure_memory(args: argparse.Namespace, how: str, pairs: int, tokens: int) -> dict[str, float]:
    """Return the median peak in MiB of several processes per trainer."""
    case = ["--train", how, "--pairs", str(pairs), "--tokens", str(tokens), "--model", args.model]
    case += ["--lengths", *map(str, args.lengths)] if args.lengths else []
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
    times, real = measure_time(args, how, pairs, tokens, folder)
    cells = [how, f"{pairs}", " ".join(map(str, args.lengths or [tokens])), f"{statistics.median(times['dpo']):.4f}"]
    memory = measure_memory(args, how, pairs, tokens) if args.memory else {}
    for kind in ("capo", "padding-free"):
        ratios = statistics.quantiles(own / dpo for dpo, own in zip(times["dpo"], times[kind], strict=True))
        cells += [f"{sum(times[kind]) / sum(times['dpo']):.3f}", f"{ratios[0]:.3f} to {ratios[2]:.3f}"]
        cells += [f"{memory[kind] / memory['dpo']:.4f}"] if memory else []
    return [*cells, f"{real * len(times[kind]) / sum(times[kind]):,.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder of a model with its tokenizer; default: a small random Llama")
    parser.add_argument("--train", nargs="+", choices=["full", "lora", "qlora"], default=["full", "lora"])
    parser.add_argument("--pairs", nargs="+", type=int, default=[8], help="pairs per batch")
    parser.add_argument("--tokens", nargs="+", type=int, default=[128], help="tokens per sequence")
    parser.add_argument("--lengths", nargs=4, type=int, help="bounds of prompts' and of answers' tokens")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--languages", type=int, default=0)
    parser.add_argument("--layers", type=int, default=6, help="layers of the random model")
    parser.add_argument("--vocabulary", type=int, default=32_000, help="tokens in the random model's vocabulary")
    parser.add_argument("--hidden", type=int, default=256, help="hidden size of the random model")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--profile", action="store_true", help="also print where the time of a step goes")
    parser.add_argument("--rounds", type=int, default=3, help="processes per trainer that measure memory")
    parser.add_argument("--peak_of", choices=KINDS, help=argparse.SUPPRESS)  # for the processes that measure memory
    args = parser.parse_args()
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        args.model = args.model or save_random_model(f"{folder}/model", args.layers, args.vocabulary, args.hidden)
        if args.peak_of:
            print(json.dumps(peak_of(args.peak_of, args, args.train[0], args.pairs[0], args.tokens[0], folder)))
            return
        memory = ["memory"] if args.memory else []
        ours = [f"{kind} / DPO {what}" for kind in list(KINDS)[1:] for what in ("time", "quartiles", *memory)]
        heads = ["train", "pairs", "tokens", "DPO s", *ours, "tokens/s"]
        print(f"| {' | '.join(heads)} |\n|{'---|' + '---:|' * (len(heads) - 1)}", flush=True)
        for case in itertools.product(args.train, args.pairs, args.tokens):
            print(f"| {' | '.join(row(args, *case, folder))} |", flush=True)


if __name__ == "__main__":
    main()
