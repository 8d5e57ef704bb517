"""What a training does for its pair log: rows wait on the device, and now and then all processes' go to a shard."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate import PartialState
from accelerate.utils import gather, pad_across_processes
from datasets import Dataset, IterableDataset
from torch import Tensor
from transformers import TrainerCallback

from trl_capo.config import CAPOConfig
from trl_capo.pair_log import SCHEMA, LogInfo, PairLog, check_folder, fingerprint
from trl_capo.pairs import PairIndex
from trl_capo.paths import output_folder

BUFFERED_PAIRS = 8192
"""Rows that wait on every process, about; each takes 48 bytes of the device."""
FIRST_STEPS = 8
"""Steps that wait at first; then each time twice as many, so that one that ends early leaves most of its log."""


class PairLogger(TrainerCallback):
    """Logs every pair of every training step; the log in the folder ends where the training stands at a checkpoint.

    Args:
        folder: of the log.
        info: what it is of.
        index: knows the groups' labels.
    """

    def __init__(self, folder: Path, info: LogInfo, index: PairIndex) -> None:
        self.folder, self.info, self.index = folder, info, index
        self.source: dict[str, Any] | None = None  # as LogInfo's, for whoever knows it to say
        self._log: PairLog | None = None  # of the main process
        self._forget()

    def _forget(self) -> None:
        self._times: list[tuple[int, int, int]] = []  # step, epoch and number of pairs of every micro-batch
        self._numbers: list[Tensor] = []
        self._values: list[Tensor] = []
        self._steps = 0

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self._forget()
        per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps
        self._most_steps = math.ceil(BUFFERED_PAIRS / per_step)  # the same on all processes
        self._waiting_steps = FIRST_STEPS
        if PartialState().is_main_process:
            self._log = PairLog(self.folder, replace(self.info, source=self.source), state.global_step)

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self._now = (state.global_step + 1, math.floor(state.epoch or 0.0))

    def add(self, pairs: Tensor, groups: Tensor, values: tuple[Tensor | float, ...]) -> None:
        """Add a micro-batch of a training step: (B,) pair numbers and groups, and (B,) values, or one, of MEASURES."""
        self._times.append((*self._now, len(pairs)))
        self._numbers.append(torch.stack([pairs, groups], dim=1))
        first = values[0].detach().float()  # a tensor; numbers are filled in, as the device would wait for copies
        columns = [v.detach().float() if isinstance(v, Tensor) else torch.full_like(first, v) for v in values]
        self._values.append(torch.stack(columns, dim=1))

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self._steps += 1
        if self._steps >= min(self._waiting_steps, self._most_steps):
            self._waiting_steps *= 2
            self.flush()

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.flush()

    def flush(self) -> None:
        """Write what waits; all processes call it together."""
        if not self._steps:
            return
        numbers, values = torch.cat(self._numbers), torch.cat(self._values)
        times = torch.tensor(self._times)
        times = times[:, :2].repeat_interleave(times[:, 2], dim=0).to(numbers.device)
        rows = (torch.cat([times, numbers], dim=1), values)
        self._forget()
        numbers, values = (gather(pad_across_processes(part, pad_index=-1)).cpu() for part in rows)
        if self._log is not None:
            kept = numbers[:, 0].argsort(stable=True)
            kept = kept[numbers[kept, 0] > 0]
            self._log.write(_table(numbers[kept].numpy(), values[kept].numpy(), self.index.labels))


def pair_log_folder(args: CAPOConfig) -> Path | None:
    """Where the pairs are logged; None if they are not.

    Raises:
        ValueError: it could not be written into.
    """
    if not args.pair_log:
        return None
    folder = output_folder(Path(args.output_dir, "pair_log") if args.pair_log is True else args.pair_log, "pair_log")
    if folder.absolute() == Path(args.output_dir).expanduser().absolute():
        raise ValueError(
            f"pair_log={args.pair_log!r} is output_dir, where other files go. Give another folder, or true for the "
            "folder 'pair_log' in it."
        )
    return folder


def check_pair_log(args: CAPOConfig, pairs: Dataset | IterableDataset | None) -> tuple[Path, LogInfo] | None:
    """Where a training on the pairs is logged, and what the log is of; None if it is not logged.

    Raises:
        ValueError: they are a stream, or the folder cannot be used or holds the log of other pairs.
    """
    folder = pair_log_folder(args)
    if folder is None or pairs is None:
        return None
    if isinstance(pairs, IterableDataset):
        raise ValueError(f"pair_log={args.pair_log!r}: the rows of a stream have no numbers to log. Leave it out.")
    info = LogInfo(len(pairs), fingerprint(pairs), asks_reference=args.asks_reference)
    check_folder(folder, info, resuming=bool(args.resume_from_checkpoint))
    return folder, info


def make_pair_logger(args: CAPOConfig, pairs: Dataset | IterableDataset | None, index: PairIndex) -> PairLogger | None:
    """What logs a training on the pairs, if it is asked for; raises as `check_pair_log`."""
    found = check_pair_log(args, pairs)
    return None if found is None else PairLogger(*found, index)


def _table(numbers: np.ndarray, values: np.ndarray, labels: list[str]) -> pa.Table:
    """Rows of SCHEMA from (N, 4) steps, epochs, pairs and groups, and (N, MEASURES) values."""
    step, epoch, pair, group = numbers.T
    named = pa.DictionaryArray.from_arrays(pa.array(group, pa.int32(), mask=group < 0), pa.array(labels, pa.string()))
    columns = [pa.array(step, pa.int32()), pa.array(epoch, pa.int16()), pa.array(pair), named]
    return pa.Table.from_arrays([*columns, *(pa.array(column) for column in values.T)], schema=SCHEMA)
