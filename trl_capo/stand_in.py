"""The model that a training would load, without its memory: its modules, and what its files have, but no numbers.

Transformers itself loads it, onto torch's device "meta": only the heads of the files are read. So it is known before a
model is loaded, by Transformers' own rules for tied, renamed and sharded weights, whether a part is missing, for which
random numbers would stand. Not covered: checkpoints that are stored quantised, whose loading may ask for a GPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel
from transformers.integrations import deepspeed
from transformers.integrations.accelerate import check_and_set_device_map
from trl import ModelConfig
from trl.trainer.utils import create_model_from_path

from trl_capo.plain import first_few

_ELSEWHERE = ("attn_implementation", "device_map", "distributed_config", "dtype", "max_memory", "quantization_config")
_ELSEWHERE += ("tp_plan", "tp_size", "use_kernels")
"""Options of `from_pretrained` that say where or how a model is computed, which may ask for another machine."""

DTYPES = tuple(ModelConfig.__dataclass_fields__["dtype"].metadata["choices"])
"""The types of weights, by name, that TRL loads a model in."""


def model_option_problems(options: dict[str, Any]) -> list[str]:
    """Why options of `from_pretrained` cannot be used that the stand-in is loaded without.

    Args:
        options: of the model.
    """
    problems, dtype, device_map = [], options.get("dtype"), options.get("device_map")
    if not (dtype is None or isinstance(dtype, torch.dtype) or dtype in DTYPES):
        problems.append(f"dtype={dtype!r}: a model is not loaded in this type. Choose one of {', '.join(DTYPES)}.")
    try:
        if isinstance(device_map, str):
            check_and_set_device_map(device_map)
    except ValueError as error:
        problems.append(f"device_map={device_map!r}: {error}")
    return problems


def load_stand_in(name: str, config: PretrainedConfig, options: dict[str, Any]) -> PreTrainedModel | None:
    """The model of that name on the device "meta"; None where only the real loading tells.

    Args:
        name: of the model.
        config: as `trl_capo.models.load_config` gives it.
        options: of `from_pretrained`; those for the hardware are left out.

    Raises:
        ValueError: tensors are missing or of another shape than the config says.
        Exception: of any kind, where loading it would end so.
    """
    if getattr(config, "quantization_config", None):
        return None
    options = {key: value for key, value in options.items() if key not in _ELSEWHERE}
    with _quiet(), _as_one_process():
        model, found = create_model_from_path(
            name, device_map="meta", dtype="auto", output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    refuse_random(name, model, found)
    return model


def refuse_random(name: str, model: PreTrainedModel, found: dict[str, Any]) -> None:
    """Refuse weights that a checkpoint does not have: Transformers fills them with random numbers, and warns.

    Args:
        name: of the model, for the error.
        model: loaded.
        found: the information that loading it gave.
    """
    absent = sorted(found["missing_keys"]) + sorted(key for key, *_ in found["mismatched_keys"])
    if absent:
        raise ValueError(
            f"{name!r} is not a whole {type(model).__name__}: {len(absent)} of its tensors are missing or have "
            f"another shape ({first_few(absent, 3)}), and random numbers would stand for them. Save it again, or give "
            "another model."
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Transformers' bars and reports, which would say that weights are loaded."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


@contextmanager
def _as_one_process() -> Iterator[None]:
    """Without DeepSpeed's ZeRO-3, which would shard the model over the processes while it is loaded."""
    held = deepspeed._hf_deepspeed_config_weak_ref
    config = None if held is None else held()
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            deepspeed.set_hf_deepspeed_config(config)
