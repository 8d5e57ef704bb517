"""Compare the speed of `trl-capo evaluate` with that of `DPOTrainer.evaluate` on the demo's test pairs.

    python scripts/benchmark_evaluate.py [--adapter demo/output] [--dataset demo/data] [--pairs 96] [--rounds 5]

Both score the same pairs with the adapter and its base, with the same batch size, and take turns at going first.
"""

import argparse
import statistics
import tempfile
import timeit

from datasets import load_dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

from trl_capo.data.tokenise import tokenise_all
from trl_capo.scoring.models import answer_log_probs, load_model, resolve_model

BATCH_SIZE, MAX_LENGTH = 8, 96


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapter", default="demo/output")
    parser.add_argument("--dataset", default="demo/data")
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    data, source = load_dataset(args.dataset, split="test").select(range(args.pairs)), resolve_model(args.adapter, "")
    model = load_model(source, "float32", False, False)
    pairs = [pair for pair in tokenise_all(data, source.tokenizer, MAX_LENGTH, "test") if pair]

    def ours() -> None:
        answer_log_probs(model, pairs, BATCH_SIZE, MAX_LENGTH, "the adapter")
        with model.disable_adapter():
            answer_log_probs(model, pairs, BATCH_SIZE, MAX_LENGTH, "its base")

    with tempfile.TemporaryDirectory() as folder:
        options = {"per_device_eval_batch_size": BATCH_SIZE, "max_length": MAX_LENGTH, "use_cpu": True, "bf16": False}
        policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(source.base), args.adapter)
        config, tokenizer = DPOConfig(folder, report_to="none", disable_tqdm=True, **options), source.tokenizer
        trainer = DPOTrainer(policy, None, config, None, data.select(range(2)), data, tokenizer)
        sides, seconds = [ours, trainer.evaluate], []
        for turn in range(args.rounds):
            durations = {side: timeit.timeit(side, number=1) for side in sides[:: 1 if turn % 2 else -1]}
            seconds.append([durations[side] for side in sides])
    ratios = sorted(theirs / own for own, theirs in seconds)
    print(f"{len(pairs) / statistics.median(own for own, _ in seconds):.1f} pairs/s with trl-capo evaluate,", end=" ")
    print(f"{statistics.median(ratios):.2f} times DPOTrainer.evaluate ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
