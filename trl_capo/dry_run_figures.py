"""The figures of a dry run: token lengths per group, steps and memory."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import psutil
import torch
from datasets import Dataset
from trl import ModelConfig

from trl_capo.config import CAPOConfig
from trl_capo.dry_run_model import Model
from trl_capo.dry_run_report import Findings, memory_lines
from trl_capo.launch import Processes
from trl_capo.memory import ModelShape, Setting, model_shape
from trl_capo.stand_in import DTYPES
from trl_capo.token_lengths import ALL_PAIRS, measure_lengths


def add_lengths(
    found: Findings,
    args: CAPOConfig,
    model_name: str,
    pairs: Dataset,
    groups: tuple[str | None, Sequence[str] | None],
    tokenizer: Any,
) -> int | None:
    """Measure the pairs in tokens, and leave out those that the training does; returns the length of the longest.

    `groups` is as `find_groups` gives it.

    Raises:
        ValueError: a row cannot be tokenised, or no pair is left.
    """
    column, labels = groups
    found.group_name, found.max_length = column or "group", args.max_length
    drops = args.truncation_mode == "keep_start"
    found.lengths = measure_lengths(pairs, labels, tokenizer, model_name, max_length=args.max_length, drops=drops)
    everything = found.lengths[ALL_PAIRS]
    found.pairs -= everything.dropped
    if not found.pairs:
        raise ValueError(f"max_length={args.max_length}: every prompt is at least that long.")
    return min(max(everything.pairs), args.max_length or math.inf)


def add_steps(found: Findings, args: CAPOConfig, processes: int) -> None:
    """How many steps the training makes.

    Raises:
        ValueError: none.
    """
    found.steps = steps_line(args, found.pairs, processes, sampled=found.sampled)
    if not optimiser_steps(args, found.pairs, processes):
        raise ValueError(
            f"dataloader_drop_last: {found.pairs:,} pairs do not fill a batch of every process. Give a "
            f"per_device_train_batch_size below {args.per_device_train_batch_size:,}."
        )


def add_memory(
    found: Findings,
    args: CAPOConfig,
    model_args: ModelConfig,
    processes: Processes,
    model: Model,
    longest: int,
) -> None:
    """Estimate the memory, and hold it against this machine's; a model that the formula is not for is warned of.

    `model` has a config.

    Raises:
        Exception: the adapter does not fit the model.
    """
    try:
        shape: ModelShape = model_shape(model.config)
    except Exception as error:  # a model with code of its own, or not of the kind that the formula is for
        found.warnings.append(f"the memory is not estimated: {type(error).__name__}: {error}")
        return
    shape = shape if model.peft_config is None else model_shape(model.config, model.peft_config)
    gpu = torch.cuda.is_available() and not args.use_cpu
    setting = replace(_setting(args, model_args, model, processes, longest), gpu=gpu or found.elsewhere)
    device = None if found.elsewhere else _device_memory(gpu, processes.count)
    found.memory = memory_lines(shape, setting, device, found.warnings)


def optimiser_steps(args: CAPOConfig, pairs: int, processes: int) -> int:
    """How many optimiser steps Transformers' trainer makes of so many pairs."""
    if args.max_steps > 0:
        return args.max_steps
    round_up = math.floor if args.dataloader_drop_last else math.ceil
    batches = round_up(round_up(pairs / args.per_device_train_batch_size) / processes)
    return math.ceil(args.num_train_epochs * math.ceil(batches / args.gradient_accumulation_steps))


def steps_line(args: CAPOConfig, pairs: int, processes: int, *, sampled: bool) -> str:
    """Pairs, the size of a step, and steps."""
    sizes = (args.per_device_train_batch_size, args.gradient_accumulation_steps, processes)
    steps = optimiser_steps(args, pairs, processes)
    per_step = math.prod(sizes)
    known = "a stream" if sampled else f"{steps * per_step / pairs:.1f} epochs of {pairs:,} pairs"
    on = "1 process" if processes == 1 else f"{processes:,} processes"
    return (
        f"{steps:,} optimiser steps of {per_step:,} pairs, {known} ({sizes[0]} a device x {sizes[1]} accumulated x "
        f"{on})"
    )


def _setting(args: CAPOConfig, model_args: ModelConfig, model: Model, processes: Processes, longest: int) -> Setting:
    name = model.options.get("dtype")
    dtype = getattr(torch, name) if name in DTYPES and name != "auto" else model.config.dtype
    weight_bytes = (dtype or torch.float32).itemsize
    bits = 8 if model_args.load_in_8bit else None
    if model_args.load_in_4bit:
        bits = 4.127 if model_args.use_bnb_nested_quant else 4.5
    optimizer = "adam 8 bit" if "8bit" in args.optim else "adam" if "adam" in args.optim else "none"
    return Setting(
        pairs=args.per_device_train_batch_size,
        tokens=longest,
        weight_bytes=weight_bytes,
        compute_bytes=2 if args.bf16 or args.fp16 else weight_bytes,
        bits=bits,
        checkpointing=args.gradient_checkpointing,
        reference=not (model_args.use_peft or args.precompute_ref_log_probs),
        optimizer=optimizer,
        processes=processes.count,
        sharding=processes.sharding,
    )


def _device_memory(gpu: bool, processes: int) -> tuple[int, str]:
    """Bytes that a process has here, and of what."""
    if gpu:
        return torch.cuda.get_device_properties(0).total_memory, torch.cuda.get_device_name(0)
    return psutil.virtual_memory().total // processes, "main memory"
