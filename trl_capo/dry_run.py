"""What `trl-capo train --dry_run` does: look at everything that a training would start from, and start nothing.

The data are loaded, checked and tokenised, the model's config and tokenizer are read and its parameters counted
without memory. No weights are loaded, no process is started, nothing is written but the caches of `datasets` and the
hub. All problems are found in one go. Exit code 0: no problem (there may be warnings); 1: problems; 2: a command line
that cannot be read. Not covered: what only a running training shows.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import psutil
import torch
from datasets import Dataset, IterableDataset
from peft import PeftConfig
from transformers import PretrainedConfig
from trl import ModelConfig, get_peft_config, get_quantization_config

from trl_capo.arguments import Parser, launch_options, parse, refuse_unknown
from trl_capo.config import CAPOConfig
from trl_capo.data import refuse_unusable
from trl_capo.dry_run_report import Findings, memory_lines, report, settings_lines
from trl_capo.groups import find_groups
from trl_capo.launch import Processes, read_launch
from trl_capo.memory import Setting, model_shape
from trl_capo.models import check_model_path, load_config, load_tokenizer, refusing
from trl_capo.paths import output_folder
from trl_capo.plain import print_error
from trl_capo.repeats import repeat_warnings
from trl_capo.token_lengths import ALL_PAIRS, measure_lengths
from trl_capo.train import ARGUMENT_TYPES, MISTAKES, DryRunArguments, check_resume, load_data, make_parser
from trl_capo.weights import weight_problems

STREAM_ROWS = 1000


def asked_for(argv: Sequence[str]) -> bool:
    """Whether the command line or its YAML file asks for a dry run, whatever else is wrong with them."""
    try:
        (run,), _, _ = parse(argv, Parser((DryRunArguments,), add_help=False, allow_abbrev=False))
    except (ValueError, OSError):
        return False
    return run.dry_run


def main(argv: Sequence[str]) -> int:
    """Check what the arguments describe, and say it; returns the exit code."""
    found = Findings()
    parser, parsed = make_parser(), None
    try:
        with _collecting(found.problems):
            parsed, from_yaml, from_argv = parse(argv, parser)
        if parsed is None and not torch.cuda.is_available():
            parsed, from_yaml, from_argv = _as_elsewhere(found, argv, parser)
        if parsed is None:  # CAPOConfig refused its options: what does not depend on them is checked all the same
            others = [kind for kind in ARGUMENT_TYPES if kind is not CAPOConfig]
            (script_args, *rest), _, _ = parse(argv, Parser(others, prog=parser.prog))
            training_args, processes = None, Processes()
        else:
            refuse_unknown(from_yaml + from_argv, parser, launch_options())
            script_args, training_args, *rest = parsed
            processes = read_launch(from_yaml + from_argv)
    except (ValueError, OSError) as error:
        print_error("trl-capo train", error)
        return 2
    model_args, dataset_args, noise_args, _ = rest
    if parsed is not None:
        found.settings = settings_lines(parsed)
    data = None
    with _collecting(found.problems):
        assumed = training_args or SimpleNamespace(eval_strategy="no", group_column="auto")
        data = load_data(script_args, assumed, dataset_args, noise_args)
    pairs = None if data is None else _check_data(found, training_args, *data)
    source = _check_model(found, training_args, model_args)
    if training_args is not None:
        with _collecting(found.problems):
            check_resume(training_args)
        with _collecting(found.problems):
            output_folder(training_args.output_dir)
        _check_training(found, training_args, model_args, processes, pairs, *source)
    print(report(found))
    return 1 if found.problems else 0


def _as_elsewhere(found: Findings, argv: Sequence[str], parser: Parser) -> tuple[tuple | None, list, list]:
    """Parse again as though `use_cpu` were set, which a machine without a GPU may insist on, such as a login node."""
    try:
        again = parse([*argv, "--use_cpu", "true"], parser)
    except ValueError as error:
        found.problems += [str(error)] if str(error) not in found.problems else []
        return None, [], []
    found.elsewhere = True
    found.warnings.append(f"{found.problems.pop()} This machine has no GPU; the rest is checked for one that has.")
    return again


@contextmanager
def _collecting(problems: list[str]) -> Iterator[None]:
    """Within it, the mistakes that end a training before it begins are collected instead."""
    try:
        yield
    except MISTAKES as error:
        problems.append(str(error))


def _check_data(found: Findings, args: CAPOConfig | None, train: Any, evaluation: Any) -> Dataset | None:
    """The pairs to train on, of a stream its first rows; None if they cannot be used."""
    usable = False
    with _collecting(found.problems):
        check = partial(weight_problems, args)
        found.warnings += refuse_unusable(check, train_dataset=train, eval_dataset=evaluation)
        usable = True
    if not usable:
        return None
    if isinstance(train, IterableDataset):
        found.sampled = True
        if args is not None and args.max_steps <= 0:
            found.problems.append("max_steps: a stream has no known length, so say how many steps to train.")
        train = Dataset.from_list(list(train.take(STREAM_ROWS)))
    found.warnings += repeat_warnings(train)
    found.pairs = len(train)
    return train


def _check_model(
    found: Findings, args: CAPOConfig | None, model_args: ModelConfig
) -> tuple[PretrainedConfig | None, Any, PeftConfig | None]:
    """The model's config, its tokenizer, and the adapter's config; None for what there is not."""
    config = tokenizer = peft_config = None
    name, told = model_args.model_name_or_path, f"model_name_or_path={model_args.model_name_or_path!r}"
    options = {"revision": model_args.model_revision, "trust_remote_code": bool(args and args.trust_remote_code)}
    with _collecting(found.problems):
        check_model_path(name)
        config = load_config(name, told, **options)
        tokenizer = load_tokenizer(name, told, **options)
    with _collecting(found.problems):
        get_quantization_config(model_args)
        peft_config = get_peft_config(model_args)
    return config, tokenizer, peft_config


def _check_training(
    found: Findings,
    args: CAPOConfig,
    model_args: ModelConfig,
    processes: Processes,
    pairs: Dataset | None,
    config: PretrainedConfig | None,
    tokenizer: Any,
    peft_config: PeftConfig | None,
) -> None:
    """What takes data, model and settings together: lengths, steps, memory."""
    longest = args.max_length
    if pairs is not None and {"image", "images"} & set(pairs.column_names):
        found.warnings.append("pairs with images are tokenised while training: their lengths are not known before.")
    elif pairs is not None and tokenizer is not None:
        with _collecting(found.problems):
            column, labels = find_groups(pairs, args.group_column, "the training pairs")
            found.group_name, found.max_length = column or "group", args.max_length
            drops = args.truncation_mode == "keep_start"
            found.lengths = measure_lengths(
                pairs, labels, tokenizer, model_args.model_name_or_path, max_length=args.max_length, drops=drops
            )
            everything = found.lengths[ALL_PAIRS]
            longest = min(max(everything.pairs), args.max_length or math.inf)
            found.pairs -= everything.dropped
            if not found.pairs:
                found.problems.append(f"max_length={args.max_length}: every prompt is at least that long.")
    if found.pairs and not (found.sampled and args.max_steps <= 0):
        found.steps = steps_line(args, found.pairs, processes.count, sampled=found.sampled)
        if not optimiser_steps(args, found.pairs, processes.count):
            found.problems.append(
                f"dataloader_drop_last: {found.pairs:,} pairs do not fill a batch of every process. Give a "
                f"per_device_train_batch_size below {args.per_device_train_batch_size:,}."
            )
    if config is None or longest is None:
        return
    try:
        shape = model_shape(config)
    except Exception as error:  # a model with code of its own, or not of the kind that the formula is for
        found.warnings.append(f"the memory is not estimated: {type(error).__name__}: {error}")
        return
    with _collecting(found.problems), refusing("the adapter does not fit the model"):
        shape = shape if peft_config is None else model_shape(config, peft_config)
        setting = _setting(args, model_args, config, processes, longest)
        gpu = torch.cuda.is_available() and not args.use_cpu
        setting = replace(setting, gpu=gpu or found.elsewhere)
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


def _setting(
    args: CAPOConfig, model_args: ModelConfig, config: PretrainedConfig, processes: Processes, longest: int
) -> Setting:
    name = (args.model_init_kwargs or {}).get("dtype", model_args.dtype)
    dtype = config.dtype if name in ("auto", None) else getattr(torch, name)
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
