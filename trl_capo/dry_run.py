"""What `trl-capo train --dry_run` does: look at everything that a training would start from, and start nothing.

The data are loaded, checked and tokenised, the model's config and tokenizer are read, the heads of its weights' files
compared with it, and the trainer is built of a model without memory. No weights are loaded, no process is started,
nothing is written but the caches of `datasets` and the hub. All problems are found in one go: what cannot be used is
left out, and the rest looked at. Exit code 0: no problem (there may be warnings); 1: problems. Not covered: what only
a running training shows.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from peft import PeftConfig
from transformers import PretrainedConfig
from trl import ModelConfig, get_peft_config, get_quantization_config

from trl_capo.arguments import Parser, launch_options, parse, refuse_unknown
from trl_capo.config import CAPOConfig
from trl_capo.data import refuse_unusable
from trl_capo.dry_run_figures import add_lengths, add_memory, add_steps
from trl_capo.dry_run_report import Findings, report, settings_lines
from trl_capo.groups import find_groups
from trl_capo.launch import Processes, read_launch, single_process_warnings
from trl_capo.lenient import UncheckedConfig, Usable, mend, parse_usable
from trl_capo.memory import empty_model
from trl_capo.models import check_model_path, load_config, load_tokenizer, refusing
from trl_capo.optimiser import optimiser_problems
from trl_capo.pair_logger import pair_log_folder
from trl_capo.paths import find_path, output_folder
from trl_capo.precision import bfloat16_warnings
from trl_capo.rehearsal import IMAGES, rehearse, unrehearsed_problems
from trl_capo.repeats import repeat_warnings
from trl_capo.stand_in import load_stand_in
from trl_capo.train import MISTAKES, DryRunArguments, check_resume, make_parser, model_options
from trl_capo.train_data import evaluation_split, load_splits, stream_problem, training_split
from trl_capo.weights import weight_problems

STREAM_ROWS = 1000


def asked_for(argv: Sequence[str]) -> bool:
    """Whether the command line or its YAML file asks for a dry run, whatever else is wrong with them."""
    for words in (argv, [word for word in argv if not word.startswith("--config")]):
        try:
            return parse(words, Parser((DryRunArguments,), add_help=False, allow_abbrev=False))[0][0].dry_run
        except (ValueError, OSError):  # of the YAML file, which the second try is without
            continue
    return True  # --dry_run, with a value that is none


def main(argv: Sequence[str]) -> int:
    """Check what the arguments describe, and say it; returns the exit code."""
    found = Findings()
    usable = parse_usable(argv, partial(make_parser, UncheckedConfig))
    found.problems += usable.problems
    if usable.elsewhere:
        found.elsewhere = True
        found.warnings.append(f"{usable.elsewhere} This machine has no GPU; the rest is checked for one that has.")
    if usable.parsed is not None:
        _check(found, usable)
    print(report(found))
    return 1 if found.problems else 0


def _check(found: Findings, usable: Usable) -> None:
    """Look at everything, each part by itself."""
    script_args, args, model_args, dataset_args, noise_args, _ = usable.parsed
    found.settings = settings_lines(usable.parsed)
    found.problems += mend(args)
    on_cpu = args.use_cpu and not found.elsewhere
    found.warnings += bfloat16_warnings(on_cpu=on_cpu, bf16=args.bf16, dtype=model_args.dtype)
    words, processes = usable.from_yaml + usable.from_argv, Processes()
    with _collecting(found.problems):
        refuse_unknown(words, make_parser(), launch_options())
        processes = read_launch(words, gpu=found.elsewhere or torch.accelerator.is_available())
        found.warnings += single_process_warnings(processes)
    train = evaluation = None
    with _collecting(found.problems):
        splits = load_splits(script_args, args, dataset_args)
        with _collecting(found.problems):
            train = training_split(splits, script_args, args, noise_args)
        with _collecting(found.problems):
            evaluation = evaluation_split(splits, script_args, args)
    pairs = _check_data(found, args, partial(stream_problem, script_args, dataset_args), train, evaluation)
    for look in (check_resume, lambda args: output_folder(args.output_dir), pair_log_folder):
        with _collecting(found.problems):
            look(args)
    model = _check_model(found, args, model_args)
    found.problems += unrehearsed_problems(args, model_args, train)
    adapter_fits = _check_training(found, args, model_args, processes, pairs, *model)
    config, tokenizer, peft_config = model
    if config is not None and tokenizer is not None and adapter_fits and not (args.fsdp or args.deepspeed):
        streaming = isinstance(train, IterableDataset)
        _rehearse(found, args, config, pairs, streaming=streaming, peft_config=peft_config)


@contextmanager
def _collecting(problems: list[str]) -> Iterator[None]:
    """Within it, the mistakes that end a training before it begins are collected instead."""
    try:
        yield
    except MISTAKES as error:
        problems.append(str(error) or type(error).__name__)


def _check_data(
    found: Findings, args: CAPOConfig, of_stream: Callable[[], str | None], train: Any, evaluation: Any
) -> Dataset | None:
    """The pairs to train on, of a stream its first rows; None if they cannot be used."""
    usable = False
    with _collecting(found.problems):
        check = partial(weight_problems, args)
        found.warnings += refuse_unusable(check, train_dataset=train, eval_dataset=evaluation)
        usable = train is not None
    if isinstance(train, IterableDataset) and args.max_steps <= 0:
        found.problems.append("max_steps: a stream has no known length, so say how many steps to train.")
    if not usable:
        return None
    if isinstance(train, IterableDataset):
        found.sampled = True
        try:
            train = Dataset.from_list(list(train.take(STREAM_ROWS)))
        except Exception as error:  # every reader of every format has its own errors
            found.problems.append(of_stream() or f"the stream cannot be read: {error}")
            return None
    found.warnings += repeat_warnings(train)
    found.pairs = len(train)
    return train


def _check_model(
    found: Findings, args: CAPOConfig, model_args: ModelConfig
) -> tuple[PretrainedConfig | None, Any, PeftConfig | None]:
    """The model's config, its tokenizer, and the adapter's config; None for what there is not, or cannot be used."""
    config = tokenizer = peft_config = stand_in = None
    name, told = model_args.model_name_or_path, f"model_name_or_path={model_args.model_name_or_path!r}"
    with _collecting(found.problems):
        check_model_path(name)
        options = model_options(args, model_args)
        own = {key: options[key] for key in ("revision", "trust_remote_code")}
        with _collecting(found.problems):
            tokenizer = load_tokenizer(name, told, **own)
        config = load_config(name, told, **own)
        if find_path(name) is not None:  # what is on the hub is not downloaded for this
            with refusing(f"{told} cannot be loaded"):
                stand_in = load_stand_in(name, config, options)
    with _collecting(found.problems):
        get_quantization_config(model_args)
        peft_config = get_peft_config(model_args)
    found.problems += optimiser_problems(args, stand_in)
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
) -> bool:
    """What takes data, model and settings together: lengths, steps, memory. False if the adapter does not fit."""
    longest = args.max_length
    if pairs is not None and IMAGES & set(pairs.column_names):
        found.warnings.append("pairs with images are tokenised while training: their lengths are not known before.")
    elif pairs is not None and tokenizer is not None:
        with _collecting(found.problems):
            longest = add_lengths(found, args, model_args.model_name_or_path, pairs, tokenizer)
    elif pairs is not None:
        with _collecting(found.problems):
            find_groups(pairs, args.group_column, "the training pairs")
    if found.pairs and not (found.sampled and args.max_steps <= 0):
        with _collecting(found.problems):
            add_steps(found, args, processes.count)
    if config is None or longest is None:
        return True
    with _collecting(found.problems), refusing("the adapter does not fit the model"):
        add_memory(found, args, model_args, processes, config, peft_config, longest)
        return True
    return False


def _rehearse(
    found: Findings,
    args: CAPOConfig,
    config: PretrainedConfig,
    pairs: Dataset | None,
    *,
    streaming: bool,
    peft_config: PeftConfig | None,
) -> None:
    """Build the trainer of a model without memory, where there can be one."""
    try:
        empty_model(config)
    except Exception:  # a model with code of its own, of which the estimate of the memory has warned
        return
    problem = rehearse(
        args,
        lambda: empty_model(copy.deepcopy(config)),
        None if pairs is None or not IMAGES & set(pairs.column_names) else pairs[0],
        streaming=streaming,
        elsewhere=found.elsewhere,
        peft_config=peft_config,
    )
    if problem is not None:
        found.problems.append(problem)
