"""Change rows of preference data, and write data sets into new folders.

Columns named alike but for `chosen` and `rejected` (`chosen_rating`, `score_rejected`, `ref_chosen_logps`) belong to
the answers and are swapped with them.
"""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from datasets import Dataset, DatasetDict, Features, concatenate_datasets

from trl_capo.common.command import versions
from trl_capo.common.text import count, percent, text_table
from trl_capo.core.pairs import find_groups, parse_column
from trl_capo.data.load import load_pairs, select_split


@dataclass
class EditArguments:
    """Which data set `trl-capo noise` and `trl-capo clean` change, and where they write it."""

    dataset_name: str = field(metadata={"help": "Pairs: hub name, local folder or file."})
    output_dir: str = field(metadata={"help": "A new or empty folder for the data set."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a hub data set."})
    dataset_split: str = field(default="train", metadata={"help": "Split to edit; the others are copied."})
    group_column: str | None = field(default="auto", metadata={"help": "As in `trl-capo train`; 'none': no groups."})

    def __post_init__(self) -> None:
        self.group_column = parse_column(self.group_column)


def swap_answers(dataset: Dataset, rows: np.ndarray) -> Dataset:
    """Swap chosen and rejected, and all columns that belong to them, in the (R,) rows."""
    pairs = _paired_columns(dataset)
    partners = pairs | {rejected: chosen for chosen, rejected in pairs.items()}
    return _replace_rows(dataset, rows, dataset.select(rows).rename_columns(partners))


def replace_chosen(dataset: Dataset, rows: np.ndarray, answers: list) -> Dataset:
    """Replace `chosen` in the (R,) rows; the other columns that belong to the chosen answer become null there."""
    changed = dataset.select(rows)
    for name in _paired_columns(dataset):
        values = answers if name == "chosen" else [None] * len(rows)
        changed = changed.remove_columns(name).add_column(name, values, feature=dataset.features[name])
    return _replace_rows(dataset, rows, changed)


def _paired_columns(dataset: Dataset) -> dict[str, str]:
    pairs = {name: name.replace("chosen", "rejected") for name in dataset.column_names if "chosen" in name}
    return {chosen: rejected for chosen, rejected in pairs.items() if rejected in dataset.column_names}


def _replace_rows(dataset: Dataset, rows: np.ndarray, changed: Dataset) -> Dataset:
    """Replace the (R,) rows by those of `changed`, whose messages may have other keys."""
    parts = [dataset, changed.select_columns(dataset.column_names)]
    common = pa.unify_schemas([part.features.arrow_schema for part in parts], promote_options="permissive")
    features, order = Features.from_arrow_schema(common), np.arange(len(dataset))
    order[rows] = len(dataset) + np.arange(len(rows))
    parts = [part if part.features == features else part.cast(features) for part in parts]
    return concatenate_datasets(parts).select(order)


def load_splits(data: EditArguments) -> tuple[Mapping[str, Any], Dataset]:
    """Return all splits and the one to change; raise ValueError if they cannot be read, or the output exists."""
    folder = Path(data.output_dir).expanduser()
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(f"output_dir={data.output_dir!r} exists and is not empty. Choose another folder.")
    splits = load_pairs(data.dataset_name, config=data.dataset_config)
    return splits, select_split(splits, data.dataset_split, "dataset_split")


def save_splits(data: EditArguments, splits: Mapping[str, Any], files: Mapping[str, Any]) -> None:
    """Write data sets, and text or JSON files beside them; the folder appears whole or not at all."""
    folder = Path(data.output_dir).expanduser().resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as place:
        unfinished = Path(place, "data")
        DatasetDict(splits).save_to_disk(unfinished)
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            (unfinished / name).write_text(text, encoding="utf-8")
        os.replace(unfinished, folder)
    print(f"Data set written to {data.output_dir}.")


def count_changes(data: EditArguments, dataset: Dataset, marks: pd.DataFrame, heads: Sequence[str]) -> dict[str, Any]:
    """Count the pairs with each of the (N, M) marks, print a table, and return a record of the counts and options.

    `heads` are the table's headings of the marks; "%" adds the last mark's share of the pairs.
    """
    column, labels = find_groups(dataset, data.group_column, data.dataset_split)
    marks.insert(0, "pairs", True)
    groups = marks.groupby(np.array(labels)).sum().to_dict("index") if labels else {}
    total, rows = marks.sum().to_dict(), [[column or "group", "pairs", *heads]]
    for name, numbers in [*groups.items(), ("all pairs", total)]:
        pairs, *others = numbers.values()
        rows.append([name, *map(count, (pairs, *others)), *([percent(others[-1] / pairs)] if "%" in heads else [])])
    print(text_table(rows))
    return asdict(data) | total | {"groups": groups, "versions": versions()}
