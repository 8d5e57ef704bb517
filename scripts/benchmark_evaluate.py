"""Pairs per second of `trl-capo evaluate` against TRL's `DPOTrainer.evaluate`, interleaved in one run.

    python scripts/benchmark_evaluate.py --adapter demo/output [--dataset demo/data] [--pairs 96] [--rounds 3]

Both score the same pairs with the same LoRA model, its base as the reference, the same batch size and length limit;
the one that goes first changes from round to round. Loading and tokenising are left out on both sides.
"""

import argparse
import statistics
import tempfile
import time

import torch
from accelerate import PartialState
from datasets import load_dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from trl_capo.evaluate import EvaluateArguments
from trl_capo.loading import load_model
from trl_capo.models import find_model
from trl_capo.scoring import completion_log_probs, tokenise_all


def dpo_evaluation(args: argparse.Namespace, dataset, base: str, folder: str):
    gpu = torch.cuda.is_available()
    config = DPOConfig(
        folder,
        per_device_eval_batch_size=args.batch_size,
        max_length=args.max_length,
        use_cpu=not gpu,
        bf16=gpu,
        report_to="none",
        disable_tqdm=True,
    )
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), args.adapter)
    trainer = DPOTrainer(
        model,
        args=config,
        train_dataset=dataset.select(range(2)),
        eval_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(base),
    )
    return trainer.evaluate


def capo_evaluation(args: argparse.Namespace, dataset):
    options = EvaluateArguments(model_name_or_path=args.adapter)
    source = find_model(options, args.adapter)
    model = load_model(options, source)
    pairs = tokenise_all(dataset, source.tokenizer, args.max_length, source.name)
    pairs = [pair for pair in pairs if pair is not None]
    options = {"batch_size": args.batch_size, "max_length": args.max_length, "accelerator": PartialState()}

    def evaluate() -> None:
        completion_log_probs(model, pairs, **options)
        with model.disable_adapter():
            completion_log_probs(model, pairs, **options)

    return evaluate, source.base, len(pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapter", default="demo/output")
    parser.add_argument("--dataset", default="demo/data")
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--max_length", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    dataset = load_dataset(args.dataset, split="test").select(range(args.pairs))
    ours, base, count = capo_evaluation(args, dataset)
    with tempfile.TemporaryDirectory() as folder:
        sides = {"trl-capo evaluate": ours, "DPOTrainer.evaluate": dpo_evaluation(args, dataset, base, folder)}
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for round_ in range(args.rounds):
            for name in list(sides)[:: 1 if round_ % 2 else -1]:
                start = time.perf_counter()
                sides[name]()
                rates[name].append(count / (time.perf_counter() - start))
    medians = [statistics.median(values) for values in rates.values()]
    for name, values in rates.items():
        print(f"{name}: {', '.join(f'{value:.2f}' for value in values)} pairs/s")
    print(f"ratio of the medians: {medians[0] / medians[1]:.2f}")


if __name__ == "__main__":
    main()
