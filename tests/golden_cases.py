"""Data of the recorded audit: pairs and a pair log that are the same in every version."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from conftest import make_pairs
from datasets import Dataset

from trl_capo.data.edit import swap_answers

MEASURES = ("relative_reward", "confidence", "scale", "noise_rate", "group_noise_rate")
MEASURES += ("chosen_logps", "rejected_logps", "reference_margin")


def audited_pairs() -> Dataset:
    """240 pairs with known labels, every other one exchanged; a fifth are wrong, most of them in Swahili."""
    rows = swap_answers(make_pairs(240), np.arange(1, 240, 2))
    wrong = np.random.default_rng(5).random(240) < np.array([0.05, 0.4, 0.15] * 80)
    return rows.add_column("is_noisy", wrong.tolist())


def write_pair_log(folder: Path, fingerprint: str) -> None:
    """Write the log of three epochs of training on `audited_pairs`, as the package writes it."""
    generator, pairs = np.random.default_rng(6), audited_pairs()
    groups, wrong = np.array(pairs["language"][:]), np.array(pairs["is_noisy"][:])
    folder.mkdir(parents=True)
    info = {"format": 2, "pairs": 240, "fingerprint": fingerprint, "source": None}
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
