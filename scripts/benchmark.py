"""What CAPO costs over DPO: time of a training step, tokens per second and peak memory, interleaved in one run.

    python scripts/benchmark.py [--model FOLDER] [--train full lora qlora] [--pairs 8] [--tokens 128 512] [--steps 20]
                                [--languages 12] [--layers 6] [--vocabulary 32000] [--memory] [--rounds 3]
    python scripts/benchmark.py --estimate

Without a model it takes a small random Llama, of so many layers and words. A line for every way to train, number of
pairs and number of tokens: both trainers get the same batches in turn, first one and then the other leading, so that
what else the machine does hits both. A step is forward, loss, backward and optimiser step; its time is the median.
Every sequence has exactly `--tokens` tokens, half of them the prompt's. With `--languages` CAPO estimates and reports
a rate for each, without it one for all. `--memory` adds the peak of processes of their own, `--rounds` of one per
trainer: of the GPU's allocator, or on a CPU (Linux) the resident set. Ratios are CAPO over DPO. `--estimate` times the
estimate of the noise rates alone, which does not depend on the model.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time

import torch
from accelerate import Accelerator
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, logging
from transformers.trainer_callback import PrinterCallback
from trl import DPOConfig, DPOTrainer

from trl_capo import CAPOConfig, CAPOTrainer
from trl_capo.memory import peak_memory
from trl_capo.noise_rate import NoiseRateEstimate

KINDS = {"dpo": (DPOTrainer, DPOConfig), "capo": (CAPOTrainer, CAPOConfig)}
GPU = torch.cuda.is_available()
LAYERS, VOCABULARY = 6, 32_000


def save_random_model(folder: str, layers: int = LAYERS, vocabulary: int = VOCABULARY) -> str:
    words = {"<pad>": 0, "<end>": 1} | {f"w{index}": index for index in range(2, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w2"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>").save_pretrained(folder)
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": layers, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **sizes, max_position_embeddings=8192)).save_pretrained(folder)
    return folder


def make_rows(args: argparse.Namespace, pairs: int, tokens: int) -> Dataset:
    """Four batches of pairs whose sequences have `tokens` tokens; TRL ends an answer with one of its own."""

    def text(start: int, count: int) -> str:
        return " ".join(f"w{2 + (start + 7 * k) % 997}" for k in range(count))

    prompt, answer = tokens - tokens // 2, tokens // 2 - 1
    rows = [
        {
            "prompt": text(row, prompt),
            "chosen": " " + text(3 * row + 1, answer),
            "rejected": " " + text(5 * row + 2, answer),
            "language": f"language {row % max(1, args.languages)}",
        }
        for row in range(4 * pairs)
    ]
    return Dataset.from_list(rows)


def make_trainer(kind: str, args: argparse.Namespace, how: str, pairs: int, tokens: int, folder: str) -> DPOTrainer:
    cls, config = KINDS[kind]
    own = {"group_column": "language" if args.languages else None} if kind == "capo" else {}
    training = config(
        folder,
        per_device_train_batch_size=pairs,
        max_length=None,
        use_cpu=not GPU,
        bf16=GPU,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        logging_steps=10_000,
        save_strategy="no",
        max_steps=1,
        **own,
    )
    options = {"peft_config": None if how == "full" else LoraConfig(r=16, target_modules="all-linear")}
    if how == "qlora":
        dtype = torch.bfloat16 if GPU else torch.float32
        options["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype)
    trainer = cls(args.model, args=training, train_dataset=make_rows(args, pairs, tokens), **options)
    trainer.remove_callback(PrinterCallback)
    return trainer


def step(trainer: DPOTrainer, batch: dict) -> float:
    if GPU:
        torch.cuda.synchronize()
    start = time.perf_counter()
    trainer.training_step(trainer.model_wrapped, dict(batch))
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure_time(args: argparse.Namespace, *case) -> dict[str, list[float]]:
    trainers = {kind: make_trainer(kind, args, *case) for kind in KINDS}
    for trainer in trainers.values():
        trainer.train()  # one step: prepares the model and the optimiser
        trainer.model.train()
    batches = list(trainers["dpo"].get_train_dataloader())
    assert batches[0]["input_ids"].shape == (2 * case[1], case[2]), batches[0]["input_ids"].shape
    numbered = list(trainers["capo"].get_train_dataloader())
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for index in range(args.steps + 2):
        for kind in KINDS if index % 2 else reversed(KINDS):
            batch = (batches if kind == "dpo" else numbered)[index % len(batches)]
            seconds = step(trainers[kind], batch)
            if index >= 2:
                times[kind].append(seconds)
    return times


def measure_memory(args: argparse.Namespace, how: str, pairs: int, tokens: int) -> dict[str, float]:
    """Medians in MiB of several processes each."""
    case = ["--train", how, "--pairs", str(pairs), "--tokens", str(tokens), "--model", args.model]
    command = [sys.executable, __file__, *case, "--languages", str(args.languages), "--peak_of"]
    peaks = {kind: [] for kind in KINDS}
    for _ in range(args.rounds):
        for kind, values in peaks.items():
            done = subprocess.run([*command, kind], check=True, capture_output=True, text=True)
            values.append(json.loads(done.stdout.strip().splitlines()[-1]))
    return {kind: statistics.median(values) for kind, values in peaks.items()}


def peak_of(kind: str, *case) -> float:
    trainer = make_trainer(kind, *case)
    trainer.args.max_steps = 3
    trainer.train()
    return peak_memory() / 2**20


def print_estimate() -> None:
    """Milliseconds a step, of pairs met for the first time, by pairs a step and number of languages."""
    accelerator, device = Accelerator(), torch.device("cuda" if GPU else "cpu")
    print("| languages | pairs | ms a step |\n|---:|---:|---:|")
    for languages, pairs in itertools.product((1, 12, 60), (8, 64)):
        estimate, labels, times = NoiseRateEstimate(), [f"language {index}" for index in range(languages)], []
        estimate.make_room(100 * pairs, device)
        for start in range(0, 100 * pairs, pairs):
            rho, numbers = torch.randn(pairs, device=device), torch.arange(start, start + pairs, device=device)
            margin = torch.randn(pairs, device=device)
            begun = time.perf_counter()
            estimate.own_rates(numbers % languages, labels, numbers, margin)
            estimate.add(rho, numbers % languages, labels, numbers, margin)
            estimate.end_step(accelerator)
            if GPU:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begun)
        print(f"| {languages} | {pairs} | {1000 * statistics.median(times):.2f} |")


def row(args: argparse.Namespace, how: str, pairs: int, tokens: int, folder: str) -> list[str]:
    times = measure_time(args, how, pairs, tokens, folder)
    medians = {kind: statistics.median(values) for kind, values in times.items()}
    ratios = statistics.quantiles(capo / dpo for dpo, capo in zip(times["dpo"], times["capo"], strict=True))
    speed = 2 * pairs * tokens / medians["capo"]
    cells = [how, f"{pairs}", f"{tokens:,}", f"{medians['dpo']:.4f}", f"{medians['capo']:.4f}", f"{speed:,.0f}"]
    cells += [f"{medians['capo'] / medians['dpo']:.3f}", f"{ratios[0]:.3f} to {ratios[2]:.3f}"]
    if args.memory:
        memory = measure_memory(args, how, pairs, tokens)
        cells += [f"{memory['dpo']:,.0f}", f"{memory['capo'] / memory['dpo']:.4f}"]
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder of a model with its tokenizer; a small random Llama without it")
    parser.add_argument("--train", nargs="+", choices=["full", "lora", "qlora"], default=["full", "lora"])
    parser.add_argument("--pairs", nargs="+", type=int, default=[8], help="per batch")
    parser.add_argument("--tokens", nargs="+", type=int, default=[128], help="of every sequence")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--languages", type=int, default=0)
    parser.add_argument("--layers", type=int, default=LAYERS, help="of the random model")
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY, help="of the random model, 1,000 or more")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--rounds", type=int, default=3, help="of processes that measure memory")
    parser.add_argument("--estimate", action="store_true", help="time the estimate of the noise rates alone")
    parser.add_argument("--peak_of", choices=KINDS, help=argparse.SUPPRESS)  # one process measures itself
    args = parser.parse_args()
    logging.set_verbosity_error()
    if args.estimate:
        print_estimate()
        return
    with tempfile.TemporaryDirectory() as folder:
        args.model = args.model or save_random_model(f"{folder}/model", args.layers, args.vocabulary)
        if args.peak_of:
            print(json.dumps(peak_of(args.peak_of, args, args.train[0], args.pairs[0], args.tokens[0], folder)))
            return
        heads = ["train", "pairs", "tokens", "DPO s", "CAPO s", "tokens/s", "time ratio", "quartiles"]
        heads += ["DPO MiB", "memory ratio"] if args.memory else []
        print(f"| {' | '.join(heads)} |\n|{'---|' + '---:|' * (len(heads) - 1)}", flush=True)
        for how, pairs, tokens in itertools.product(args.train, args.pairs, args.tokens):
            print(f"| {' | '.join(row(args, how, pairs, tokens, folder))} |", flush=True)


if __name__ == "__main__":
    main()
