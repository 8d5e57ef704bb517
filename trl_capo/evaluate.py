"""What `trl-capo evaluate` does: measure finished models on preference pairs, per group, without training.

Reports reward accuracy (against a reference) with 95 % intervals, margins, and the reference-free accuracy (by
log-probability per token, chosen against rejected), for one model or several side by side. Run it as
`trl-capo evaluate --model_name_or_path M --ref_model R --dataset_name D`, through `accelerate launch` for several
GPUs, or call `evaluate` from Python. Text only: vision data are refused.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain, compress, count
from typing import Any

import numpy as np
from accelerate.utils.memory import clear_device_cache
from tqdm import tqdm

from trl_capo import __version__
from trl_capo.arguments import Parser, parse_alone
from trl_capo.data import check_preference_data, load_preference_data, select_split
from trl_capo.evaluate_arguments import EvaluateArguments
from trl_capo.groups import find_groups
from trl_capo.loading import load_model
from trl_capo.messages import get_logger
from trl_capo.models import ModelSource, find_model, processes, refuse_other_vocabulary
from trl_capo.paths import output_folder
from trl_capo.plain import print_error
from trl_capo.report import check_available, check_output, print_evaluation, write_evaluation
from trl_capo.scoring import TokenisedPair, completion_log_probs, tokenise_all
from trl_capo.statistics import model_differences, model_figures

logger = get_logger(__name__)


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
    models = _find_models(args)
    reference = None if args.ref_model is None else find_model(args, args.ref_model, "ref_model")
    for model in models.values() if reference is not None else ():
        refuse_other_vocabulary(reference, model)
    splits = load_preference_data(args.dataset_name, config=args.dataset_config)
    split = args.dataset_split or _default_split(splits, args.dataset_name)
    dataset = select_split(splits, split, "dataset_split")
    check_preference_data(**{args.dataset_name: dataset})
    if {"image", "images"} & set(dataset.column_names):
        raise ValueError(f"{args.dataset_name}: it has images; trl-capo evaluate scores text only.")
    column, groups = find_groups(dataset, args.group_column, args.dataset_name)
    further = [find_groups(dataset, name, args.dataset_name, "also_by") for name in args.also_by]

    started = time.perf_counter()
    tokenised = {name: tokenise_all(dataset, model.tokenizer, args.max_length, name) for name, model in models.items()}
    kept = [None not in row for row in zip(*tokenised.values(), strict=True)]
    if not any(kept):
        raise ValueError(f"max_length={args.max_length}: no pair has a prompt shorter than that.")
    before, groups = groups, None if groups is None else list(compress(groups, kept))
    other_groups = {name: list(compress(labels, kept)) for name, labels in further}
    scorer = _Scorer(args, reference)
    scores = {name: scorer.score(model, list(compress(tokenised[name], kept))) for name, model in models.items()}
    figures = {
        "dataset": {"name": args.dataset_name, "split": split, "pairs": sum(kept)},
        "dropped_pairs": len(kept) - sum(kept),
        "dropped_groups": sorted(set(before or ()) - set(groups or ())),
        "group_column": column,
        "beta": args.beta,
        "max_length": args.max_length,
        "seed": args.seed,
        "seconds": time.perf_counter() - started,
        "models": {name: model_figures(groups, other_groups, **score) for name, score in scores.items()},
        "differences": model_differences(groups, scores, args.seed),
        "versions": {"trl-capo": __version__}
        | {package: version(package) for package in ("trl", "transformers", "peft", "torch", "datasets")},
    }
    return Evaluation(figures, groups, {name: score["margins"] for name, score in scores.items()})


def _default_split(splits: Mapping[str, Any], name: str) -> str:
    only = next(iter(splits))
    if len(splits) > 1 or only == "test":
        return "test"
    logger.warning(f"{name} has no split but {only!r}, so that is what is measured.")
    return only


def _find_models(args: EvaluateArguments) -> dict[str, ModelSource]:
    """The models to measure by the names under which they are reported: a repeated one has a number behind it."""
    if args.compare:
        found = [find_model(args, name, "compare") for name in args.compare]
    else:
        found = [find_model(args, args.model_name_or_path, adapter=args.adapter)]
    models = {}
    for model in found:
        names = chain([model.name], (f"{model.name} ({number})" for number in count(2)))
        models[next(name for name in names if name not in models)] = model
    return models


class _Scorer:
    """Scores one model after the other; a reference that several of them share is scored once.

    Args:
        args: the options of loading and scoring.
        reference: the reference of every model; None where each adapter has its base, and other models have none.
    """

    def __init__(self, args: EvaluateArguments, reference: ModelSource | None) -> None:
        self.args = args
        self.reference = reference
        self._references: dict[str, tuple[list[TokenisedPair], np.ndarray]] = {}

    def score(self, source: ModelSource, pairs: list[TokenisedPair]) -> dict[str, Any]:
        """Margins and per-token differences of the model on every pair, and the reference's name."""
        if self.reference is not None:
            reference_name = self.reference.name
        else:
            reference_name = source.base if source.adapter is not None else None
        known_pairs, reference = self._references.get(reference_name, (None, None))
        unknown = reference_name is not None and known_pairs != pairs
        own_base = unknown and self.reference is None
        (policy, lengths), *base = self._measure(source, pairs, and_base=own_base)
        if unknown:
            ((reference, _),) = base if own_base else self._measure(self.reference, pairs)
            self._references[reference_name] = pairs, reference
        rewards = None if reference is None else self.args.beta * (policy - reference)
        normalised = policy / np.maximum(lengths, 1)
        return {
            "margins": None if rewards is None else rewards[:, 0] - rewards[:, 1],
            "normalised": normalised[:, 0] - normalised[:, 1],
            "reference": reference_name,
        }

    def _measure(
        self, source: ModelSource, pairs: list[TokenisedPair], *, and_base: bool = False
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """`_log_probs` of a model, and of its adapter's base; never are two models in memory."""
        model = load_model(self.args, source)
        results = [self._log_probs(source.name, model, pairs)]
        if and_base:
            with model.disable_adapter():
                results.append(self._log_probs(source.base, model, pairs))
        del model
        clear_device_cache(garbage_collection=True)  # a model's modules refer to each other in circles
        return results

    def _log_probs(self, name: str, model: Any, pairs: list[TokenisedPair]) -> tuple[np.ndarray, np.ndarray]:
        """(N, 2) log-probabilities of the completions under the model, and (N, 2) their numbers of tokens."""
        state = processes()
        bar = tqdm(
            total=len(pairs),
            desc=f"Scoring {name}",
            unit="pair",
            bar_format="{l_bar}{bar}| {n:.0f}/{total} [{elapsed}<{remaining}, {rate_fmt}]",
            disable=not state.is_main_process,
        )
        try:
            log_probs, lengths = completion_log_probs(
                model,
                pairs,
                batch_size=self.args.per_device_eval_batch_size,
                max_length=self.args.max_length,
                accelerator=state,
                advance=bar.update,
            )
        except RuntimeError as error:  # bitsandbytes finds some shapes unfit only when it computes with them
            if not self.args.load_in_4bit:
                raise
            raise ValueError(
                f"load_in_4bit: {name!r} cannot be computed in 4 bits ({error}). Leave load_in_4bit out."
            ) from error
        finally:
            bar.close()
        broken = int((~np.isfinite(log_probs)).any(axis=1).sum())
        if broken:
            raise ValueError(
                f"{name!r} gives {broken:,} of {len(pairs):,} pairs a log-probability that is not finite."
            )
        return log_probs, lengths


def make_parser() -> Parser:
    usage = "trl-capo evaluate [--config FILE.yaml] [--OPTION VALUE ...] [options of `accelerate launch`]"
    return Parser((EvaluateArguments,), prog="trl-capo evaluate", usage=usage)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one process of an evaluation; returns the exit code."""
    try:
        (args,) = parse_alone(sys.argv[1:] if argv is None else argv, make_parser())
        check_available()
        folder = output_folder(args.output_dir) if args.output_dir else None
        if folder is not None:
            check_output(folder)
        evaluation = evaluate(args)
        if processes().is_main_process:
            print_evaluation(evaluation.figures)
            if folder is not None:
                for remark in write_evaluation(evaluation.figures, evaluation.labels, evaluation.margins, folder):
                    print(remark)
    except (ValueError, NotImplementedError, OSError, ImportError) as error:
        if processes().is_main_process:
            print_error("trl-capo evaluate", error)
        return 2
    processes().destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
