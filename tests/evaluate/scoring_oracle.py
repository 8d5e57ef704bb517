"""Evaluations of the pairs of pair_oracle.py, which scores them one by one."""

import json
from pathlib import Path

from datasets import Dataset
from pair_oracle import BETA, make_pool

from trl_capo.evaluate.command import EvaluateArguments, evaluate


def measure(folder: Path, rows: Dataset | None = None, **options) -> dict:
    """The figures of an evaluation on these rows, by default the pool, as metrics.json has them."""
    rows = make_pool() if rows is None else rows
    rows.to_json(folder / "pool.jsonl", force_ascii=False)
    data = {"dataset_name": str(folder / "pool.jsonl"), "dataset_split": "train"}
    args = EvaluateArguments(**{**data, "beta": BETA, "per_device_eval_batch_size": 5, **options})
    return json.loads(json.dumps(evaluate(args)))


def the_model(figures: dict) -> dict:
    (model,) = figures["models"].values()
    return model
