"""What `trl-capo evaluate` does: measure finished models on preference pairs, per group, without training.

Reports reward accuracy (against a reference) with 95 % intervals, margins, and the reference-free accuracy (by
log-probability per token, chosen against rejected), for one model or several side by side. Run it as
`trl-capo evaluate --model_name_or_path M --ref_model R --dataset_name D`, through `accelerate launch` for several
GPUs, or call `evaluate` from Python. Text only: vision data are refused.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from trl import TrlParser

from trl_capo import __version__
from trl_capo.arguments import parse_alone
from trl_capo.data import check_preference_data, load_preference_data, select_split
from trl_capo.evaluate_arguments import EvaluateArguments
from trl_capo.groups import find_groups
from trl_capo.models import LoadedModel, load_model, load_reference, processes
from trl_capo.report import check_available, print_evaluation, write_evaluation
from trl_capo.scoring import TokenisedPair, completion_log_probs, tokenise_all
from trl_capo.statistics import model_differences, model_figures


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found: the figures, in the schema of docs/evaluate.md, and what plots need beyond them."""

    figures: dict[str, Any]
    labels: list[str] | None
    margins: dict[str, np.ndarray | None]


def evaluate(args: EvaluateArguments) -> Evaluation:
    """Score every model on the data.

    Raises:
        ValueError, OSError: something is missing or does not fit; the message is for the user.
    """
    processes()
    args._check()
    models = args.compare or [args.model_name_or_path]
    splits = load_preference_data(args.dataset_name, config=args.dataset_config)
    dataset = select_split(splits, args.dataset_split, "dataset_split")
    check_preference_data(**{args.dataset_name: dataset})
    if {"image", "images"} & set(dataset.column_names):
        raise ValueError(f"{args.dataset_name}: it has images; trl-capo evaluate scores text only.")
    (column, groups), *further = [
        find_groups(dataset, name, args.dataset_name) for name in (args.group_column, *args.also_by)
    ]

    started = time.perf_counter()
    score_model = _Scorer(args, dataset)
    shown = [args.adapter] if args.adapter and not args.compare else models
    scores = {name: score_model(model) for name, model in zip(_names(shown), models, strict=True)}
    seconds = time.perf_counter() - started
    kept = np.all([score.pop("kept") for score in scores.values()], axis=0)
    if not kept.any():
        raise ValueError(f"max_length={args.max_length}: no pair has a prompt shorter than that.")
    groups = None if groups is None else list(compress(groups, kept))
    other_groups = {name: list(compress(labels, kept)) for name, labels in further}
    for score in scores.values():
        score["normalised"] = score["normalised"][kept]
        score["margins"] = None if score["margins"] is None else score["margins"][kept]
    figures = {
        "dataset": {"name": args.dataset_name, "split": args.dataset_split, "pairs": int(kept.sum())},
        "dropped_pairs": int((~kept).sum()),
        "group_column": column,
        "beta": args.beta,
        "max_length": args.max_length,
        "seed": args.seed,
        "seconds": seconds,
        "models": {name: model_figures(groups, other_groups, **score) for name, score in scores.items()},
        "differences": model_differences(groups, scores, args.seed),
        "versions": {"trl-capo": __version__}
        | {package: version(package) for package in ("trl", "transformers", "peft", "torch", "datasets")},
    }
    return Evaluation(figures, groups, {name: score["margins"] for name, score in scores.items()})


class _Scorer:
    """Scores one model after the other on a data set; a reference that several of them share is scored once."""

    def __init__(self, args: EvaluateArguments, dataset: Any) -> None:
        self.args = args
        self.dataset = dataset
        self._references: dict[str, tuple[list[TokenisedPair], np.ndarray]] = {}

    def __call__(self, name: str) -> dict[str, Any]:
        """Margins and per-token differences of the model on every pair, which pairs fit, and the reference's name."""
        args = replace(self.args, model_name_or_path=name)
        loaded = load_model(args)
        tokenised = tokenise_all(self.dataset, loaded.tokenizer, args.max_length)
        kept = np.array([pair is not None for pair in tokenised])
        pairs = [pair for pair in tokenised if pair is not None]
        policy, lengths = self._score(loaded, pairs)
        broken = int((~np.isfinite(policy)).any(axis=1).sum())
        if broken:
            raise ValueError(
                f"{name!r} gives {broken:,} of {len(pairs):,} pairs a log-probability that is not finite."
            )
        reference_name, reference = args.ref_model or loaded.base_name, None
        if reference_name is not None:
            known_pairs, reference = self._references.get(reference_name, (None, None))
            if known_pairs != pairs:
                reference = self._score_reference(args, loaded, pairs)
                self._references[reference_name] = pairs, reference
        rewards = None if reference is None else args.beta * (policy - reference)
        normalised = policy / np.maximum(lengths, 1)
        return {
            "kept": kept,
            "margins": None if rewards is None else _spread(rewards[:, 0] - rewards[:, 1], kept),
            "normalised": _spread(normalised[:, 0] - normalised[:, 1], kept),
            "reference": reference_name,
        }

    def _score_reference(self, args: EvaluateArguments, loaded: LoadedModel, pairs: list[TokenisedPair]) -> np.ndarray:
        if args.ref_model is not None:
            return self._score(load_reference(args, loaded.name, loaded.vocabulary), pairs)[0]
        with loaded.as_base():
            return self._score(replace(loaded, name=loaded.base_name), pairs)[0]

    def _score(self, model: LoadedModel, pairs: list[TokenisedPair]) -> tuple[np.ndarray, np.ndarray]:
        state = processes()
        with tqdm(
            total=len(pairs),
            desc=f"Scoring {model.name}",
            unit="pair",
            bar_format="{l_bar}{bar}| {n:.0f}/{total} [{elapsed}<{remaining}, {rate_fmt}]",
            disable=not state.is_main_process,
        ) as bar:
            return completion_log_probs(
                model.model,
                pairs,
                pad_token_id=model.tokenizer.pad_token_id,
                batch_size=self.args.per_device_eval_batch_size,
                max_length=self.args.max_length,
                accelerator=state,
                advance=bar.update,
            )


def _names(models: Sequence[str]) -> list[str]:
    """The models' names, a repeated one with its number behind it."""
    return [
        name if models[:index].count(name) == 0 else f"{name} ({models[:index].count(name) + 1})"
        for index, name in enumerate(models)
    ]


def _spread(values: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Values of the kept pairs, back at their places among all pairs."""
    spread = np.full(len(kept), np.nan)
    spread[kept] = values
    return spread


def make_parser() -> TrlParser:
    usage = "trl-capo evaluate [--config FILE.yaml] [--OPTION VALUE ...] [options of `accelerate launch`]"
    return TrlParser((EvaluateArguments,), prog="trl-capo evaluate", usage=usage)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one process of an evaluation; returns the exit code."""
    try:
        (args,) = parse_alone(sys.argv[1:] if argv is None else argv, make_parser())
        if args.output_dir is not None and Path(args.output_dir).is_file():
            raise ValueError(f"output_dir={args.output_dir!r} is a file.")
        check_available()
        evaluation = evaluate(args)
    except (ValueError, NotImplementedError, OSError) as error:
        if processes().is_main_process:
            print(f"trl-capo evaluate: error: {error}", file=sys.stderr)
        return 2
    if processes().is_main_process:
        print_evaluation(evaluation.figures)
        if args.output_dir is not None:
            write_evaluation(evaluation.figures, evaluation.labels, evaluation.margins, Path(args.output_dir))
    processes().destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
