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
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from datasets import Dataset
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
from trl_capo.data import load_mixture, load_preference_data, select_split
from trl_capo.groups import find_groups
from trl_capo.messages import get_logger
from trl_capo.models import check_model_path, load_config, load_tokenizer
from trl_capo.noise import IS_NOISY, inject_noise, noise_counts
from trl_capo.noise_arguments import NoiseArguments
from trl_capo.nonfinite import NonFiniteLoss
from trl_capo.paths import output_folder
from trl_capo.plain import print_error
from trl_capo.trainer import CAPOTrainer

logger = get_logger(__name__)


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


def make_parser() -> Parser:
    """The parser of the command's arguments: `trl dpo`'s, with CAPO's options."""
    usage = "trl-capo train [--config FILE.yaml] [--OPTION VALUE ...] [options of `accelerate launch`]"
    return Parser(ARGUMENT_TYPES, prog="trl-capo train", usage=usage)


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
    for read in (load_config, load_tokenizer):
        read(name, f"model_name_or_path={name!r}", **options)
    check_resume(training_args)
    train_dataset, eval_dataset = load_data(script_args, training_args, dataset_args, noise_args)
    if isinstance(training_args.model_init_kwargs, str):
        raise ValueError(f"model_init_kwargs={training_args.model_init_kwargs!r}: give a mapping, in YAML or as JSON.")
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "trust_remote_code": training_args.trust_remote_code,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    trainer = CAPOTrainer(
        model=name,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    if trainer._capo_pair_logger is not None:
        trainer._capo_pair_logger.source = _source(script_args, training_args, dataset_args, noise_args)
    if script_args.ignore_bias_buffers:
        trainer.model._ddp_params_and_buffers_to_ignore = [
            name for name, buffer in trainer.model.named_buffers() if buffer.dtype == torch.bool
        ]
    return trainer


def _source(
    script_args: ScriptArguments,
    training_args: CAPOConfig,
    dataset_args: DatasetMixtureConfig,
    noise_args: NoiseArguments | None,
) -> dict[str, Any] | None:
    """The options that name the training data, for whoever reads the pair log; None for a mixture."""
    if dataset_args.datasets:
        return None
    named = {name: getattr(script_args, name) for name in ("dataset_name", "dataset_config", "dataset_train_split")}
    return named | {"group_column": training_args.group_column} | asdict(noise_args or NoiseArguments())


def load_data(
    script_args: ScriptArguments,
    training_args: CAPOConfig,
    dataset_args: DatasetMixtureConfig,
    noise_args: NoiseArguments | None,
) -> tuple[Any, Any]:
    """The data sets that the arguments name, to train on and to evaluate on (None where nothing is evaluated).

    Raises:
        ValueError, OSError: as `build_trainer`.
    """
    if dataset_args.datasets:
        if script_args.dataset_name:
            logger.warning("dataset_name is not used, because `datasets` is given.")
        splits = load_mixture(dataset_args)
    elif script_args.dataset_name:
        splits = load_preference_data(
            script_args.dataset_name, config=script_args.dataset_config, streaming=script_args.dataset_streaming
        )
    else:
        raise ValueError("no data: give dataset_name (a hub name, folder or file) or a `datasets` mixture.")
    train_dataset = select_split(splits, script_args.dataset_train_split, "dataset_train_split")
    if noise_args is not None and noise_args.inject_noise is not None:
        train_dataset = _with_noise(train_dataset, noise_args, training_args.group_column)
    if training_args.eval_strategy == "no":
        return train_dataset, None
    return train_dataset, select_split(splits, script_args.dataset_test_split, "dataset_test_split")


def _with_noise(dataset: Dataset, args: NoiseArguments, group_column: str | None) -> Dataset:
    """The training pairs with the noise that was asked for; says how many of each group were changed."""
    asked = f"inject_noise={args.inject_noise!r}, inject_rate={args.inject_rate!r}, inject_seed={args.inject_seed}"
    try:
        dataset = inject_noise(
            dataset,
            args.inject_noise,
            args.inject_rate,
            seed=args.inject_seed,
            group_column=group_column,
            score_column=args.inject_score_column,
        )
    except ValueError as error:
        raise ValueError(f"{asked}: {error}") from error
    _, labels = find_groups(dataset, group_column, "the training pairs")
    counts = noise_counts(labels, dataset[IS_NOISY])
    per_group = ", ".join(f"{group} {noisy:,} of {pairs:,}" for group, (pairs, noisy) in counts.items())
    logger.warning(
        f"{asked}: {sum(dataset[IS_NOISY]):,} of {len(dataset):,} training pairs were changed"
        + (f" ({per_group})" if counts else "")
    )
    return dataset


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
    return 0


def _say(error: Exception) -> None:
    if os.environ.get("RANK", "0") == "0":  # every process finds the same mistake
        print_error("trl-capo train", error)


if __name__ == "__main__":
    sys.exit(main())
