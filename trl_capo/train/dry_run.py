"""`trl-capo train --dry_run`: check the options and the data of a training run, and count its steps.

Nothing is trained or written, and no weights are loaded: config and tokenizer stand for the model. The first error
ends the dry run. Not covered: what only the trainer's constructor or training itself can refuse.
"""

import math
import textwrap
from collections.abc import Sequence
from os.path import isfile

import numpy as np
import pandas as pd
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from datasets import Dataset
from transformers import AutoConfig, AutoTokenizer
from trl.cli.accelerate_config import resolve_accelerate_config_argument

from trl_capo.common.command import model_problem, parse_with_rest, processes, run
from trl_capo.common.text import count, escape, text_table
from trl_capo.core.config import CAPOConfig
from trl_capo.core.pairs import PROBE, PairIndex, find_groups, read_trust
from trl_capo.data.load import check_pairs
from trl_capo.data.tokenise import ALL_PAIRS, length_table, length_warnings, measure_lengths
from trl_capo.train.card import changed_options
from trl_capo.train.command import ARGUMENT_TYPES, PROG, asks_annotation, load_data

STREAM_ROWS = 1000


def main(argv: Sequence[str]) -> int:
    return run(PROG, dry_run, argv)


def dry_run(argv: Sequence[str]) -> None:
    """Check the options and print the report; raise what `run` handles for an error."""
    parsed, launch_options = parse_with_rest(argv, ARGUMENT_TYPES, PROG)
    processes()
    script_args, args, model_args, dataset_args, noise_args, own_args = parsed
    launched = launched_processes(launch_options)
    _show("Settings", [", ".join(changed_options(parsed))])
    train, evaluation = load_data(script_args, args, dataset_args, noise_args)
    pairs = train if isinstance(train, Dataset) else Dataset.from_list(list(train.take(STREAM_ROWS)))
    warnings = check_pairs(pairs, "train_dataset")
    warnings += [] if evaluation is None else check_pairs(evaluation, "eval_dataset")
    annotates = asks_annotation(own_args, args, train)
    index = PairIndex(args.group_column, "none" if annotates else args.witness, args.noise_rate)
    index.add_columns(train, "train_dataset")
    column, labels = find_groups(pairs, args.group_column, "train_dataset")
    where = "" if pairs is train else " at the start of a stream"
    groups = f" in {count(len(set(labels)), 'group')} by {column}" if labels else ""
    evidence = [_evidence(pairs, labels, PROBE if annotates else args.witness)] if args.noise_rate == "auto" else []
    _show("Data", [count(len(pairs), "training pair") + where + groups, *evidence])
    name, hub = model_args.model_name_or_path, {"revision": model_args.model_revision}
    hub["trust_remote_code"] = args.trust_remote_code
    try:
        _, tokenizer = (part.from_pretrained(name, **hub) for part in (AutoConfig, AutoTokenizer))
    except (OSError, ValueError) as error:
        raise ValueError(f"model_name_or_path={name!r}: {model_problem(name, error)}") from error
    lengths = measure_lengths(pairs, labels, tokenizer, name, args.max_length, "train_dataset")
    _show("Tokens of prompt and longer completion", text_table(length_table(lengths, column or "group")).splitlines())
    drops = args.truncation_mode == "keep_start"
    warnings += length_warnings(lengths, args.max_length, drops=drops)
    if isinstance(evaluation, Dataset):
        labels = find_groups(evaluation, args.group_column, "eval_dataset")[1]
        there = measure_lengths(evaluation, labels, tokenizer, name, args.max_length, "eval_dataset")
        warnings += [f"eval_dataset: {line}" for line in length_warnings(there, args.max_length, drops=drops)]
    known = len(pairs) - drops * int(lengths.loc[ALL_PAIRS, "too_long"]) if pairs is train else None
    _show("Steps", [_steps(args, known, launched)])
    _show("Warnings", [f"- {warning}" for warning in warnings])
    print(f"Dry run: no error, {count(len(warnings), 'warning')}. Nothing was trained or written.")


def _evidence(pairs: Dataset, labels: Sequence[str] | None, witness: str) -> str:
    """Say what is known about the labels besides the model's own view of them."""
    by_group = pd.Series(read_trust(pairs) > 0).groupby(np.array(labels or [""] * len(pairs))).sum()
    hint = "" if by_group.min() >= 10 else "; 10 to 20 checked labels per group help if many labels are wrong"
    spread = f", {by_group.min()} to {by_group.max()} per group" if labels and by_group.any() else ""
    witness += " (--annotate adds one)" if witness == "none" else ""
    return f"evidence about noise: {count(int(by_group.sum()), 'trusted label')}{spread}{hint}; witness: {witness}"


def launched_processes(words: Sequence[str]) -> int:
    """Return how many processes these options of `accelerate launch` start."""
    args = launch_command_parser().parse_args([*resolve_accelerate_config_argument(list(words)), "none.py"])
    file = vars(load_config_from_file(args.config_file)) if args.config_file or isfile(default_config_file) else {}
    return args.num_processes or file.get("num_processes") or 1


def _show(title: str, lines: Sequence[str]) -> None:
    wrap = textwrap.TextWrapper(119, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
    if lines:
        print(title, *(wrap.fill(escape(line)) for line in lines), "", sep="\n")


def optimiser_steps(args: CAPOConfig, pairs: int, processes: int) -> int:
    """Count the optimiser steps that Transformers' trainer makes with so many pairs."""
    if args.max_steps > 0:
        return args.max_steps
    round_up = math.floor if args.dataloader_drop_last else math.ceil
    batches = round_up(pairs / (args.per_device_train_batch_size * processes))
    return math.ceil(args.num_train_epochs * math.ceil(batches / args.gradient_accumulation_steps))


def _steps(args: CAPOConfig, pairs: int | None, processes: int) -> str:
    """Describe the steps; `pairs` is None for a stream."""
    if pairs is None and args.max_steps <= 0:
        raise ValueError("max_steps: a stream has no known length, so give the number of steps to train.")
    batch, accumulated = args.per_device_train_batch_size, args.gradient_accumulation_steps
    steps, size = optimiser_steps(args, pairs or 0, processes), batch * accumulated * processes
    if pairs == 0 or not steps:
        raise ValueError(f"{pairs} pairs of fitting length are too few for a batch of {batch} per process.")
    epochs = "from a stream" if pairs is None else f"{steps * size / pairs:.1f} epochs of {count(pairs, 'pair')}"
    parts = f"{batch} per device x {accumulated} accumulated x {processes} process{'' if processes == 1 else 'es'}"
    return f"{count(steps, 'optimiser step')} of {count(size, 'pair')} ({parts}), {epochs}"
