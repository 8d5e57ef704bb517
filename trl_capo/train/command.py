"""`trl-capo train`: what each training process does, with the arguments and YAML files of `trl dpo`."""

import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import torch
from accelerate.logging import get_logger
from datasets import Dataset
from transformers import AutoConfig, AutoProcessor, PreTrainedTokenizerBase
from transformers.trainer import TRAINER_STATE_NAME
from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, get_peft_config, get_quantization_config

from trl_capo.callbacks.health import NonFiniteLoss, StopOnNonFinite, TrainingHealth
from trl_capo.callbacks.pair_log import PairLog
from trl_capo.callbacks.preemption import CheckpointOnSigterm, last_complete_checkpoint
from trl_capo.common.command import model_problem, parse_with_rest, processes, run
from trl_capo.core.config import CAPOConfig
from trl_capo.core.pairs import PAIR, PROBE, find_groups
from trl_capo.data.load import check_pairs, load_mixture, load_pairs, select_split
from trl_capo.data.noise import IS_NOISY, NoiseArguments, inject_noise
from trl_capo.data.tokenise import BAD_ROW, length_warnings, summarise_lengths, tokenise_rows
from trl_capo.scoring.annotate import ReferenceArguments, annotate, check_annotatable
from trl_capo.train.card import CardTrainer

logger = get_logger(__name__)

PROG = "trl-capo train"
USAGE = f"{PROG} [--config FILE.yaml] [--OPTION VALUE ...] [options of `accelerate launch`]"
CHECKED_ROWS = 100  # that are tokenised before the model loads
_PAIR_LOG = "Log every pair of every step for `trl-capo audit`: true for output_dir/pair_log, or the name of a folder."


@dataclass
class TrainArguments:
    pair_log: str | None = field(default=None, metadata={"nargs": "?", "const": "true", "help": _PAIR_LOG})
    annotate: bool = field(default=False, metadata={"help": "Judge labels before training, as `trl-capo annotate`."})
    dry_run: bool = field(default=False, metadata={"help": "Print a report on options and data instead."})


