"""The identity of preference pairs on their way through a training: a number for each, and from it the group.

Every data set of a trainer gets a column of pair numbers, which survive mapping, filtering, shuffling and sharding and
reach each batch as one integer per pair. Numbers are unique over all data sets of the trainer, so that one table gives
each pair's group. A stream has no table: its pairs carry their group's label instead, and new labels are numbered as
they appear, in the same order on all processes. Where a stream is evaluated, its pairs have numbers too, by their
place, so that those that fill up a last batch are known. A column `weight` takes the same way into the batch.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from torch import Tensor
from torch.utils.data import get_worker_info

from trl_capo.groups import column_names, find_groups, group_label, resolve_group_column
from trl_capo.messages import get_logger
from trl_capo.weights import WEIGHT, check_as_read

logger = get_logger(__name__)

PAIR = "capo_pair"
LABEL = "capo_group"
COLUMNS = (PAIR, LABEL, WEIGHT)
"""What a batch has for CAPO alone; neither the model nor DPOTrainer must see it."""


class PairColumns(NamedTuple):
    """Of a batch: (B,) pair numbers, the B labels of a stream's pairs, and (B,) weights; None for what it has not."""

    pairs: Tensor | None
    labels: list[str | None] | None
    weights: Tensor | None


def split_batch(batch: Mapping[str, Any]) -> tuple[PairColumns, dict[str, Any]]:
    """The columns that are CAPO's alone, and the batch without them."""
    return PairColumns(*map(batch.get, COLUMNS)), {key: batch[key] for key in batch if key not in COLUMNS}


class PairIndex:
    """Numbers the pairs of data sets and knows each one's group.

    Args:
        group_column: as `CAPOConfig.group_column`.
    """

    def __init__(self, group_column: str | None) -> None:
        self.group_column = group_column
        self.labels: list[str] = []
        self._number_of: dict[str, int] = {}
        self._first_of: dict[tuple[str, int], int] = {}  # the first number of every data set, by its fingerprint
        self._groups = torch.empty(0, dtype=torch.long)  # of every numbered pair

    def number(self, datasets: Any, name: str, *, evaluated: bool) -> Any:
        """The data set, or dictionary of data sets, with the columns that identify its pairs; None stays None.

        Args:
            datasets: to be numbered.
            name: for errors.
            evaluated: whether each pair must count once; a stream to train on needs no numbers.

        Raises:
            ValueError: the group column is missing, or has values that name no group.
        """
        if isinstance(datasets, Mapping):
            return {
                key: self.number(dataset, f"{name}[{key!r}]", evaluated=evaluated) for key, dataset in datasets.items()
            }
        if isinstance(datasets, IterableDataset):
            return self._number_stream(check_as_read(datasets, name), name, evaluated)
        return self._number_rows(datasets, name) if isinstance(datasets, Dataset) else datasets

    def _number_rows(self, dataset: Dataset, name: str) -> Dataset:
        key = (dataset._fingerprint, len(dataset))
        dataset = dataset.remove_columns([column for column in (PAIR, LABEL) if column in dataset.column_names])
        if key not in self._first_of:
            _, labels = find_groups(dataset, self.group_column, name)
            groups = [-1] * len(dataset) if labels is None else self._numbers(labels)
            self._first_of[key] = len(self._groups)
            self._groups = torch.cat([self._groups.cpu(), torch.tensor(groups, dtype=torch.long)])
        # A map, as TRL prepares data: adding a column would first rewrite a shuffled data set row by row. The same
        # numbers for the same data keep the caches of what TRL computes from them.
        return dataset.map(
            _number_batch,
            with_indices=True,
            batched=True,
            fn_kwargs={"first": self._first_of[key]},
            desc=f"Numbering {name}",
        )

    def _number_stream(self, dataset: IterableDataset, name: str, evaluated: bool) -> IterableDataset:
        column = resolve_group_column(column_names(dataset), self.group_column, name)
        if column is not None:
            try:
                _stream_label(next(iter(dataset)), column, name)  # before a model is loaded
            except ValueError as error:
                if self.group_column != "auto":
                    raise
                logger.warning(f"no metrics per group: {error}")
                column = None
        if evaluated:
            state = PartialState()
            # Accelerate gives each process shards of its own, where there are enough; else all read the same rows.
            own = state.num_processes if dataset.num_shards >= state.num_processes else 1
            place = {"process": state.process_index % own, "processes": own}
            dataset = dataset.map(_number_row, with_indices=True, fn_kwargs=place)
        elif column is None:
            return dataset
        return dataset.map(_add_label, fn_kwargs={"column": column, "name": name})

    @property
    def numbered(self) -> int:
        """How many pairs have numbers; streams' pairs are not among them."""
        return len(self._groups)

    def _numbers(self, labels: Sequence[str]) -> list[int]:
        for label in labels:
            if label not in self._number_of:
                self._number_of[label] = len(self.labels)
                self.labels.append(label)
        return [self._number_of[label] for label in labels]

    def knows(self, labels: Sequence[str]) -> bool:
        """Whether these labels have the numbers 0, 1, ...; of those that are new, as a stream's are, they get them."""
        return self._numbers(labels) == list(range(len(labels)))

    def groups(
        self, pairs: Tensor | None, labels: list[str | None] | None, size: int, accelerator: Accelerator
    ) -> Tensor:
        """(B,) the group of every pair of a batch, -1 for none. All processes call it together.

        Args:
            pairs: (B,) pair numbers, or None in a stream to train on.
            labels: the B labels of a stream's pairs, each None where there are no groups; None if it is no stream.
            size: B.
            accelerator: whose processes agree on the numbers of a stream's new labels.
        """
        if labels is not None:
            named = [label for label in labels if label is not None]
            self._numbers(gather_object(sorted(set(named))) if accelerator.num_processes > 1 else named)
            return torch.tensor([self._number_of.get(label, -1) for label in labels], device=accelerator.device)
        if pairs is None:
            return torch.full((size,), -1, device=accelerator.device)
        if self._groups.device != pairs.device:
            self._groups = self._groups.to(pairs.device)
        return self._groups[pairs]


