"""What `trl-capo train` does, in one process: load the data, build a CAPOTrainer, train, save.

Run it as `trl-capo train --config FILE` (which starts it through `accelerate launch`), as
`accelerate launch scripts/train_capo.py --config FILE`, or call `train` from Python. Arguments and YAML keys are those
of `trl dpo`, with CAPOConfig in place of DPOConfig. Mistakes in the arguments, the data or the model's folder end with
one message and exit code 2, before a model is loaded; a loss that is not finite ends with one message and exit code 1;
what else fails while training keeps its traceback.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from trl import (
    DatasetMixtureConfig,
    ModelConfig,
    ScriptArguments,
    get_peft_config,
    get_quantization_config,
)

from trl_capo.arguments import Parser, parse_alone
from trl_capo.checkpoints import choose_checkpoint
from trl_capo.config import CAPOConfig
from trl_capo.models import check_model_path, load_config, load_tokenizer
from trl_capo.noise_arguments import NoiseArguments
from trl_capo.nonfinite import NonFiniteLoss
from trl_capo.optimiser import optimiser_problems
from trl_capo.paths import output_folder
from trl_capo.plain import print_error
from trl_capo.rehearsal import unrehearsed_problems
from trl_capo.stand_in import load_stand_in, model_option_problems
from trl_capo.train_data import data_source, load_data, stream_problem
from trl_capo.trainer import CAPOTrainer


@dataclass
class DryRunArguments:
    """What `trl-capo train` does instead of training."""

    dry_run: bool = field(
        default=False,
        metadata={"help": "Check settings, data, model and memory without training; exit code 0, or 1 with problems."},
    )


MISTAKES = (ValueError, NotImplementedError, OSError, ImportError, SafetensorError)
"""What arguments, data and models' files that cannot be used raise: the message is for the user."""

ARGUMENT_TYPES = (ScriptArguments, CAPOConfig, ModelConfig, DatasetMixtureConfig, NoiseArguments, DryRunArguments)


def make_parser(config_type: type[CAPOConfig] = CAPOConfig) -> Parser:
    """The parser of the command's arguments: `trl dpo`'s, with CAPO's options."""
    usage = "trl-capo train [--config FILE.yaml] [--OPTION VALUE ...] [options of `accelerate launch`]"
    types = (config_type if kind is CAPOConfig else kind for kind in ARGUMENT_TYPES)
    return Parser(tuple(types), prog="trl-capo train", usage=usage)


def build_trainer(
    script_args: ScriptArguments,
    training_args: CAPOConfig,
    model_args: ModelConfig,
    dataset_args: DatasetMixtureConfig,
    noise_args: NoiseArguments | None = None,
    dry_run_args: DryRunArguments | None = None,
) -> CAPOTrainer:
    """Load the data and build the trainer that these arguments describe; noise is for the training split alone.

    Raises:
        ValueError, OSError: something is missing or does not fit; the message is for the user.
    """
    if dry_run_args is not None and dry_run_args.dry_run:
        raise ValueError("dry_run: it starts no processes. Run `trl-capo train --dry_run` with these options.")
    name = model_args.model_name_or_path
    check_model_path(name)
    options = {"revision": model_args.model_revision, "trust_remote_code": training_args.trust_remote_code}
    config = load_config(name, f"model_name_or_path={name!r}", **options)
    load_tokenizer(name, f"model_name_or_path={name!r}", **options)
    check_resume(training_args)
    train_dataset, eval_dataset = load_data(script_args, training_args, dataset_args, noise_args)
    training_args.model_init_kwargs = model_options(training_args, model_args)
    if os.environ.get("LOCAL_RANK", "0") == "0":  # the first process of a machine looks, for all of them
        stand_in = load_stand_in(name, config, training_args.model_init_kwargs)
        problems = model_option_problems(training_args.model_init_kwargs)
        problems += optimiser_problems(training_args, stand_in)
        problems += unrehearsed_problems(training_args, model_args, train_dataset)
        if problems:
            raise ValueError("\n".join(problems))
    trainer = CAPOTrainer(
        model=name,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    if trainer._capo_pair_logger is not None:
        trainer._capo_pair_logger.source = data_source(script_args, training_args, dataset_args, noise_args)
    if script_args.ignore_bias_buffers:
        trainer.model._ddp_params_and_buffers_to_ignore = [
            name for name, buffer in trainer.model.named_buffers() if buffer.dtype == torch.bool
        ]
    return trainer


def model_options(training_args: CAPOConfig, model_args: ModelConfig) -> dict[str, Any]:
    """The options of the model's `from_pretrained`."""
    if isinstance(training_args.model_init_kwargs, str):
        raise ValueError(f"model_init_kwargs={training_args.model_init_kwargs!r}: give a mapping, in YAML or as JSON.")
    return {
        "revision": model_args.model_revision,
        "trust_remote_code": training_args.trust_remote_code,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }


def check_resume(training_args: CAPOConfig) -> None:
    """`true` and `false` on a command line mean the last whole checkpoint, and none; a path must be a whole one."""
    named = training_args.resume_from_checkpoint
    if isinstance(named, str) and named.lower() in ("true", "false"):
        training_args.resume_from_checkpoint = named.lower() == "true"
    elif isinstance(named, str):
        training_args.resume_from_checkpoint = choose_checkpoint(named, training_args.output_dir)


def train(trainer: CAPOTrainer, *, dataset_name: str | None = None) -> None:
    """Train (or resume), save the model into the output folder, and push it if asked to."""
    args = trainer.args
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model(args.output_dir)
    trainer.accelerator.print(f"Training completed. Model saved to {args.output_dir}.")
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=dataset_name)
        trainer.accelerator.print(f"Model pushed to the hub as {trainer.hub_model_id}.")
    if torch.distributed.is_initialized():
        # Gloo's threads put down their last work under Python's lock, which a group that is destroyed holds while it
        # waits for them (seen with torch 2.13): now and then processes on CPUs would never end.
        time.sleep(0.5)
    trainer.end()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one process of a training; returns the exit code."""
    output, existed = None, True
    try:
        parsed = parse_alone(sys.argv[1:] if argv is None else argv, make_parser())
        output = output_folder(parsed[1].output_dir)
        existed = output.exists()
        trainer = build_trainer(*parsed)
    except Exception as error:  # of TRL's, Transformers' and PEFT's checks, and of the readers of models' files
        if not existed and output.is_dir() and not any(output.iterdir()):
            output.rmdir()  # the trainer had made it when it failed
        if not isinstance(error, MISTAKES):
            error = RuntimeError(
                f"the trainer cannot be built: {type(error).__name__}: {error}\nWhere it happens, "
                "trl_capo.train.build_trainer says from Python."
            )
        _say(error)
        return 2
    try:
        train(trainer, dataset_name=parsed[0].dataset_name)
    except NonFiniteLoss as error:
        _say(error)
        return 1
    except Exception as error:
        names_no_metric = isinstance(error, KeyError) and "metric_for_best_model" in str(error)
        problem = error.args[0] if names_no_metric else stream_problem(parsed[0], parsed[3])
        if problem is None:
            raise
        print_error("trl-capo train", ValueError(problem))  # of the process that read it
        return 1
    return 0


def _say(error: Exception) -> None:
    if os.environ.get("RANK", "0") == "0":  # every process finds the same mistake
        print_error("trl-capo train", error)


if __name__ == "__main__":
    sys.exit(main())
