"""Train and evaluate one run of a study: `python -m trl_capo.study.run SETTINGS.json`, started by `trl-capo study`.

A run is finished when it has written `result.json`. It ends with its standard input, even if the study is killed.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_capo.audit.mislabels import Dynamics, estimate_label_errors
from trl_capo.callbacks.pair_log import PairLog
from trl_capo.common.command import versions
from trl_capo.core.config import CAPOConfig
from trl_capo.core.pairs import PROBE, TRUSTED, WEIGHT, find_groups
from trl_capo.data.clean import CleanArguments, clean
from trl_capo.data.edit import swap_answers
from trl_capo.data.load import load_pairs, select_split
from trl_capo.data.noise import IS_NOISY, inject_noise
from trl_capo.scoring.annotate import ReferenceArguments, add_probe, annotate, read_states
from trl_capo.study.methods import METHODS, EvaluatedPairs, StudyTrainer
from trl_capo.study.plan import RESULT
from trl_capo.study.results import ALL, MARGINS
from trl_capo.study.speed import FrozenLayers, SequenceCache


def read_parts(shared: Mapping[str, Any]) -> dict[str, Dataset]:
    """Return the pairs of a study for "train", "validation" and "test"."""
    splits, parts = load_pairs(shared["dataset_name"]), {}
    for name in ("train", "validation", "test"):
        part = select_split(splits, shared[f"{name}_split"], f"{name}_split")
        parts[name] = part.select(range(min(len(part), shared[f"{name}_pairs"] or len(part))))
        if WEIGHT in part.column_names:
            raise ValueError(f"the {name} split has a column {WEIGHT!r}, which some methods ignore; remove it")
    return parts


def add_noise(train: Dataset, settings: Mapping[str, Any]) -> tuple[Dataset, dict[str, float]]:
    """Inject noise, and restore and trust `trusted` labels per group; return the shares of wrong labels."""
    column, inject, seed = settings["shared"]["group_column"], dict(settings["inject"]), settings["seed"]
    checked = inject.pop("trusted", 0)
    if checked and inject["kind"] != "flip":
        raise ValueError(f"trusted={checked} needs the kind 'flip', whose labels can be restored")
    train = inject_noise(train, **inject, seed=seed, group_column=column)
    noisy = np.array(train[IS_NOISY][:], dtype=bool)
    labels = np.array(find_groups(train, column, "the training split")[1] or [""] * len(train))
    if checked:
        order = np.random.default_rng(seed).permutation(len(train))
        trusted = np.concatenate([order[labels[order] == group][:checked] for group in sorted(set(labels.tolist()))])
        train = swap_answers(train, trusted[noisy[trusted]]).remove_columns(IS_NOISY)
        noisy[trusted] = False
        train = train.add_column(IS_NOISY, noisy).add_column(TRUSTED, np.isin(np.arange(len(train)), trusted))
    return train, noise_shares(train, labels)


def noise_shares(train: Dataset, labels: np.ndarray) -> dict[str, float]:
    """Return the share of wrong labels in total and by group, given each pair's group."""
    noisy = np.array(train[IS_NOISY][:], dtype=bool)
    shares = {group: float(noisy[labels == group].mean()) for group in sorted(set(labels.tolist()) - {""})}
    return {ALL: float(noisy.mean())} | shares


def add_witness(noisy: Dataset, right: Dataset, settings: Mapping[str, Any], memory: Path) -> Dataset:
    """Annotate the pairs of a run for `witness: probe`; runs with flips share the states of the right pairs."""
    shared, training = settings["shared"], settings["shared"]["training"]
    limits = {name: training[name] for name in ("per_device_eval_batch_size", "max_length") if name in training}
    reference = ReferenceArguments(shared["model_name_or_path"], dtype=shared["model"].get("dtype", "auto"), **limits)
    if settings["inject"]["kind"] == "wrong_language":
        return annotate(noisy, reference)
    file = memory / f"states-{len(right)}.npz"
    if not file.is_file():
        found = dict(zip(("kept", "states", "prompts"), read_states(right, reference), strict=True))
        memory.mkdir(parents=True, exist_ok=True)
        np.savez(unfinished := file.with_name(f"{os.getpid()}.npz"), **found)
        os.replace(unfinished, file)
    with np.load(file) as arrays:
        kept, states, prompts = arrays["kept"], torch.tensor(arrays["states"]), torch.tensor(arrays["prompts"])
    flipped = torch.tensor(noisy[IS_NOISY][:])[kept]
    return add_probe(noisy, kept, torch.where(flipped[:, None], -states, states), prompts)