def _number_batch(batch: Mapping[str, list], indices: list[int], first: int) -> dict[str, list[int]]:
    return {PAIR: [first + index for index in indices]}


def _number_row(row: Mapping[str, Any], index: int, process: int, processes: int) -> dict[str, int]:
    """A number for the row of a stream, which no other row has, and which this one has on all processes that read it.

    Rows are counted from 0 by every worker of a data loader, and by every process that reads rows of its own.
    """
    worker = get_worker_info()
    if worker is not None:
        index = index * worker.num_workers + worker.id
    return {PAIR: index * processes + process}


def _add_label(row: Mapping[str, Any], column: str | None, name: str) -> dict[str, str | None]:
    return {LABEL: None if column is None else _stream_label(row, column, name)}


def _stream_label(row: Mapping[str, Any], column: str, name: str) -> str:
    label = group_label(row[column])
    if label is None:
        raise ValueError(
            f"group_column={column!r}: {name} has a row whose value is neither text nor a number "
            f"({type(row[column]).__name__}). Give each pair one group, or choose another column."
        )
    return label


class PairCollator:
    """Puts the pairs' numbers, labels and weights past another collator, which does not know them, into the batch."""

    def __init__(self, collate: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = dict(self.collate([{k: v for k, v in example.items() if k not in COLUMNS} for example in examples]))
        if PAIR in examples[0]:
            batch[PAIR] = torch.tensor([example[PAIR] for example in examples])
        if LABEL in examples[0]:
            batch[LABEL] = [example[LABEL] for example in examples]
        if WEIGHT in examples[0]:
            batch[WEIGHT] = torch.tensor([example[WEIGHT] for example in examples], dtype=torch.float32)
        return batch
