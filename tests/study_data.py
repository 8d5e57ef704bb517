"""A small study on the tiny model: its data and its plan, for the tests of `trl-capo study`."""

from pathlib import Path

from conftest import make_pairs
from datasets import Dataset

LORA = {
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "v_proj", "up_proj"],
    "layers_to_transform": [1],
    "task_type": "CAUSAL_LM",
}
TRAINING = {
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 8,
    "bf16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
}
NOISE = {"clean": {"kind": "flip", "rate": 0.0}, "flip": {"kind": "flip", "rate": {"de": 0.5, "*": 0.25}}}


def save_splits(folder: Path, pairs: int = 24) -> str:
    """A folder with the splits train, validation and test, of different pairs."""
    rows = list(make_pairs(pairs + 24))
    for name, part in (
        ("train", rows[:pairs]),
        ("validation", rows[pairs : pairs + 12]),
        ("test", rows[pairs + 12 :]),
    ):
        Dataset.from_list(part).to_json(folder / f"{name}.jsonl", force_ascii=False)
    return str(folder)


def plan(model: str, data: str, output: Path, **changes) -> dict:
    """The options of a study of 2 methods under 2 kinds of noise with 2 seeds; keywords win."""
    options = {
        "model_name_or_path": model,
        "dataset_name": data,
        "output_dir": str(output),
        "methods": {"dpo": {}, "capo": {}},
        "noise": NOISE,
        "grid": [{"methods": ["dpo", "capo"], "noise": ["clean", "flip"], "seeds": [0, 1], "epochs": 1}],
        "learning_rates": [1e-2],
        "training": TRAINING,
        "lora": LORA,
        "model": {"dtype": "float32"},
        "curve_points": 2,
        "remember_frozen_layers": True,
    }
    return options | changes
