"""What the options of `accelerate launch` say of the processes of a training, without starting any."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from os.path import isfile

import torch
from accelerate.commands.config.config_args import default_config_file as DEFAULT  # what `accelerate config` writes
from trl.cli.accelerate_config import resolve_accelerate_config_argument

from trl_capo.arguments import launch_parser
from trl_capo.yaml_files import read_yaml


@dataclass(frozen=True)
class Processes:
    """How many, and how they share the model: `Setting.sharding` of trl_capo.memory; how many were asked for."""

    count: int = 1
    sharding: str = "none"
    asked: int = field(default=1, compare=False)


def read_launch(words: Sequence[str], *, gpu: bool = True) -> Processes:
    """The processes that these options start.

    Args:
        words: the options of `accelerate launch`, and TRL's name for a set of them.
        gpu: whether the machine has GPUs, as many as are asked for.

    Raises:
        ValueError, OSError: the file of options cannot be read, or options exclude each other.
    """
    try:
        return _read(words, gpu)
    except (AttributeError, TypeError) as error:
        raise ValueError(f"the options of `accelerate launch` cannot be used: {error}") from error


def single_process_warnings(processes: Processes) -> list[str]:
    """Nothing, or one warning: fewer processes than asked for would train with a part of each batch, in silence."""
    if processes.asked <= processes.count:
        return []
    return [
        f"num_processes={processes.asked}: on a CPU `accelerate launch` starts {processes.count} process, whose "
        "batches are then all that a step trains on. For several, name their kind: --multi_gpu instead of --cpu."
    ]


def _read(words: Sequence[str], gpu: bool) -> Processes:
    options = launch_parser().parse_args([*resolve_accelerate_config_argument(list(words)), "none.py"])
    kinds = [kind for kind in ("cpu", "multi_gpu", "use_deepspeed", "use_fsdp") if getattr(options, kind)]
    if len(kinds) > 1:
        raise ValueError(f"--{' and --'.join(kinds)}: `accelerate launch` takes one of them.")
    if options.multi_gpu and options.num_processes == 1:
        raise ValueError("--multi_gpu with num_processes=1: `accelerate launch` takes it for several. Leave it out.")
    named = options.config_file or (None if options.cpu or not isfile(DEFAULT) else DEFAULT)
    file = read_yaml(named) if named else {}
    kind = file.get("distributed_type")
    count = options.num_processes or file.get("num_processes")
    count = asked = count or max(1, torch.cuda.device_count() if options.multi_gpu else 1)
    if kind == "NO" and not options.multi_gpu:  # whatever number the file has
        count = asked = 1
    deepspeed, fsdp = options.use_deepspeed or kind == "DEEPSPEED", options.use_fsdp or kind == "FSDP"
    by_kind = deepspeed or fsdp or options.multi_gpu or kind == "MULTI_GPU"
    mpi = options.mpirun_hostfile or file.get("mpirun_config")
    if options.cpu or not (gpu or by_kind):
        count = asked if mpi else 1
    elif deepspeed:
        stage = options.zero_stage or file.get("deepspeed_config", {}).get("zero_stage", 2)
        return Processes(count, "zero3" if int(stage) == 3 else "zero2", asked)
    elif fsdp:
        return Processes(count, "fsdp2", asked)
    return Processes(count, "ddp" if count > 1 else "none", asked)
