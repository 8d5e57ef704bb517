"""The log of the pairs that a training sees: a folder of Parquet shards, written as it goes and read in small pieces.

A shard holds the rows of some optimiser steps, which its name says, and appears whole or not at all. A training that
goes on from a checkpoint first cuts off what was logged after it, so that no row is there twice. `log.json` says of
what data the pairs are. Rows: docs/audit.md.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from trl_capo.messages import get_logger
from trl_capo.plain import first_few

logger = get_logger(__name__)

FORMAT = 2
INFO = "log.json"
MEASURES = ("relative_reward", "confidence", "scale", "noise_rate", "group_noise_rate")
MEASURES += ("chosen_logps", "rejected_logps", "reference_margin")
SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("epoch", pa.int16()),
        ("pair", pa.int64()),
        ("group", pa.dictionary(pa.int32(), pa.string())),
        *((name, pa.float32()) for name in MEASURES),
    ]
)
_SHARD = re.compile(r"steps-(\d+)-(\d+)\.parquet")
_ANEW = "Without the folder, the log starts anew."
_UNFINISHED = re.compile(rf"({_SHARD.pattern}|{re.escape(INFO)})\.part")


@dataclass(frozen=True)
class LogInfo:
    """What a log is of.

    Parameters:
        pairs: rows of the training data.
        fingerprint: of these, as `fingerprint` gives it.
        source: the options of `trl-capo train` that name the data; None if it was not started by it.
        asks_reference: whether the training asks its reference which labels are likely wrong, or did before it was
            resumed.
    """

    pairs: int
    fingerprint: str
    source: dict[str, Any] | None = None
    asks_reference: bool = False


def fingerprint(rows: Dataset) -> str:
    """A hash of the pairs' texts or messages in their order, the same however they are stored."""
    columns = [name for name in ("prompt", "chosen", "rejected") if name in rows.column_names]
    found = hashlib.sha256()
    for batch in rows.select_columns(columns).with_format(None).iter(1000):
        for row in zip(*map(batch.get, columns), strict=True):
            found.update(json.dumps(row, sort_keys=True, default=repr).encode() + b"\n")
    return found.hexdigest()


class PairLog:
    """A log to be written, by one process; of an earlier one that it replaces or that lacks steps it warns.

    Args:
        folder: of the log; made if there is none.
        info: what it is of.
        step: the optimiser step from which the training goes on; what is logged of later ones is removed.

    Raises:
        ValueError: as `check_folder`.
    """

    def __init__(self, folder: Path, info: LogInfo, step: int = 0) -> None:
        check_folder(folder, info, resuming=step > 0)
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        _tell(folder, step)
        if step > 0 and _shards(folder) and (folder / INFO).is_file():
            info = replace(info, asks_reference=info.asks_reference or _read_info(folder).asks_reference)
        for shard in reversed(_shards(folder)):  # the last first: killed on its way, it leaves no gap
            if _steps(shard)[1] > step:
                _cut(shard, step)
        for path in folder.iterdir():
            if _UNFINISHED.fullmatch(path.name):
                path.unlink()
        unfinished = folder / f"{INFO}.part"
        unfinished.write_text(json.dumps({"format": FORMAT, **asdict(info)}, ensure_ascii=False), encoding="utf-8")
        os.replace(unfinished, folder / INFO)

    def write(self, rows: pa.Table) -> None:
        """Add rows of SCHEMA, of steps after all that are there."""
        if len(rows):
            steps = rows["step"].to_numpy()
            _write_shard(self.folder / f"steps-{steps.min():08}-{steps.max():08}.parquet", rows)


@dataclass(frozen=True)
class Log:
    """A log to be read; its shards are those that were whole when it was opened."""

    folder: Path
    info: LogInfo
    shards: list[Path]

    @property
    def first_step(self) -> int:
        """Of what is logged: later than 1 where logging began with a training that went on from a checkpoint."""
        return _steps(self.shards[0])[0]

    @property
    def gaps(self) -> list[tuple[int, int]]:
        """First and last step of every stretch that is missing between two shards."""
        ends = pairwise(map(_steps, self.shards))
        return [(last + 1, first - 1) for (_, last), (first, _) in ends if first > last + 1]

    def batches(self, columns: Sequence[str] | None = None, rows: int = 65536) -> Iterator[pa.RecordBatch]:
        """The rows in the order of their steps, at most so many at a time.

        Raises:
            ValueError: a shard is damaged within, which opening it does not show.
        """
        for shard in self.shards:
            try:
                with pq.ParquetFile(shard) as file:
                    yield from file.iter_batches(rows, columns=columns)
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{str(shard)!r} is damaged ({str(error).strip()}).") from error


