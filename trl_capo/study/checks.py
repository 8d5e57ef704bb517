"""What the plan of a study must be like, as far as can be told without its data: shapes, names and ranges."""

import math
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any, get_type_hints

from trl_capo.config import CAPOConfig
from trl_capo.draws import check_rate
from trl_capo.noise import KINDS
from trl_capo.study.methods import METHODS
from trl_capo.value_types import type_problems

TRUE_RATE = "true_rate"
"""As the value of a method's option: the share of pairs that the run's noise has changed."""

DECIDED = ("output_dir", "learning_rate", "seed", "num_train_epochs", "max_steps", "eval_strategy", "eval_steps",
           "eval_delay", "group_column", "resume_from_checkpoint")  # fmt: skip
"""Options of `CAPOConfig` that the plan gives elsewhere: they cannot be a method's or all runs'."""

FOR_ALL = ("max_length", "truncation_mode")
"""Options that decide what is measured: all runs' or none's."""

LOSS = ("loss_type", "loss_weights")
"""Options that make a method what it is: not all runs', nor those of a method with a loss of its own."""

OF_A_BATCH = ("dr_dpo", "beta_dpo")
"""Methods whose loss is no mean over pairs: accumulated over smaller batches, it would be another."""


def plan_problems(config: Any) -> list[str]:
    """Everything in a `StudyConfig` that cannot be used; where its shape is wrong, that alone."""
    problems = list(_shape_problems(config))
    parts = (_training_problems, _method_problems, _noise_problems, _grid_problems)
    return problems or [line for find in parts for line in find(config)]


def _shape_problems(config: Any) -> Iterator[str]:
    for name in ("methods", "noise"):
        value = getattr(config, name)
        if not isinstance(value, Mapping) or not value:
            yield f"{name}={value!r} must map labels to options."
            continue
        for label in value:
            if not isinstance(label, str) or not label.strip() or not label.isprintable():
                yield f"{name}: the label {label!r} must be text on one line. In YAML, put it in quotes."
    for name in ("training", "model", "lora"):
        value = getattr(config, name)
        if not isinstance(value, Mapping) and not (name == "lora" and value is None):
            yield f"{name}={value!r} must map options to values."
    if not isinstance(config.grid, list) or not config.grid:
        yield f"grid={config.grid!r} must be a list of blocks."
    rates = config.learning_rates
    if not isinstance(rates, list) or not rates or not all(_is_positive(rate) for rate in rates):
        yield f"learning_rates={rates!r} must be a list of positive numbers."
    for name in ("train_pairs", "validation_pairs", "test_pairs", "curve_points"):
        value = getattr(config, name)
        if not _is_whole(value, 1) and (value is not None or name == "curve_points"):
            yield f"{name}={value!r} must be a whole number, 1 or more."
    splits = [config.train_split, config.validation_split, config.test_split]
    if len(set(map(str, splits))) < 3:
        yield f"train_split, validation_split and test_split must be three different splits, not {splits!r}."


def _training_problems(config: Any) -> Iterator[str]:
    yield from (f"training: {problem}" for problem in _option_problems(config.training, (), LOSS))
    if not _is_whole(config.training.get("per_device_train_batch_size"), 1):
        yield "training: it needs per_device_train_batch_size, a whole number, by which the steps are counted."
    if not _is_whole(config.training.get("gradient_accumulation_steps", 1), 1):
        yield "training: gradient_accumulation_steps must be a whole number, 1 or more."
    layers = (config.lora or {}).get("layers_to_transform")
    if config.remember_frozen_layers and not (layers and isinstance(layers, list)):
        yield (
            "remember_frozen_layers=True: the layers below the lowest trained one are remembered, and lora has no "
            "list layers_to_transform that names the trained ones."
        )


