"""Cases of the golden files: training runs, a pair log, and preference pairs that are the same in every version.

Everything here uses only the public API and takes models as folders, so that a script can run the same cases with
another checkout of the package. tests/test_goldens.py compares with the recorded values.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from conftest import CPU_ARGUMENTS, make_pairs, save_tiny_model
from datasets import Dataset
from transformers import AutoModelForCausalLM, set_seed

from trl_capo import CAPOConfig, CAPOTrainer

# The large epsilon keeps Adam from turning rounding errors of tiny gradients into whole steps.
OPTIONS = {"max_steps": 10, "learning_rate": 1e-3, "adam_epsilon": 1e-3, "beta": 0.3, "confidence_temperature": 0.7}
OPTIONS |= {"eval_strategy": "steps", "eval_steps": 5, "gradient_checkpointing": False}
REFERENCE = {"noise_rate": "auto", "witness": "reference"}
RATES = {"0": {"noise_rate": 0.0}, "0.2": {"noise_rate": 0.2}, "auto": {"noise_rate": "auto"}, "reference": REFERENCE}
# 480 pairs in steps of 80: one temperature block ends in the first epoch, so that the second recognises pairs.
CASES = {"full": {}, "many_pairs": {"per_device_train_batch_size": 80}}
NOT_COMPARED = ("runtime", "per_second", "total_flos", "epoch")


def make_models(folder: Path) -> list[str]:
    """Save three tiny models of different weights: a policy, its reference, and another one."""
    return [save_tiny_model(folder / name, seed) for seed, name in enumerate(("policy", "reference", "other"))]


def golden_pairs(count: int = 24) -> Dataset:
    """Preference pairs in three languages and two sides; the answers of every other pair are exchanged."""

    def change(row: dict, index: int) -> dict:
        sides = ("rejected", "chosen") if index % 2 else ("chosen", "rejected")
        answers = {"chosen": row[sides[0]], "rejected": row[sides[1]]}
        return answers | {"side": "left" if index % 5 < 2 else "right"}

    return make_pairs(count).map(change, with_indices=True)


def make_trainer(name: str, rate: str, models: list[str], folder: Path) -> CAPOTrainer:
    rows = golden_pairs(480 if name == "many_pairs" else 24)
    options = CPU_ARGUMENTS | OPTIONS | CASES[name] | RATES[rate]
    set_seed(0)
    return CAPOTrainer(
        models[0],
        AutoModelForCausalLM.from_pretrained(models[1], dtype=torch.float32),
        args=CAPOConfig(output_dir=str(folder), **options),
        train_dataset=rows,
        eval_dataset=golden_pairs().select(range(5, 15)),
    )


def trajectory(trainer: CAPOTrainer) -> dict[str, list[float]]:
    """Train, and return everything that was logged but timings: the values of each key in their order."""
    trainer.train()
    found: dict[str, list[float]] = {}
    for entry in trainer.state.log_history:
        for key, value in entry.items():
            if not key.endswith(NOT_COMPARED):
                found.setdefault(key, []).append(value)
    return found


def evaluation_pairs() -> Dataset:
    """60 pairs of three languages with a second column to group by."""
    return golden_pairs(60).map(lambda row: {"length": "long" if len(row["chosen"]) > 10 else "short"})


EVALUATION = {
    "ref_model": "reference",
    "dataset_split": "train",
    "beta": 0.4,
    "seed": 3,
    "dataset_name": "pairs.jsonl",
}
EVALUATION |= {"compare": ["policy", "other"], "also_by": ["length"], "max_length": 64}
"""Options of the evaluation, in a folder that holds the models and the pairs."""

MEASURES = ("relative_reward", "confidence", "scale", "noise_rate", "group_noise_rate")
MEASURES += ("chosen_logps", "rejected_logps", "reference_margin")


def audited_pairs() -> Dataset:
    """240 pairs with known labels; a fifth are wrong, most of them in Swahili."""
    wrong = np.random.default_rng(5).random(240) < np.array([0.05, 0.4, 0.15] * 80)
    return golden_pairs(240).add_column("is_noisy", wrong.tolist())


def write_pair_log(folder: Path, fingerprint: str) -> None:
    """Write the log of three epochs of training on `audited_pairs`, as the package writes it."""
    generator, pairs = np.random.default_rng(6), audited_pairs()
    groups, wrong = np.array(pairs["language"][:]), np.array(pairs["is_noisy"][:])
    folder.mkdir(parents=True)
    info = {"format": 2, "pairs": 240, "fingerprint": fingerprint, "source": None, "asks_reference": False}
    (folder / "log.json").write_text(json.dumps(info))
    ability, first_step = generator.normal(size=240), 1
    for epoch in range(3):
        order = generator.permutation(240)[: 240 - 12 * epoch]
        margin = (np.where(wrong, -1.0, 1.0) * (0.6 + 0.7 * epoch) + 0.8 * ability + generator.normal(size=240))[order]
        steps = first_step + np.arange(len(order)) // 4
        first_step = steps[-1] + 1
        rates = np.array([{"de": 0.08, "sw": 0.36}.get(group, 0.17) for group in groups[order]])
        values = {"relative_reward": margin, "confidence": (1 - rates) / (1 - rates + rates * np.exp(-margin))}
        values |= {"noise_rate": rates, "group_noise_rate": rates, "scale": values["confidence"] / (1 - rates)}
        columns = {
            "step": pa.array(steps, pa.int32()),
            "epoch": pa.array(np.full(len(order), epoch), pa.int16()),
            "pair": pa.array(order, pa.int64()),
            "group": pa.array(groups[order]).dictionary_encode(),
            **{name: pa.array(values.get(name, np.zeros(len(order))), pa.float32()) for name in MEASURES},
        }
        pq.write_table(pa.table(columns), folder / f"steps-{steps[0]:08}-{steps[-1]:08}.parquet")