def clean_labels(train: Dataset, settings: Mapping[str, Any]) -> tuple[Dataset, dict[str, float]]:
    """Audit annotated pairs and clean them by the method's `clean`; return the shares that are still wrong."""
    labels = find_groups(train, settings["shared"]["group_column"], "the training split")[1] or [""] * len(train)
    suspects = estimate_label_errors(Dynamics(pd.DataFrame({"group": labels}), {}), train).pairs[["score"]]
    train, plan = clean(train, suspects=suspects, rules=CleanArguments(**settings["options"]["clean"]))
    return train, noise_shares(train, np.array(labels)[plan["decision"] != "drop"])


def training_args(settings: Mapping[str, Any], pairs: int, noise: float, folder: Path) -> tuple[CAPOConfig, dict]:
    """Return the `CAPOConfig` of a run and its method's own options; "true_rate" becomes `noise`, a share of pairs."""
    shared, method = settings["shared"], METHODS[settings["options"]["method"]]
    options = {"report_to": "none", "save_strategy": "no", "logging_steps": 10, "disable_tqdm": True}
    options |= {"padding_free": True} | shared["training"] | method.config | method.own | settings["options"]
    options = {name: noise if value == "true_rate" else value for name, value in options.items()}
    own = {name: options.pop(name) for name in [*method.own, "method", "pair_log", "clean"] if name in options}
    batch = options.get("per_device_train_batch_size", CAPOConfig.per_device_train_batch_size)
    steps = round(settings["epochs"] * pairs / (batch * options.get("gradient_accumulation_steps", 1)))
    planned = {"output_dir": str(folder), "num_train_epochs": settings["epochs"], "max_steps": max(1, steps)}
    planned |= {name: settings[name] for name in ("learning_rate", "seed")} | {"group_column": shared["group_column"]}
    return CAPOConfig(**options, **planned), {name: own[name] for name in method.own}


def run(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train and evaluate, write the margins into the folder, and return the content of `result.json`."""
    shared, method = settings["shared"], METHODS[settings["options"]["method"]]
    parts = read_parts(shared)
    right, memory = parts["train"], folder.parents[1] / "memory"
    parts["train"], shares = add_noise(right, settings)
    if settings["options"].get("witness") == PROBE or "clean" in settings["options"]:
        parts["train"] = add_witness(parts["train"], right, settings, memory)
    if "clean" in settings["options"]:
        parts["train"], shares = clean_labels(parts["train"], settings)
    args, own = training_args(settings, len(parts["train"]), shares[ALL], folder)
    caches = [SequenceCache(memory / f"{name}.safetensors") for name in ("references", "hidden")]
    torch.manual_seed(args.seed)
    model = AutoModelForCausalLM.from_pretrained(shared["model_name_or_path"], **shared["model"])
    if shared["remember_frozen_layers"]:
        FrozenLayers(model, min(shared["lora"]["layers_to_transform"]), caches[1])
    evaluated = EvaluatedPairs(total=0 if settings["epochs"] else 2 * sum(map(len, parts.values())))
    trainer = StudyTrainer(
        model,
        args=args,
        train_dataset=parts["train"],
        eval_dataset=parts["validation"],
        processing_class=AutoTokenizer.from_pretrained(shared["model_name_or_path"]),
        peft_config=shared["lora"] and LoraConfig(**shared["lora"]),
        callbacks=[evaluated, *([PairLog(folder / "pair_log")] if shared["training"].get("pair_log") else [])],
        method=method,
        own=own,
        references=caches[0],
    )
    started = time.perf_counter()
    trainer.train() if settings["epochs"] else trainer.evaluate(parts["train"])
    seconds = time.perf_counter() - started
    validation = trainer.evaluate()
    evaluated.margins.clear()
    trainer.evaluate(parts["test"], metric_key_prefix="test")
    margins, labels = zip(*(evaluated.margins[pair] for pair in sorted(evaluated.margins)), strict=True)
    np.savez(folder / MARGINS, margins=np.array(margins, dtype=np.float32), labels=np.array(labels))
    for cache in caches:
        cache.save()
    rates = trainer.noise_rate_estimator
    return {
        "settings": settings,
        "noise_shares": shares,
        "steps": trainer.state.global_step,
        "seconds": seconds,
        "validation_accuracy": validation["eval_rewards/accuracies"],
        "noise_rates": rates and {ALL: float(rates.noise_rates[0])} | rates.by_group(),
        "versions": versions(),
    }


def main(path: Path) -> None:
    threading.Thread(target=_end_with_study, daemon=True).start()
    result = run(json.loads(path.read_text(encoding="utf-8")), path.parent)
    unfinished = path.with_name(f"unfinished-{RESULT}")
    unfinished.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(unfinished, path.with_name(RESULT))


def _end_with_study() -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock this thread would hold when Python exits
        pass
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