ARGUMENT_TYPES = (ScriptArguments, CAPOConfig, ModelConfig, DatasetMixtureConfig, NoiseArguments, TrainArguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one training process; return 0, 1 (values are not finite), 2 (mistake of the user) or 143 (SIGTERM)."""
    prepared: list[Any] = []
    if run(PROG, _prepare, sys.argv[1:] if argv is None else argv, prepared):
        return 2
    trainer, sigterm, dataset_name = prepared
    try:
        trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    except NonFiniteLoss as error:
        if trainer.is_world_process_zero():
            print(f"{PROG}: error: {error}", file=sys.stderr)
        return 1
    if sigterm.stopped:
        return 143  # what shells report for a process that SIGTERM ended
    trainer.save_model()
    card = {"dataset_name": None if dataset_name and Path(dataset_name).exists() else dataset_name}
    trainer.create_model_card(Path(trainer.args.output_dir).name, **card)
    trainer.accelerator.print(f"Training completed. Model saved to {trainer.args.output_dir}.")
    if trainer.args.push_to_hub:
        trainer.push_to_hub(**card)
    trainer.accelerator.end_training()
    return 0


def _prepare(argv: Sequence[str], prepared: list[Any]) -> None:
    """Parse the options, load and check the data, and append the trainer, its SIGTERM callback and the data's name."""
    parsed, _ = parse_with_rest(argv, ARGUMENT_TYPES, PROG, USAGE)
    script_args, args, model_args, dataset_args, noise_args, own_args = parsed
    if own_args.dry_run:
        raise ValueError("dry_run: give it as an option on the command line, `trl-capo train --dry_run`.")
    hub = {"revision": model_args.model_revision, "trust_remote_code": args.trust_remote_code}
    try:
        AutoConfig.from_pretrained(model := model_args.model_name_or_path, **hub)
    except (OSError, ValueError) as error:
        raise ValueError(f"model_name_or_path={model!r}: {model_problem(model, error)}") from error
    resume = str(args.resume_from_checkpoint)
    if resume.lower() in ("none", "false", "true"):
        args.resume_from_checkpoint = last_complete_checkpoint(args.output_dir) if resume.lower() == "true" else None
    elif not Path(resume, TRAINER_STATE_NAME).is_file():
        raise ValueError(f"resume_from_checkpoint={resume!r} is no checkpoint. `true` finds the last complete one.")
    train_dataset, eval_dataset = load_data(script_args, args, dataset_args, noise_args)
    data = {"train_dataset": train_dataset, "eval_dataset": eval_dataset}
    if processes().is_local_main_process:
        for warning in (line for name, rows in data.items() if rows is not None for line in check_pairs(rows, name)):
            logger.warning(warning)
        _tokenise(data, model, hub, CHECKED_ROWS)
    processes().wait_for_everyone()
    callbacks = [CheckpointOnSigterm(), StopOnNonFinite(), TrainingHealth()]
    if (pair_log := str(own_args.pair_log)).lower() not in ("none", "false"):
        folder = Path(args.output_dir, "pair_log") if pair_log.lower() == "true" else pair_log
        names = {key: getattr(script_args, key) for key in ("dataset_name", "dataset_config", "dataset_train_split")}
        source = None if dataset_args.datasets else names | {"group_column": args.group_column} | asdict(noise_args)
        callbacks.append(PairLog(folder, source))
        callbacks[-1].check(train_dataset)
    if asks_annotation(own_args, args, train_dataset):
        find_groups(train_dataset, args.group_column, "train_dataset")
        given = args.per_device_eval_batch_size, args.max_length, model_args.dtype, model_args.load_in_4bit
        reference = ReferenceArguments(model, *given, args.trust_remote_code)
        data["train_dataset"], args.witness = annotate(train_dataset, reference), PROBE
    loading = {"attn_implementation": model_args.attn_implementation, "dtype": model_args.dtype, **hub}
    args.model_init_kwargs = loading | (args.model_init_kwargs or {})
    peft = {"quantization_config": get_quantization_config(model_args), "peft_config": get_peft_config(model_args)}
    try:
        trainer = CardTrainer(model, args=args, callbacks=callbacks, **data, **peft)
    except BAD_ROW:
        _tokenise(data, model, hub)  # names the row, if one is the reason
        raise
    if isinstance(trainer.train_dataset, Dataset) and not len(trainer.train_dataset):
        raise ValueError(f"max_length={args.max_length}: the prompts alone fill it, so no training pair is left.")
    for name, rows in data.items():
        for warning in _length_warnings(name, rows, getattr(trainer, name), args):
            logger.warning(f"{name}: {warning}")
    if script_args.ignore_bias_buffers:
        buffers = trainer.model.named_buffers()
        trainer.model._ddp_params_and_buffers_to_ignore = [name for name, part in buffers if part.dtype == torch.bool]
    trainer.parsed = [model_args, noise_args, own_args]
    prepared += [trainer, callbacks[0], script_args.dataset_name]


def asks_annotation(own_args: TrainArguments, args: CAPOConfig, train: Any) -> bool:
    """Whether to judge the labels first, which only an estimated noise rate uses; ValueError if they cannot be."""
    if own_args.annotate and args.witness not in ("none", PROBE):
        raise ValueError(f"annotate=True, witness={args.witness!r}: both are evidence about labels. Give one of them.")
    if asked := own_args.annotate and args.noise_rate == "auto":
        check_annotatable(train)
    return asked


def _tokenise(data: dict[str, Any], model: str, hub: dict[str, Any], most: int | None = None) -> None:
    """Tokenise the first rows, or all; raise ValueError with the number of one that the tokenizer cannot read."""
    tokenizer = AutoProcessor.from_pretrained(model, **hub)
    for name, rows in data.items() if isinstance(tokenizer, PreTrainedTokenizerBase) else ():
        rows = rows if isinstance(rows, Dataset) else islice(rows or (), most)
        deque(tokenise_rows(rows, tokenizer, model, name, most), maxlen=0)


def _length_warnings(name: str, rows: Any, prepared: Any, args: CAPOConfig) -> list[str]:
    """Return what `max_length` did to every group, going by the rows that DPOTrainer prepared from these."""
    if not isinstance(rows, Dataset) or "prompt_ids" not in prepared.column_names:
        return []  # a stream, or images, which are prepared later
    table = prepared.with_format("arrow").select_columns([PAIR, "prompt_ids", "chosen_ids", "rejected_ids"])[:]
    prompt, *answers = (pc.list_value_length(part).to_numpy() for part in table.columns[1:])
    lengths = pd.DataFrame({"length": prompt + np.maximum(*answers), "prompt": prompt}, index=table[PAIR].to_numpy())
    labels = find_groups(rows, args.group_column, name)[1]
    summary = summarise_lengths(lengths.reindex(range(len(rows))), labels, args.max_length)
    return length_warnings(summary, args.max_length, drops=args.truncation_mode == "keep_start")


def load_data(data: ScriptArguments, args: CAPOConfig, mixture: DatasetMixtureConfig, noise: NoiseArguments) -> tuple:
    """Load the data to train on, with the noise to inject, and those to evaluate on (None without evaluation)."""
    if mixture.datasets:
        splits = load_mixture(mixture, args.seed)
    elif data.dataset_name:
        splits = load_pairs(data.dataset_name, config=data.dataset_config, streaming=data.dataset_streaming)
    else:
        raise ValueError("dataset_name is missing: give a hub name, a folder or a file, or a mixture in `datasets`.")
    train = select_split(splits, data.dataset_train_split, "dataset_train_split")
    test = None if args.eval_strategy == "no" else select_split(splits, data.dataset_test_split, "dataset_test_split")
    if noise.inject_noise is not None:
        options = {"group_column": args.group_column, "score_column": noise.inject_score_column}
        train = inject_noise(train, noise.inject_noise, noise.inject_rate, seed=noise.inject_seed, **options)
        logger.warning(f"inject_noise changed {sum(train[IS_NOISY]):,} of {len(train):,} training pairs.")
    return train, test


if __name__ == "__main__":
    sys.exit(main())