def _method_problems(config: Any) -> Iterator[str]:
    for label, options in config.methods.items():
        if not isinstance(options, Mapping):
            yield f"methods: {label}: {options!r} must map options to values."
            continue
        kind = options.get("method", label)
        if not isinstance(kind, str) or kind not in METHODS:
            yield f"methods: {label}: there is no method {kind!r}. Choose one of {', '.join(METHODS)}."
            continue
        misplaced = FOR_ALL if METHODS[kind].loss is None else FOR_ALL + LOSS
        problems = [*_option_problems(options, ("method", *METHODS[kind].own), misplaced)]
        steps = (config.training | dict(options)).get("gradient_accumulation_steps", 1)
        if kind in OF_A_BATCH and steps != 1:
            problems.append(
                f"gradient_accumulation_steps={steps!r}: {kind}'s loss is one of a whole batch, which would be cut. "
                "Let per_device_train_batch_size be the batch."
            )
        yield from (f"methods: {label}: {problem}" for problem in problems)
    if config.baseline not in config.methods:
        yield f"baseline={config.baseline!r} is not one of the methods ({', '.join(config.methods)})."


def _option_problems(options: Mapping[str, Any], own: tuple[str, ...], misplaced: tuple[str, ...]) -> Iterator[str]:
    """What is wrong with options of `CAPOConfig` and `own` ones, of which the `misplaced` do not belong there."""
    known = get_type_hints(CAPOConfig) | {"pair_log": bool}  # every run has a folder of its own
    given = {name: value for name, value in options.items() if value != TRUE_RATE}
    yield from type_problems(given, known | dict.fromkeys(own, float | str))
    for name in options:
        if name in DECIDED:
            yield f"{name} cannot stand there: the plan gives it for every run."
        elif name in misplaced:
            yield f"{name} cannot stand there: " + (
                "all runs are measured alike. Give it under `training`."
                if name in FOR_ALL
                else "it belongs to a method without a loss of its own."
            )
        elif name not in known and name not in own:
            yield f"there is no option {name!r}."


def _noise_problems(config: Any) -> Iterator[str]:
    for label, spec in config.noise.items():
        if not isinstance(spec, Mapping) or spec.get("kind") not in KINDS or "rate" not in spec:
            yield f"noise: {label}: {spec!r} needs a `rate`, and as its `kind` one of {', '.join(KINDS)}."
            continue
        if set(spec) - {"kind", "rate", "score_column"}:
            yield f"noise: {label}: {spec!r} has more than kind, rate and score_column."
        try:
            check_rate(spec["rate"])
        except ValueError as error:
            yield f"noise: {label}: {error}"


def _grid_problems(config: Any) -> Iterator[str]:
    for block in config.grid:
        yield from _block_problems(config, "grid", block, ("methods", "noise", "seeds", "epochs"))
    if config.tuning is not None:
        epochs = ("epochs",) if isinstance(config.tuning, Mapping) and "epochs" in config.tuning else ()
        yield from _block_problems(config, "tuning", config.tuning, ("noise", "seeds", *epochs))
    elif len(config.learning_rates) > 1:
        yield "learning_rates: there are several, and no `tuning` runs that choose one."


def _block_problems(config: Any, name: str, block: Any, keys: tuple[str, ...]) -> Iterator[str]:
    if not isinstance(block, Mapping) or set(block) != set(keys):
        optional = ", epochs if wanted" if name == "tuning" and "epochs" not in keys else ""
        yield f"{name}: {block!r} needs {', '.join(keys[:-1])} and {keys[-1]}{optional}, and nothing else."
        return
    for key in (key for key in keys if key != "epochs"):
        values = block[key]
        if not isinstance(values, list) or not values:
            yield f"{name}: {key}={values!r} must be a list."
        elif key == "seeds":
            if not all(_is_whole(seed, 0) for seed in values):
                yield f"{name}: seeds={values!r} must be whole numbers, 0 or more."
        else:
            defined = getattr(config, key)
            for entry in values:
                if not isinstance(entry, str):
                    yield f"{name}: {key}: {entry!r} must be text. In YAML, put it in quotes."
                elif entry not in defined:
                    yield f"{name}: {key}: {entry!r} is not defined."
    if "epochs" in keys and not _is_positive(block["epochs"]):
        yield f"{name}: epochs={block['epochs']!r} must be a positive number."


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_positive(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 < value < math.inf
