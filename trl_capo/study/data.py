"""The data of a study's runs and the options of their training, for the runs and for the check before them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig

from trl_capo.config import CAPOConfig
from trl_capo.data import check_preference_data, load_preference_data, select_split
from trl_capo.groups import find_groups
from trl_capo.noise import inject_noise
from trl_capo.noise_checks import IS_NOISY
from trl_capo.study.checks import TRUE_RATE
from trl_capo.study.config import StudyConfig
from trl_capo.study.methods import METHODS, Batch
from trl_capo.weights import WEIGHT

ALL = "all"


def read_parts(shared: Mapping[str, Any]) -> dict[str, Dataset]:
    """The pairs to train, validate and test on."""
    splits = load_preference_data(shared["dataset_name"])
    parts = {}
    for name in ("train", "validation", "test"):
        part, most = select_split(splits, shared[f"{name}_split"], f"{name}_split"), shared[f"{name}_pairs"]
        parts[name] = part if most is None else part.select(range(min(most, len(part))))
    return parts


def with_noise(train: Dataset, inject: Mapping[str, Any], seed: int, group_column: str | None) -> Dataset:
    return inject_noise(
        train,
        inject["kind"],
        inject["rate"],
        seed=seed,
        group_column=group_column,
        score_column=inject.get("score_column"),
    )


def noise_shares(train: Dataset, group_column: str | None) -> dict[str, float]:
    """The share of changed pairs, of all and of every group."""
    noisy = np.array(train[IS_NOISY][:], dtype=float)
    _, labels = find_groups(train, group_column, "the training split")
    groups = np.array(labels or [], dtype=object)
    return {ALL: float(noisy.mean())} | {group: float(noisy[groups == group].mean()) for group in sorted(set(groups))}


def training_options(
    settings: Mapping[str, Any], pairs: int, share: float, folder: Path
) -> tuple[CAPOConfig, dict[str, float]]:
    """The `CAPOConfig` of a run, and its method's own options.

    Args:
        settings: of the run, as `StudyConfig.settings`.
        pairs: how many are trained on.
        share: of them, those that the noise has changed: the value of TRUE_RATE.
        folder: the run's.
    """
    shared, given = settings["shared"], dict(settings["options"])
    method = METHODS[given.pop("method")]
    given = {name: share if value == TRUE_RATE else value for name, value in given.items()}
    own = method.own | {name: given.pop(name) for name in list(given) if name in method.own}
    options = {
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 10,
        "disable_tqdm": True,
        **shared["training"],
        **method.config,
        **given,
    }
    batch = options["per_device_train_batch_size"] * options.get("gradient_accumulation_steps", 1)
    steps = max(1, round(settings["epochs"] * pairs / batch))
    args = CAPOConfig(
        **options,
        output_dir=str(folder),
        group_column=shared["group_column"],
        learning_rate=settings["learning_rate"],
        seed=settings["seed"],
        max_steps=steps,
        eval_strategy="steps",
        eval_steps=max(1, steps // shared["curve_points"]),
    )
    return args, own


def check_runs(config: StudyConfig, folder: Path) -> dict[str, Dataset]:
    """Refuse what would fail in a run, as far as data and options can tell, before any is started; returns the data.

    Raises:
        ValueError, OSError: one message for the user.
    """
    disable_progress_bars()  # the study has its own
    parts = read_parts(config.shared)
    check_preference_data(**parts)
    problems, shares, column = [], {}, config.group_column
    if any(WEIGHT in part.column_names for part in parts.values()):
        problems.append(f"the data have a column {WEIGHT!r}, which not every method could honour. Remove it.")
    for label, inject in config.noise.items():
        try:
            shares[label] = noise_shares(with_noise(parts["train"], inject, 0, column), column)[ALL]
        except ValueError as error:
            problems.append(f"noise: {label}: {error}")
    if any(ALL in (find_groups(part, column, name)[1] or []) for name, part in parts.items()):
        problems.append(f"there is a group {ALL!r}, which in the table means all pairs together. Rename it.")
    if config.lora is not None:
        problems += _problems("lora", LoraConfig, **config.lora)
    for run in {(run.method, run.noise): run for run in config.possible_runs() if run.noise in shares}.values():
        arguments = {"settings": config.settings(run), "pairs": len(parts["train"]), "folder": folder}
        problems += _problems(f"methods: {run.method}", _try_method, share=shares[run.noise], **arguments)
    if problems:
        lines = "\n".join(f"- {line}" for line in dict.fromkeys(problems))
        raise ValueError(f"the study cannot be run as it is:\n{lines}")
    return parts


def _try_method(settings: Mapping[str, Any], **arguments: Any) -> None:
    _, own = training_options(settings, **arguments)
    loss = METHODS[settings["options"]["method"]].loss
    if loss is not None and own:  # the losses check their own options
        zero = torch.zeros(1)
        batch = Batch(zero, 1.0, None, torch.ones(2, 1), {}, rewards=(zero, zero), pairs=zero.long())
        batch.calibration = (zero, zero + 1.0)
        loss(batch, **own)


def _problems(name: str, make: Callable[..., Any], **arguments: Any) -> list[str]:
    try:
        make(**arguments)
    except (ValueError, TypeError) as error:
        return [f"{name}: {error}"]
    return []
