"""What the options of `accelerate launch` say of the processes of a training, without starting any."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from trl.cli.accelerate_config import resolve_accelerate_config_argument

from trl_capo.arguments import launch_parser
from trl_capo.yaml_files import read_yaml


@dataclass(frozen=True)
class Processes:
    """How many, and how they share the model: `Setting.sharding` of trl_capo.memory."""

    count: int = 1
    sharding: str = "none"


def read_launch(words: Sequence[str]) -> Processes:
    """The processes that these options start.

    Raises:
        ValueError, OSError: the file of options cannot be read.
    """
    try:
        return _read(words)
    except (AttributeError, TypeError) as error:
        raise ValueError(f"the options of `accelerate launch` cannot be used: {error}") from error


def _read(words: Sequence[str]) -> Processes:
    options = launch_parser().parse_args([*resolve_accelerate_config_argument(list(words)), "none.py"])
    file = read_yaml(options.config_file) if options.config_file else {}
    kind = file.get("distributed_type")
    count = options.num_processes or file.get("num_processes")
    count = count or max(1, torch.cuda.device_count() if options.multi_gpu else 1)
    if kind == "NO" and not options.multi_gpu:  # whatever number the file has
        count = 1
    if options.use_deepspeed or kind == "DEEPSPEED":
        stage = options.zero_stage or file.get("deepspeed_config", {}).get("zero_stage", 2)
        return Processes(count, "zero3" if int(stage) == 3 else "zero2")
    if options.use_fsdp or kind == "FSDP":
        return Processes(count, "fsdp2")
    return Processes(count, "ddp" if count > 1 else "none")
