"""How far the estimate of trl_capo.memory is from the memory that real trainings take, on a CPU.

    python scripts/benchmark_memory.py

Each way to train is a process of its own: a random Llama, two optimiser steps of CAPO in float32 with two
micro-batches each, so that gradients are there while activations are. Measured is the highest resident set less the
one before the model was loaded, after a first training of a tiny model. All sequences have the full length, as the
estimate assumes.
"""

import argparse
import json
import subprocess
import sys
import tempfile

import psutil
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trl_capo import CAPOConfig, CAPOTrainer
from trl_capo.memory import Setting, estimate, model_shape, peak_memory

TOKENS = 128
SIZES = {"hidden_size": 384, "head_dim": 64, "intermediate_size": 1024, "num_hidden_layers": 8}
SIZES |= {"num_attention_heads": 8}
SMALL = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
LARGE = {"vocab_size": 65536, "tie_word_embeddings": True}
DEEP = {"vocab_size": 4096, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 16}
CASES = {
    "full": (LARGE, {"precompute_ref_log_probs": True}),
    "full, reference kept": (LARGE, {}),
    "full, deep": (DEEP, {}),
    "full, deep, activations kept": (DEEP, {"gradient_checkpointing": False}),
    "LoRA, deep": (DEEP, {"lora": True}),
    "LoRA, deep, activations kept": (DEEP, {"lora": True, "gradient_checkpointing": False}),
}
PAIRS = 4


def train(config: LlamaConfig, folder: str, lora: LoraConfig | None, **options) -> CAPOConfig:
    """Train a random model of that config; returns the arguments."""
    words = {"<pad>": 0, "<eos>": 1, "a": 2, "b": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    answer = {word: " ".join([""] + [word] * (TOKENS - 2)) + " <eos>" for word in "ab"}
    rows = [{"prompt": "a", "chosen": answer["a"], "rejected": answer["b"]}] * (2 * PAIRS)
    args = CAPOConfig(
        folder,
        per_device_train_batch_size=PAIRS,
        gradient_accumulation_steps=2,
        max_steps=2,
        max_length=TOKENS,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        **options,
    )
    data = Dataset.from_list(rows)
    CAPOTrainer(folder, args=args, train_dataset=data, processing_class=tokenizer, peft_config=lora).train()
    return args


def run(case: str, folder: str) -> tuple[int, int, int]:
    """Parameters, estimated bytes and measured bytes."""
    sizes, options = CASES[case]
    options = dict(options)
    lora = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM") if options.pop("lora", False) else None
    for own in (SMALL, sizes):  # the first time, what libraries take for themselves, which is not the model's
        config = LlamaConfig(**SIZES | own, num_key_value_heads=2, architectures=["LlamaForCausalLM"])
        LlamaForCausalLM(config).save_pretrained(folder)
        before = psutil.Process().memory_info().rss
        args = train(config, folder, lora, **options)
    measured = peak_memory() - before
    reference = lora is None and not args.precompute_ref_log_probs
    checkpointing = args.gradient_checkpointing
    setting = Setting(PAIRS, TOKENS, 4, 4, checkpointing=checkpointing, reference=reference, gpu=False)
    shape = model_shape(config, lora)
    return shape.parameters, sum(estimate(shape, setting).values()), measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)  # one process measures itself
    args = parser.parse_args()
    if args.case:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(run(args.case, folder)))
        return
    print("| training | parameters | estimated, MiB | measured, MiB | ratio |\n|---|---:|---:|---:|---:|")
    for case in CASES:
        done = subprocess.run([sys.executable, __file__, "--case", case], check=True, capture_output=True, text=True)
        parameters, estimated, measured = json.loads(done.stdout.strip().splitlines()[-1])
        ratio = estimated / measured
        print(f"| {case} | {parameters:,} | {estimated / 2**20:,.0f} | {measured / 2**20:,.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
