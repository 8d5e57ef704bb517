"""Pair logs with known content."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from trl_capo.audit.mislabels import Dynamics, read_dynamics
from trl_capo.callbacks.pair_log import FORMAT, INFO, SCHEMA, Log, read_log
from trl_capo.common.fingerprint import fingerprint

ODD = ["=1+1", 'a,b\n"c"', "مرحبا بك", "日本\u2028語", "\x07bell\x00", "<script>alert(1)</script>", "| a | *b* | `c`"]


def row(pair: int, epoch: int, margin: float, **values: Any) -> dict[str, Any]:
    """A row of a log, in which the confidence is the sigmoid of the margin."""
    usual = {"relative_reward": margin, "confidence": 1 / (1 + np.exp(-margin)), "reference_margin": 0.0}
    return {"pair": pair, "epoch": epoch, "noise_rate": 0.2, "group_noise_rate": 0.2} | usual | values


def make_log(folder: Path, rows: list[dict], total: int, shard: int = 50, fingerprint="?", source=None, **info) -> Log:
    """Write a log with one step per row and `shard` rows per file."""
    folder.mkdir(parents=True)
    for start in range(0, len(rows), shard):
        part = [{"step": start + place + 1} | line for place, line in enumerate(rows[start : start + shard])]
        name = f"steps-{part[0]['step']:08}-{part[-1]['step']:08}.parquet"
        pq.write_table(pa.Table.from_pylist(part, SCHEMA), folder / name)
    info |= {"format": FORMAT, "pairs": total, "fingerprint": fingerprint, "source": source}
    (folder / INFO).write_text(json.dumps(info))
    return read_log(folder)


def odd_pairs(folder: Path, size: int = 90, names=("de", "sw", "日本")) -> tuple[Dynamics, Dataset, np.ndarray]:
    """Three passes of pairs with odd texts, a quarter of them mislabelled; pair 0 was never seen."""
    generator = np.random.default_rng(0)
    wrong = generator.random(size) < 0.25
    margins = np.where(wrong, -3.0, 3.0) + generator.normal(size=size)
    texts = {name: [ODD[(i + place) % 7] for i in range(size)] for place, name in enumerate(("prompt", "rejected"))}
    texts["chosen"] = [f"{ODD[(i + 2) % 7]} {i}" for i in range(size)]
    data = Dataset.from_dict(texts | {"id": list(range(size)), "is_noisy": wrong})
    rows = [
        row(pair, epoch, (1 + epoch) * margins[pair], group=names[pair % 3], group_noise_rate=0.2 + pair / 1000)
        for epoch in range(3)
        for pair in range(1, size)
    ]
    return read_dynamics(make_log(folder, rows, size, fingerprint=fingerprint(data))), data, wrong
