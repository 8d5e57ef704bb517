"""What `trl-capo train --dry_run` does: look at everything that a training would start from, and start nothing.

The data are loaded, checked and tokenised, the model's config and tokenizer are read, the heads of its weights' files
compared with it, and the trainer is built of a model without memory. No weights are loaded, no process is started,
nothing is written but the caches of `datasets` and the hub. All problems are found in one go: what cannot be used is
left out, and the rest looked at. Exit code 0: no problem (there may be warnings); 1: problems. Not covered: what only
a running training shows.
"""

from collections.abc import Sequence
from functools import partial
from itertools import chain

import torch
from trl import ModelConfig

from trl_capo.arguments import Parser, launch_options, parse, refuse_unknown
from trl_capo.config import CAPOConfig
from trl_capo.dry_run_data import Data, check_data
from trl_capo.dry_run_figures import add_lengths, add_memory, add_steps
from trl_capo.dry_run_model import Model, check_model, check_trainer
from trl_capo.dry_run_report import Findings, report, settings_lines
from trl_capo.launch import Processes, read_launch, single_process_warnings
from trl_capo.lenient import UncheckedConfig, Usable, by_option, leave_out, mend, parse_usable
from trl_capo.models import refusing
from trl_capo.pair_logger import check_pair_log
from trl_capo.paths import output_folder
from trl_capo.precision import bfloat16_warnings
from trl_capo.rehearsal import IMAGES, unrehearsed_problems
from trl_capo.train import DryRunArguments, check_resume, make_parser


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
    _, args, model_args, _, _, _ = usable.parsed
    found.settings = settings_lines(usable.parsed)
    found.problems += mend(args)
    on_cpu = args.use_cpu and not found.elsewhere
    found.warnings += bfloat16_warnings(on_cpu=on_cpu, bf16=args.bf16, dtype=model_args.dtype)
    processes = _check_words(found, usable.from_yaml + usable.from_argv)
    data = check_data(found, usable)
    for look in (check_resume, lambda args: output_folder(args.output_dir)):
        with found.collecting():
            look(args)
    with found.collecting():
        check_pair_log(args, data.trained_on)
    model = check_model(found, usable)
    found.problems += unrehearsed_problems(args, model_args, data.train)
    adapter_fits = _check_training(found, args, model_args, processes, data, model)
    if not (args.fsdp or args.deepspeed):
        check_trainer(found, args, model, data, adapter_fits=adapter_fits)


def _check_words(found: Findings, words: Sequence[str]) -> Processes:
    """What the command's parser does not know must be options of `accelerate launch`: the processes that they mean."""
    known = launch_options()
    with found.collecting():
        refuse_unknown(words, make_parser(), known)
    options = {name: group for name, group in by_option(words).items() if f"--{name}" in known}
    gpu = found.elsewhere or torch.accelerator.is_available()
    processes, problems = leave_out(options, lambda options: read_launch(list(chain(*options.values())), gpu=gpu))
    found.problems += problems
    processes = processes or Processes()
    found.warnings += single_process_warnings(processes)
    return processes


def _check_training(
    found: Findings, args: CAPOConfig, model_args: ModelConfig, processes: Processes, data: Data, model: Model
) -> bool:
    """What takes data, model and settings together: lengths, steps, memory. False if the adapter does not fit."""
    longest, pairs = args.max_length, data.pairs
    if pairs is not None and IMAGES & set(pairs.column_names):
        found.warnings.append("pairs with images are tokenised while training: their lengths are not known before.")
    elif pairs is not None and model.tokenizer is not None:
        with found.collecting():
            longest = add_lengths(found, args, model_args.model_name_or_path, pairs, data.groups, model.tokenizer)
    if found.pairs and not (found.sampled and args.max_steps <= 0):
        with found.collecting():
            add_steps(found, args, processes.count)
    if model.config is None or longest is None:
        return True
    with found.collecting(), refusing("the adapter does not fit the model"):
        add_memory(found, args, model_args, processes, model, longest)
        return True
    return False
