"""Log every pair of every training step to Parquet files, whose columns docs/audit.md describes."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from accelerate.logging import get_logger
from accelerate.utils import gather, pad_across_processes
from datasets import Dataset, IterableDataset

from trl_capo.common.fingerprint import fingerprint
from trl_capo.core.metrics import PairBatch, PairCallback

logger = get_logger(__name__)

FORMAT = 2
INFO = "log.json"
SHARDS = "steps-*.parquet"  # the first and the last step
MEASURES = ("relative_reward", "confidence", "scale", "noise_rate", "group_noise_rate")
MEASURES += ("chosen_logps", "rejected_logps", "reference_margin")
_KEYS = {"step": pa.int32(), "epoch": pa.int16(), "pair": pa.int64(), "group": pa.dictionary(pa.int32(), pa.string())}
SCHEMA = pa.schema(_KEYS | dict.fromkeys(MEASURES, pa.float32()))
BUFFERED_PAIRS = 8192  # rows that wait on each process, about; one takes about 50 bytes of device memory


class LogInfo(NamedTuple):
    """The training data's number of rows and hash, and the options that name them."""

    pairs: int
    fingerprint: str
    source: dict[str, Any] | None = None


class Log(NamedTuple):
    """A folder with shards, named after their steps, and `log.json`, which identifies the training data."""

    folder: Path
    info: LogInfo
    shards: list[Path]

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the rows in the order of their steps."""
        for shard in self.shards:
            yield from pq.ParquetFile(shard).iter_batches(columns=columns)


def read_log(folder: Path) -> Log:
    """Open a log; raise ValueError if the folder holds none, or one without rows or of another version."""
    if not (folder / INFO).is_file():
        raise ValueError(f"{str(folder)!r} is not a pair log: it has no {INFO}.")
    if not (shards := sorted(folder.glob(SHARDS))):
        raise ValueError(f"{str(folder)!r}: the pair log has no rows.")
    info = json.loads((folder / INFO).read_text(encoding="utf-8"))
    if info.pop("format", None) != FORMAT:
        raise ValueError(f"{str(folder / INFO)!r} was written by another version of trl-capo.")
    return Log(folder, LogInfo(*map(info.get, LogInfo._fields)), shards)


class PairLog(PairCallback):
    """Log every pair of every training step, for `trl-capo audit`.

        CAPOTrainer(..., callbacks=[PairLog("logs")])

    `source` are the options that name the data, so that `trl-capo audit` finds them. A resumed run continues the log
    after its checkpoint; one that starts from the beginning replaces it. The first batch raises what `check` does.
    """

    def __init__(self, folder: str | os.PathLike, source: dict[str, Any] | None = None) -> None:
        self.folder, self.source = Path(folder).expanduser(), source
        self._info: LogInfo | None = None

    def check(self, train_dataset: Dataset | IterableDataset) -> None:
        """Raise ValueError for a stream, and for a folder that holds the log of other data."""
        option = f"pair_log={str(self.folder)!r}"
        if isinstance(train_dataset, IterableDataset):
            raise ValueError(f"{option}: the pairs of a stream have no numbers. Load the data without streaming.")
        self._info = LogInfo(len(train_dataset), fingerprint(train_dataset), self.source)
        if any(self.folder.glob(SHARDS)) and read_log(self.folder).info.fingerprint != self._info.fingerprint:
            raise ValueError(f"{option}: the folder holds the log of other data. Name another folder or remove it.")

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self._started, self._waiting = False, []

    def on_pairs(self, args, state, control, batch: PairBatch, train_dataset=None, **kwargs) -> None:
        if not batch.training:
            return
        if not self._started:
            self._start(args, state, train_dataset)
        place = (torch.full_like(batch.pairs, number) for number in (state.global_step + 1, int(state.epoch or 0)))
        numbers = torch.stack([*place, batch.pairs, batch.groups], dim=1)
        values = [batch.rho, batch.confidence, batch.scale, batch.noise_rate, batch.group_noise_rate]
        values += [batch.chosen_logps, batch.rejected_logps, batch.ref_chosen_logps - batch.ref_rejected_logps]
        self._waiting.append((numbers, torch.stack([value.float() for value in values], dim=1)))
        self._group_names = batch.group_names

    def on_step_end(self, args, state, control, **kwargs) -> None:
        full = len(self._waiting) * args.per_device_train_batch_size >= BUFFERED_PAIRS
        if full or control.should_save:  # a log must not lack steps that a checkpoint contains
            self.on_save(args, state, control)

    def _start(self, args, state, train_dataset: Dataset) -> None:
        """Create the log, or cut off the rows after the step from which the run continues."""
        if self._info is None:
            self.check(train_dataset)
        info, self._info, self._started = self._info._asdict(), None, True
        if not PartialState().is_main_process:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        shards = sorted(self.folder.glob(SHARDS), reverse=True)
        if shards and state.global_step == 0:
            logger.warning(f"Replacing the pair log of an earlier run on the same data in {self.folder}.")
        for shard in shards:  # the last one first, so that an interruption leaves no gap
            if int(shard.stem.split("-")[-1]) > state.global_step:
                self._write(pq.read_table(shard, filters=[("step", "<=", state.global_step)]))
                shard.unlink()
        unfinished = self.folder / f"{INFO}.part"  # renamed when complete, because other processes may be reading
        unfinished.write_text(json.dumps(info | {"format": FORMAT}), "utf-8")
        unfinished.replace(self.folder / INFO)

    def on_save(self, args, state, control, **kwargs) -> None:
        """Write the waiting rows of all processes, which call this together."""
        if not self._waiting:
            return
        rows, self._waiting = [torch.cat(parts) for parts in zip(*self._waiting, strict=True)], []
        numbers, values = (gather(pad_across_processes(part, pad_index=-1)).cpu() for part in rows)
        order = numbers[:, 0].argsort(stable=True)
        order = order[numbers[order, 0] > 0]  # not the padding
        if PartialState().is_main_process:
            *columns, group = numbers[order].numpy().T
            indices = pa.array(group, pa.int32(), mask=group < 0)
            groups = pa.DictionaryArray.from_arrays(indices, pa.array(self._group_names, pa.string()))
            self._write(pa.Table.from_arrays([*columns, groups, *values[order].numpy().T], schema=SCHEMA))

    on_train_end = on_save

    def _write(self, rows: pa.Table) -> None:
        """Write a shard, if there are rows, so that it is complete or absent."""
        if len(rows):
            name = "steps-{:08}-{:08}.parquet".format(*(rows["step"][place].as_py() for place in (0, -1)))
            pq.write_table(rows, unfinished := self.folder / f"{name}.part", compression="zstd")
            unfinished.replace(self.folder / name)
