"""What the pair log costs: time a pair and bytes a pair of a simulated training, beside a real training step.

    python scripts/benchmark_pair_log.py [--pairs 1000000] [--batch 8] [--steps 20]

The simulated training hands so many pairs, in batches of a step each, with random values and 12 groups, to what
CAPOTrainer hands them to; three passes are three epochs of a third of them. The real step is scripts/benchmark.py's:
a random Llama of 6 layers with 32,000 words, all weights trained, so many pairs of 64 tokens. A model of a useful size
takes longer for a pair, so the share that logging has of its steps is smaller.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from benchmark import make_trainer, save_random_model, step
from datasets import Dataset
from transformers import TrainerState, logging

from trl_capo import CAPOConfig
from trl_capo.pair_log import LogInfo, read_log
from trl_capo.pair_logger import PairLogger
from trl_capo.pairs import PairIndex

EPOCHS, GROUPS = 3, 12


def simulate(folder: Path, pairs: int, batch: int) -> float:
    """Seconds a pair that logging takes."""
    index = PairIndex("language")
    index.number(Dataset.from_dict({"language": [f"l{row}" for row in range(GROUPS)]}), "pairs", evaluated=False)
    args = CAPOConfig(str(folder), per_device_train_batch_size=batch, use_cpu=True, bf16=False, report_to="none")
    logger, state = PairLogger(folder / "log", LogInfo(pairs // EPOCHS, ""), index), TrainerState()
    order, spent = torch.cat([torch.randperm(pairs // EPOCHS) for _ in range(EPOCHS + 1)])[:pairs], 0.0
    logger.on_train_begin(args, state, None)
    for numbers in order.split(batch):
        values = tuple(torch.randn(8, len(numbers)))
        state.epoch = state.global_step * batch * EPOCHS / pairs
        begun = time.perf_counter()
        logger.on_step_begin(args, state, None)
        logger.add(numbers, numbers % GROUPS, values)
        state.global_step += 1
        logger.on_step_end(args, state, None)
        spent += time.perf_counter() - begun
    begun = time.perf_counter()
    logger.on_train_end(args, state, None)
    return (spent + time.perf_counter() - begun) / pairs


def real_step(folder: Path, batch: int, steps: int) -> float:
    """Seconds a pair that training takes."""
    args = argparse.Namespace(model=save_random_model(str(folder / "model")), languages=GROUPS)
    trainer = make_trainer("capo", args, "full", batch, 64, str(folder / "run"))
    trainer.train()
    trainer.model.train()
    batches = list(trainer.get_train_dataloader())
    times = [step(trainer, batches[index % len(batches)]) for index in range(steps + 2)]
    return statistics.median(times[2:]) / batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=8, help="pairs a step")
    parser.add_argument("--steps", type=int, default=20, help="of the real training")
    args = parser.parse_args()
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        logged = simulate(Path(folder), args.pairs, args.batch)
        log = read_log(Path(folder, "log"))
        size = sum(shard.stat().st_size for shard in log.shards)
        begun = time.perf_counter()
        rows = sum(len(batch) for batch in log.batches())
        reading = time.perf_counter() - begun
        trained = real_step(Path(folder), args.batch, args.steps)
    assert rows == args.pairs
    print(f"logging: {1e6 * logged:.1f} us a pair; training: {1e6 * trained:,.0f} us a pair; {logged / trained:.4%}")
    print(f"file: {size / rows:.1f} bytes a pair, {size / 1e6:.1f} MB in {len(log.shards)} shards, {rows:,} rows")
    print(f"reading all of it: {reading:.2f} s")


if __name__ == "__main__":
    main()
