"""Pair logs with known content, for the tests of the audit."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from trl_capo.pair_log import SCHEMA, Log, LogInfo, PairLog, read_log


def make_log(
    folder: Path,
    rows: list[dict[str, Any]],
    total: int,
    shard: int = 50,
    fingerprint: str = "?",
    source=None,
    **info: Any,
) -> Log:
    """A log of rows, in shards of so many; a row has pair, epoch and what else it needs."""
    log = PairLog(folder, LogInfo(total, fingerprint, source, **info))
    for start in range(0, len(rows), shard):
        part = [{"step": start + place + 1} | row for place, row in enumerate(rows[start : start + shard])]
        log.write(pa.Table.from_pylist(part, SCHEMA))
    return read_log(folder)


def row(pair: int, epoch: int, margin: float, **values: Any) -> dict[str, Any]:
    """A row of a log, in which the confidence is the sigmoid of the margin."""
    usual = {"relative_reward": margin, "confidence": 1 / (1 + np.exp(-margin)), "reference_margin": 0.0}
    return {"pair": pair, "epoch": epoch, "noise_rate": 0.2, "group_noise_rate": 0.2} | usual | values


def two_kinds(generator: np.random.Generator, pairs: int, rate: float, apart: float = 3.0):
    """(pairs,) margins around -apart where the label is wrong and +apart where not, and (pairs,) which are."""
    wrong = generator.random(pairs) < rate
    return np.where(wrong, -apart, apart) + generator.normal(size=pairs), wrong
