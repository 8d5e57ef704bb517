"""Build the data and the plan of a small study on the tiny model."""

from pathlib import Path

from conftest import make_pairs

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]}
TRAINING = {"per_device_train_batch_size": 4, "bf16": False, "use_cpu": True, "gradient_checkpointing": False}
NOISE = {"clean": {"kind": "flip", "rate": 0.0}, "flip": {"kind": "flip", "rate": {"de": 0.5, "*": 0.25}}}
GRID = {"methods": ["dpo", "capo"], "noise": ["clean", "flip"], "seeds": [0, 1], "epochs": 1}


def save_splits(folder: Path) -> str:
    """Write splits of 24, 12 and 12 different pairs into a folder."""
    rows = make_pairs(48)
    for name, part in {"train": range(24), "validation": range(24, 36), "test": range(36, 48)}.items():
        rows.select(part).to_json(folder / f"{name}.jsonl", force_ascii=False)
    return str(folder)


def plan_options(model: str, data: str, output: Path, **changes) -> dict:
    """Return a plan of 2 methods, 2 kinds of noise and 2 seeds; keywords overwrite options."""
    options = {"model_name_or_path": model, "dataset_name": data, "output_dir": str(output)}
    options |= {"methods": {"dpo": {}, "capo": {}}, "noise": NOISE, "grid": [GRID], "learning_rates": [1e-2]}
    options |= {"training": TRAINING, "lora": LORA | {"task_type": "CAUSAL_LM"}, "model": {"dtype": "float32"}}
    return options | {"remember_frozen_layers": True} | changes
