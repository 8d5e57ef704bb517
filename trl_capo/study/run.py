"""One run of a study, in a process of its own: train with one method, one noise and one seed, and measure.

Started by `trl-capo study` as `accelerate launch --module trl_capo.study.run SETTINGS.json --with-study`, of which the
last word ties it to the study: it ends when that does. Writes, beside the settings, `margins.npz` (every test pair's
margin) and at last `result.json`, so that a run without one is not done.
"""

import os
import sys
import threading
import time
import traceback
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
from trl_capo.memory import peak_memory
from trl_capo.study.data import ALL, noise_shares, read_parts, training_options, with_noise
from trl_capo.study.files import read_json, write_json
from trl_capo.study.frozen import FrozenLayers, SequenceMemory, scoring_completions_only
from trl_capo.study.inputs import describe_inputs, refuse_other_inputs
from trl_capo.study.packed import PackedLayers
from trl_capo.study.trainer import StudyTrainer

RESULT, MARGINS, SETTINGS = "result.json", "margins.npz", "settings.json"
ERROR = "trl-capo study: error: "
WITH_STUDY = "--with-study"


def run(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train and measure; returns what `result.json` holds."""
    shared = settings["shared"]
    parts = read_parts(shared)
    refuse_other_inputs(folder.parent.parent, describe_inputs(parts, shared["model_name_or_path"]))
    parts["train"] = with_noise(parts["train"], settings["inject"], settings["seed"], shared["group_column"])
    shares = noise_shares(parts["train"], shared["group_column"])
    memory = folder.parent.parent / "memory"
    references, hidden = (SequenceMemory(memory / f"{name}.safetensors") for name in ("references", "hidden"))
    with scoring_completions_only():
        trainer = _make_trainer(settings, parts, shares[ALL], references, hidden, folder)
        started = time.perf_counter()
        if settings["epochs"] == 0:
            for part in parts.values():
                trainer.evaluate(part)
        else:
            trainer.train()
            if _curve(trainer.state.log_history)[-1]["step"] < trainer.state.global_step:
                trainer.evaluate()  # the curve ends where the training does
        seconds = time.perf_counter() - started
        _measure(trainer, parts["test"], folder)
    references.save()
    hidden.save()
    return {
        "settings": settings,
        "noise_shares": shares,
        "steps": trainer.state.global_step,
        "seconds": seconds,
        "peak_memory_bytes": peak_memory(),
        "curve": _curve(trainer.state.log_history),
        "noise_rates": _noise_rates(trainer),
        "versions": {"trl-capo": __version__}
        | {package: version(package) for package in ("trl", "transformers", "peft", "torch", "datasets")},
    }


def _make_trainer(
    settings: dict[str, Any],
    parts: dict[str, Dataset],
    share: float,
    references: SequenceMemory,
    hidden: SequenceMemory,
    folder: Path,
) -> StudyTrainer:
    shared = settings["shared"]
    args, own = training_options(settings, len(parts["train"]), share, folder)
    torch.manual_seed(args.seed)
    model = AutoModelForCausalLM.from_pretrained(shared["model_name_or_path"], **shared["model"])
    lora = None if shared["lora"] is None else LoraConfig(**shared["lora"])
    if shared["remember_frozen_layers"]:
        trained = min(lora.layers_to_transform)
        FrozenLayers(model, trained, hidden)
        PackedLayers(model, trained)
    return StudyTrainer(
        model,
        args=args,
        train_dataset=parts["train"],
        eval_dataset=parts["validation"],
        processing_class=AutoTokenizer.from_pretrained(shared["model_name_or_path"]),
        peft_config=lora,
        method=settings["options"]["method"],
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
    """The noise rates that the training found, of all and of every group; None where it estimates none."""
    estimate = trainer._capo_estimate
    return None if estimate is None else {ALL: float(estimate.noise_rates[0])} | estimate.by_group()


def _end_with_study() -> None:
    """End this process, whatever it does, when the study that started it has ended: its standard input ends then."""
    while os.read(0, 1):  # not through sys.stdin, whose lock a thread must not hold when Python ends
        pass
    os._exit(1)


def main(argv: Sequence[str] | None = None) -> int:
    name, *words = sys.argv[1:] if argv is None else argv
    if words == [WITH_STUDY]:
        threading.Thread(target=_end_with_study, daemon=True).start()
    path = Path(name)
    settings = read_json(path)
    try:
        result = run(settings, path.parent)
    except Exception as error:
        if not isinstance(error, ValueError | NotImplementedError | OSError):
            traceback.print_exc()
        print(f"{ERROR}{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    write_json(path.parent / RESULT, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
