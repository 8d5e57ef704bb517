"""One run of a study, in a process of its own: train with one method, one noise and one seed, and measure.

Started by `trl-capo study` as `accelerate launch --module trl_capo.study_run SETTINGS.json`. Writes, beside the
settings, `margins.npz` (every test pair's margin) and at last `result.json`, so that a run without one is not done.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_capo import __version__
from trl_capo.config import CAPOConfig
from trl_capo.data import load_preference_data, select_split
from trl_capo.frozen import FrozenLayers, SequenceMemory, scoring_completions_only
from trl_capo.groups import find_groups
from trl_capo.noise import inject_noise
from trl_capo.noise_checks import IS_NOISY
from trl_capo.study_config import TRUE_RATE
from trl_capo.study_methods import METHODS
from trl_capo.study_trainer import StudyTrainer

RESULT, MARGINS, SETTINGS = "result.json", "margins.npz", "settings.json"
ALL = "all"


def run(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train and measure; returns what `result.json` holds."""
    shared, stage = settings["shared"], settings["stage"]
    splits = load_preference_data(shared["dataset_name"])
    parts = {name: _part(splits, shared, name) for name in ("train", "validation", "test")}
    inject = settings["inject"]
    parts["train"] = inject_noise(
        parts["train"],
        inject["kind"],
        inject["rate"],
        seed=settings["seed"],
        group_column=shared["group_column"],
        score_column=inject.get("score_column"),
    )
    shares = _noise_shares(parts["train"], shared["group_column"])
    memory = folder.parent.parent / "memory"
    references, hidden = (
        SequenceMemory(memory / "references.safetensors"),
        SequenceMemory(memory / "hidden.safetensors"),
    )
    with scoring_completions_only():
        trainer = _make_trainer(settings, parts, shares[ALL], references, hidden, folder)
        started = time.perf_counter()
        if stage == "prepare":
            for part in parts.values():
                trainer.evaluate(part)
        else:
            trainer.train()
        seconds = time.perf_counter() - started
        if stage == "grid":
            _measure(trainer, parts["test"], folder)
    references.save()
    hidden.save()
    return {
        "settings": settings,
        "noise_shares": shares,
        "steps": trainer.state.global_step,
        "seconds": seconds,
        "peak_memory_bytes": _peak_memory(),
        "curve": _curve(trainer.state.log_history),
        "noise_rates": _noise_rates(trainer),
        "versions": {"trl-capo": __version__}
        | {package: version(package) for package in ("trl", "transformers", "peft", "torch", "datasets")},
    }


def _part(splits: Any, shared: dict[str, Any], name: str) -> Dataset:
    part, most = select_split(splits, shared[f"{name}_split"], f"{name}_split"), shared[f"{name}_pairs"]
    return part if most is None else part.select(range(min(most, len(part))))


def _noise_shares(train: Dataset, group_column: str | None) -> dict[str, float]:
    """The share of changed pairs, of all and of every group."""
    noisy = np.array(train[IS_NOISY][:], dtype=float)
    _, labels = find_groups(train, group_column, "the training split")
    groups = np.array(labels or [], dtype=object)
    return {ALL: float(noisy.mean())} | {group: float(noisy[groups == group].mean()) for group in sorted(set(groups))}


def _make_trainer(
    settings: dict[str, Any],
    parts: dict[str, Dataset],
    share: float,
    references: SequenceMemory,
    hidden: SequenceMemory,
    folder: Path,
) -> StudyTrainer:
    shared, options = settings["shared"], dict(settings["options"])
    method = METHODS[options.pop("method")]
    options = {key: share if value == TRUE_RATE else value for key, value in options.items()}
    own = method.own | {key: options.pop(key) for key in list(options) if key in method.own}
    steps = max(1, round(settings["epochs"] * len(parts["train"]) / shared["training"]["per_device_train_batch_size"]))
    args = CAPOConfig(
        **{
            "output_dir": str(folder),
            "report_to": "none",
            "save_strategy": "no",
            "logging_steps": 10,
            "eval_strategy": "steps",
            "eval_steps": max(1, steps // shared["curve_points"]),
            "disable_tqdm": True,
            "group_column": shared["group_column"],
            "max_steps": steps,
            "learning_rate": settings["learning_rate"],
            "seed": settings["seed"],
            **shared["training"],
            **method.config,
            **options,
        }
    )
    torch.manual_seed(args.seed)
    model = AutoModelForCausalLM.from_pretrained(shared["model_name_or_path"], **shared["model"])
    lora = None if shared["lora"] is None else LoraConfig(**shared["lora"])
    if shared["remember_frozen_layers"]:
        FrozenLayers(model, min(lora.layers_to_transform), hidden)
    return StudyTrainer(
        model,
        args=args,
        train_dataset=parts["train"],
        eval_dataset=parts["validation"],
        processing_class=AutoTokenizer.from_pretrained(shared["model_name_or_path"]),
        peft_config=lora,
        method=next(name for name, known in METHODS.items() if known is method),
        own=own,
        references=references,
    )


def _measure(trainer: StudyTrainer, test: Dataset, folder: Path) -> None:
    """Write every test pair's margin and group, in the data's order."""
    trainer.evaluated.clear()
    trainer.evaluate(test, metric_key_prefix="test")
    numbers = sorted(trainer.evaluated)
    margins = np.array([trainer.evaluated[number] for number in numbers], dtype=np.float32)
    labels = trainer.pair_groups(numbers)
    unfinished = folder / f"unfinished-{MARGINS}"
    np.savez(unfinished, margins=margins, labels=np.array(labels))
    os.replace(unfinished, folder / MARGINS)


def _curve(history: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Validation figures over the steps."""
    keys = {"accuracy": "eval_rewards/accuracies", "margin": "eval_rewards/margins"}
    return [
        {"step": entry["step"], **{name: entry[key] for name, key in keys.items()}}
        for entry in history
        if keys["accuracy"] in entry
    ]


def _noise_rates(trainer: StudyTrainer) -> dict[str, float] | None:
    estimate = trainer._capo_estimate
    return None if estimate is None else {ALL: float(estimate.noise_rates[0])} | estimate.by_group()


def _peak_memory() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(argv: Sequence[str] | None = None) -> int:
    (path,) = map(Path, sys.argv[1:] if argv is None else argv)
    settings = json.loads(path.read_text(encoding="utf-8"))
    try:
        result = run(settings, path.parent)
    except (ValueError, NotImplementedError, OSError) as error:
        print(f"trl-capo study: error: {error}", file=sys.stderr)
        return 2
    unfinished = path.parent / f"unfinished-{RESULT}"
    unfinished.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(unfinished, path.parent / RESULT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
