"""`trl-capo evaluate`, and `evaluate` in Python: measure finished models on pairs of texts, per group."""

import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from accelerate.logging import get_logger
from accelerate.utils.memory import clear_device_cache
from transformers.hf_argparser import HfArg

from trl_capo.common.command import need, parse_with_rest, processes, run, versions
from trl_capo.core.pairs import find_groups, parse_column
from trl_capo.data.load import check_pairs, load_pairs, select_split
from trl_capo.data.tokenise import TokenisedPair, length_warnings, summarise_lengths, tokenise_all
from trl_capo.evaluate.report import render_text, write_evaluation
from trl_capo.evaluate.summary import Figures, compare_models, summarise_model
from trl_capo.scoring.models import ModelSource, answer_log_probs, load_model, resolve_model

PROG = "trl-capo evaluate"
USAGE = f"{PROG} [--config FILE.yaml] [--OPTION VALUE ...] [options of `accelerate launch`]"
logger = get_logger(__name__)


@dataclass
class EvaluateArguments:
    """What to evaluate, on which pairs, and against which reference."""

    model_name_or_path: str | None = HfArg(default=None, help="A model or LoRA adapter: a folder or a hub name.")
    compare: list[str] = HfArg(default_factory=list, help="Several models instead of one; the first is the baseline.")
    ref_model: str | None = HfArg(default=None, help="Reference of the rewards; default: the base of an adapter.")
    dataset_name: str | None = HfArg(default=None, help="Preference pairs: a hub name, a folder or a file.")
    dataset_config: str | None = HfArg(default=None, help="Configuration of a data set on the hub.")
    dataset_split: str | None = HfArg(default=None, help="Split to evaluate on; by default `test`, or the only one.")
    group_column: str | None = HfArg(default="auto", help="Column of groups; auto: `language` if it exists; or none.")
    also_by: list[str] = HfArg(default_factory=list, help="Further columns whose groups are reported.")
    beta: float = HfArg(default=0.1, help="Units of reward per nat, as in training; scales only the margins.")
    per_device_eval_batch_size: int = HfArg(default=8, help="Pairs per batch.")
    max_length: int | None = HfArg(default=1024, help="Longer sequences are cut at the end, in tokens.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = HfArg(default="auto", help="auto: the checkpoint's.")
    load_in_4bit: bool = HfArg(default=False, help="Load models in 4 bits (bitsandbytes NF4).")
    trust_remote_code: bool = HfArg(default=False, help="Run the code of models on the hub.")
    output_dir: str | None = HfArg(default=None, help="Folder for metrics.json, report.md and accuracy.png.")

    def __post_init__(self) -> None:
        self.group_column = parse_column(self.group_column)
        if bool(self.model_name_or_path) == bool(self.compare):
            raise ValueError("give either model_name_or_path or, for several models, compare.")
        if not self.dataset_name:
            raise ValueError("dataset_name is missing: give a hub name, a folder or a file.")
        if self.beta <= 0 or self.per_device_eval_batch_size < 1:
            raise ValueError("beta and per_device_eval_batch_size must be positive.")


ARGUMENT_TYPES = (EvaluateArguments,)


def evaluate(args: EvaluateArguments) -> Figures:
    """Score every model on the pairs, and return figures in the schema of docs/evaluate.md.

    Raises ValueError or OSError if something is missing or does not fit.
    """
    processes()
    models = _resolve_models(args)
    splits = load_pairs(args.dataset_name, config=args.dataset_config)
    split = args.dataset_split or ("test" if len(splits) > 1 else next(iter(splits)))
    if split not in (args.dataset_split, "test"):
        logger.warning(f"{args.dataset_name} has only the split {split!r}, which is therefore used.")
    dataset = select_split(splits, split, "dataset_split")
    if {"image", "images"} & set(dataset.column_names):
        raise ValueError(f"{args.dataset_name} has images, but {PROG} scores text only.")
    for warning in check_pairs(dataset, args.dataset_name):
        logger.warning(warning)
    column, groups = find_groups(dataset, args.group_column, args.dataset_name)
    also_by = {name: find_groups(dataset, name, args.dataset_name, "also_by")[1] for name in args.also_by}
    started, limit = time.perf_counter(), args.max_length
    pairs = {name: tokenise_all(dataset, own.tokenizer, limit, name) for name, (own, _) in models.items()}
    for name, rows in pairs.items():
        sizes = [[*map(len, pair)] if pair else [math.nan] * 3 for pair in rows]
        lengths = pd.DataFrame([(p + max(c, r), p) for p, c, r in sizes], columns=["length", "prompt"])
        summary = summarise_lengths(lengths, groups, limit)
        for warning in length_warnings(summary, limit, drops=True):
            logger.warning(f"{name}: {warning}")
    kept = [None not in row for row in zip(*pairs.values(), strict=True)]
    if not any(kept):
        raise ValueError(f"max_length={limit}: every prompt is at least as long.")
    labels = None if groups is None else list(compress(groups, kept))
    also_by = {name: list(compress(values, kept)) for name, values in also_by.items()}
    scores = _score_models(args, models, {name: list(compress(rows, kept)) for name, rows in pairs.items()})
    return {
        "dataset": {"name": args.dataset_name, "split": split, "pairs": sum(kept)},
        "dropped_pairs": len(kept) - sum(kept),
        "dropped_groups": sorted(set(groups or ()) - set(labels or ())),
        "group_column": column,
        **{name: getattr(args, name) for name in ("beta", "max_length")},
        "seconds": time.perf_counter() - started,
        "models": {name: summarise_model(labels, also_by, score) for name, score in scores.items()},
        "differences": compare_models(labels, scores),
        "versions": versions(),
    }


def _resolve_models(args: EvaluateArguments) -> dict[str, tuple[ModelSource, ModelSource | None]]:
    """Return the models by their names in the report, with their references: the common one, or an adapter's base."""
    reference = resolve_model(args.ref_model, "ref_model", args.trust_remote_code) if args.ref_model else None
    models: dict[str, tuple[ModelSource, ModelSource | None]] = {}
    for name in args.compare or [args.model_name_or_path]:
        source = resolve_model(name, "compare" if args.compare else "model_name_or_path", args.trust_remote_code)
        if reference is not None and reference.tokenizer.get_vocab() != source.tokenizer.get_vocab():
            raise ValueError(f"ref_model={args.ref_model!r} has another vocabulary than {name!r}; give its base.")
        base = replace(source, name=source.base, adapter=None) if source.adapter else None
        if base and os.path.isfile(os.path.join(start := os.path.join(source.adapter, "ref"), "adapter_config.json")):
            base = replace(source, name=f"{name}/ref", adapter=start)  # from which TRL's DPO started
        earlier = sum(model.name == name for model, _ in models.values())  # a repeated name gets a number
        models[f"{name} ({earlier + 1})" if earlier else name] = source, reference or base
    return models


def _score_models(args: EvaluateArguments, models: dict[str, tuple], pairs: dict[str, list]) -> dict[str, Figures]:
    """Return for every model its (N,) `margins` and `per_token` differences, and the name of its `reference`."""
    known: dict[tuple, tuple] = {}

    def log_probs(source: ModelSource, rows: list[TokenisedPair]) -> tuple[np.ndarray, np.ndarray]:
        key = (source.base, source.adapter)
        if key not in known or known[key][0] != rows:  # a model is loaded once for the same tokens
            model = load_model(source, args.dtype, args.load_in_4bit, args.trust_remote_code)
            batch_size = args.per_device_eval_batch_size
            known[key] = rows, answer_log_probs(model, rows, batch_size, args.max_length, source.name)
            del model
            clear_device_cache(garbage_collection=True)
        return known[key][1]

    scores: dict[str, Figures] = {}
    for name, (source, reference) in models.items():
        policy, lengths = log_probs(source, pairs[name])
        per_token = policy / np.maximum(lengths, 1)
        scores[name] = {"margins": None, "per_token": per_token[:, 0] - per_token[:, 1], "reference": None}
        if reference is not None:
            rewards = args.beta * (policy - log_probs(reference, pairs[name])[0])
            scores[name] |= {"margins": rewards[:, 0] - rewards[:, 1], "reference": reference.name}
    return scores


def main(argv: Sequence[str] | None = None) -> int:
    """Run one process of an evaluation and return its exit code."""
    return run(PROG, _main, sys.argv[1:] if argv is None else argv)


def _main(argv: Sequence[str]) -> None:
    (args,), _ = parse_with_rest(argv, ARGUMENT_TYPES, PROG, USAGE)
    need("matplotlib", "scipy")
    if args.output_dir:
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    figures = evaluate(args)
    if processes().is_main_process:
        print(render_text(figures))
        if args.output_dir:
            write_evaluation(figures, Path(args.output_dir))
    processes().destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