def read_log(folder: Path) -> Log:
    """The log in the folder.

    Raises:
        ValueError: there is none, or a file of it is damaged.
    """
    if not (folder / INFO).is_file():
        raise ValueError(f"{str(folder)!r} is not a pair log: it has no {INFO}.")
    log = Log(folder, _read_info(folder), _apart(_shards(folder)))
    _refuse_damaged(log.shards)
    if not log.shards:
        raise ValueError(f"{str(folder)!r}: the pair log is empty: its training ended before it had written any rows.")
    return log


def check_folder(folder: Path, info: LogInfo, *, resuming: bool) -> None:
    """Refuse to write into a folder with other files or the log of other pairs, or to go on with one that is damaged.

    Raises:
        ValueError: the message is for the user.
    """
    names = sorted(path.name for path in folder.glob("*"))
    others = [name for name in names if name != INFO and not (_SHARD.fullmatch(name) or _UNFINISHED.fullmatch(name))]
    if others:
        raise ValueError(
            f"pair_log={str(folder)!r}: the folder holds something else ({first_few(others)}). Give another one."
        )
    shards = _shards(folder)
    if resuming:
        _refuse_damaged(shards)
    if shards and (folder / INFO).is_file() and _read_info(folder).fingerprint != info.fingerprint:
        raise ValueError(
            f"pair_log={str(folder)!r}: the folder holds the log of a training on other pairs. Train on the same "
            "data, give another folder, or remove that one."
        )


def _tell(folder: Path, step: int) -> None:
    """Warn of what a training that starts (step 0), or goes on from a step, replaces in a log or finds missing."""
    shards = _shards(folder)
    last = _steps(shards[-1])[1] if shards else 0
    if shards and step == 0:
        logger.warning(f"pair_log={str(folder)!r}: replacing the log of an earlier training on the same pairs.")
    elif last < step:
        logger.warning(
            f"pair_log={str(folder)!r}: the training goes on from step {step:,}, and the log ends with step {last:,}. "
            "What an audit says will be without the steps between."
        )


def _read_info(folder: Path) -> LogInfo:
    try:
        content = json.loads((folder / INFO).read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise ValueError("it was written by another version")
        info = LogInfo(**content)
        names = map(dict(info.source or {}).get, ("dataset_name", "dataset_config", "dataset_train_split"))
        found = [type(value) for value in (info.pairs, info.asks_reference, info.fingerprint, *names)]
        if found[:2] != [int, bool] or set(found[2:]) - {str, type(None)}:
            raise TypeError("a value is of another type")
        return info
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ValueError(f"{str(folder / INFO)!r} cannot be read ({error}). {_ANEW}") from error


def _refuse_damaged(shards: list[Path]) -> None:
    for shard in shards:
        try:
            if not pq.read_schema(shard).equals(SCHEMA):
                raise ValueError("it has other columns")
        except (ValueError, OSError) as error:
            raise ValueError(f"{str(shard)!r} is damaged, or no shard of a pair log ({error}). {_ANEW}") from error


def _apart(shards: list[Path]) -> list[Path]:
    """Those that share no step with an earlier one: who was killed while cutting left both the part and the whole."""
    kept: list[Path] = []
    for shard in shards:
        if not kept or _steps(shard)[0] > _steps(kept[-1])[1]:
            kept.append(shard)
    return kept


def _shards(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("*.parquet") if _SHARD.fullmatch(path.name)), key=_steps)


def _steps(shard: Path) -> tuple[int, int]:
    """The first and the last step in it."""
    return tuple(map(int, _SHARD.fullmatch(shard.name).groups()))


def _cut(shard: Path, step: int) -> None:
    """Remove what is later than the step from a shard, and the shard if nothing is left."""
    first, _ = _steps(shard)
    if first <= step:
        kept = pq.read_table(shard, filters=[("step", "<=", step)])
        _write_shard(shard.with_name(f"steps-{first:08}-{step:08}.parquet"), kept)
    shard.unlink()


def _write_shard(path: Path, rows: pa.Table) -> None:
    unfinished = path.with_name(f"{path.name}.part")
    pq.write_table(rows, unfinished, compression="zstd")
    os.replace(unfinished, path)
