"""The data of a dry run: loaded and checked. What cannot be used is left out, and the rest looked at."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from datasets import Dataset, IterableDataset

from trl_capo.data import refuse_unusable, usable_rows
from trl_capo.dry_run_report import Findings
from trl_capo.groups import find_groups
from trl_capo.lenient import Usable
from trl_capo.repeats import repeat_warnings
from trl_capo.train_data import (
    check_noise,
    evaluation_split,
    load_splits,
    stream_problem,
    training_split,
    with_noise,
)
from trl_capo.weights import weight_problems

STREAM_ROWS = 1000


@dataclass
class Data:
    """What there is to train on; None for what there is not, or cannot be used.

    Args:
        train: the data set or stream.
        trained_on: the same, with noise, if nothing is wrong with it.
        pairs: those of its rows that can be used, with noise; of a stream the first.
        groups: of the pairs, as `find_groups` gives them.
    """

    train: Any = None
    trained_on: Any = None
    pairs: Dataset | None = None
    groups: tuple[str | None, Sequence[str] | None] = (None, None)


def check_data(found: Findings, usable: Usable) -> Data:
    """Look at the rows, their groups, and the noise that is asked for; what cannot be used is left out."""
    _, args, _, _, noise_args, _ = usable.parsed
    train, evaluation = _load(found, usable)
    told = len(found.problems)
    with found.collecting():
        check_noise(noise_args)
    with found.collecting():
        check = partial(weight_problems, args)
        found.warnings += refuse_unusable(check, train_dataset=train, eval_dataset=evaluation)
    if isinstance(train, IterableDataset) and args.max_steps <= 0:
        found.problems.append("max_steps: a stream has no known length, so say how many steps to train.")
    data = Data(train, pairs=_in_memory(found, usable, train))
    if data.pairs is None:
        return data
    rows = usable_rows(data.pairs)
    with found.collecting():
        data.groups = find_groups(rows or data.pairs, args.group_column, "the training pairs")
    if len(found.problems) == told:  # so that noise only says what nothing else has
        with found.collecting():
            data.trained_on = with_noise(train, args, noise_args)
            rows = data.trained_on if isinstance(data.trained_on, Dataset) else rows
    found.warnings += repeat_warnings(rows)
    found.pairs = len(rows)
    data.pairs = rows or None
    return data


def _load(found: Findings, usable: Usable) -> tuple[Any, Any]:
    """The data to train on and to evaluate on; None for what there is not, or cannot be loaded."""
    script_args, args, _, dataset_args, _, _ = usable.parsed
    train = evaluation = None
    named = script_args.dataset_name or dataset_args.datasets
    if not named and usable.left_out & {"dataset_name", "datasets"}:
        return None, None  # what is wrong with these options is told
    with found.collecting():
        splits = load_splits(script_args, args, dataset_args)
        with found.collecting():
            train = training_split(splits, script_args)
        with found.collecting():
            evaluation = evaluation_split(splits, script_args, args)
    return train, evaluation


def _in_memory(found: Findings, usable: Usable, train: Any) -> Dataset | None:
    """The data set, or the first rows of the stream; None if there is none, or it cannot be read."""
    if not isinstance(train, IterableDataset):
        return train
    script_args, _, _, dataset_args, _, _ = usable.parsed
    found.sampled = True
    try:
        return Dataset.from_list(list(train.take(STREAM_ROWS)))
    except Exception as error:  # every reader of every format has its own errors
        found.problems.append(stream_problem(script_args, dataset_args) or f"the stream cannot be read: {error}")
        return None
