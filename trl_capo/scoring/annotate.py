"""`trl-capo annotate`: write into preference pairs how far a reference speaks for each label, before training."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset, IterableDataset
from torch import Tensor
from transformers.hf_argparser import HfArg

from trl_capo.common.command import parse, run
from trl_capo.core.pairs import PROBE
from trl_capo.data import edit
from trl_capo.data.load import check_pairs
from trl_capo.data.tokenise import tokenise_all
from trl_capo.scoring.models import load_model, resolve_model
from trl_capo.scoring.probe import cross_fitted_margins, state_differences

PROG, MIN_PAIRS = "trl-capo annotate", 20


@dataclass
class ReferenceArguments:
    """The model whose hidden states are read: the one that training starts from."""

    model_name_or_path: str = HfArg(help="A model or LoRA adapter: a folder or a hub name.")
    per_device_eval_batch_size: int = HfArg(default=8, help="Pairs per batch.")
    max_length: int | None = HfArg(default=1024, help="Longer sequences are cut at the end, in tokens.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = HfArg(default="auto", help="auto: the checkpoint's.")
    load_in_4bit: bool = HfArg(default=False, help="Load the model in 4 bits (bitsandbytes NF4).")
    trust_remote_code: bool = HfArg(default=False, help="Run the code of models on the hub.")


def annotate(dataset: Dataset, args: ReferenceArguments) -> Dataset:
    """Return the pairs with the columns `probe_chosen` and `probe_rejected`, in log-odds, for `witness="probe"`.

    Their difference is positive where a linear reward on the model's hidden states, fitted to the labels of other
    pairs, agrees with the label; it is null if the prompt alone fills `max_length`. Raises ValueError if it cannot.
    """
    return add_probe(dataset, *read_states(dataset, args))


def check_annotatable(dataset: Dataset) -> None:
    """Raise ValueError for streams and images."""
    if isinstance(dataset, IterableDataset) or {"image", "images"} & set(dataset.column_names):
        raise ValueError("annotate: neither streams nor data with images can be judged. Set --annotate false.")


def read_states(dataset: Dataset, args: ReferenceArguments) -> tuple[np.ndarray, Tensor, Tensor]:
    """Return which of the N pairs fit, (N,); `state_differences` of the K that do; (K,) numbers of their prompts."""
    check_annotatable(dataset)
    source = resolve_model(args.model_name_or_path, "model_name_or_path", args.trust_remote_code)
    pairs = tokenise_all(dataset, source.tokenizer, args.max_length, source.name)
    kept = np.array([pair is not None for pair in pairs])
    if kept.sum() < MIN_PAIRS:
        raise ValueError(f"annotate: {kept.sum()} pairs that fit are too few; give {MIN_PAIRS} or --annotate false.")
    model = load_model(source, args.dtype, args.load_in_4bit, args.trust_remote_code)
    fitting = [pair for pair in pairs if pair is not None]
    states = state_differences(model, fitting, args.per_device_eval_batch_size, args.max_length, source.name)
    del model
    clear_device_cache(garbage_collection=True)
    numbers: dict[tuple[int, ...], int] = {}
    prompts = [numbers.setdefault(tuple(pair.prompt), len(numbers)) for pair in fitting]
    return kept, states, torch.tensor(prompts)


def add_probe(dataset: Dataset, kept: np.ndarray, states: Tensor, prompts: Tensor) -> Dataset:
    """Judge the pairs by what `read_states` returned, and add the margins as two columns, which flips swap."""
    margins = np.full(len(kept), np.nan)
    margins[kept] = cross_fitted_margins(states, prompts).numpy()
    for column, sign in ((f"{PROBE}_chosen", 0.5), (f"{PROBE}_rejected", -0.5)):
        dataset = dataset.remove_columns([column] if column in dataset.column_names else [])
        dataset = dataset.add_column(column, [None if x != x else sign * x for x in margins.tolist()])
    return dataset


def main(argv: Sequence[str]) -> int:
    return run(PROG, _run, argv)


def _run(argv: Sequence[str]) -> None:
    data, reference = parse(argv, (edit.EditArguments, ReferenceArguments), PROG)
    splits, dataset = edit.load_splits(data)
    print("".join(f"{warning}\n" for warning in check_pairs(dataset, data.dataset_name)), end="")
    annotated = annotate(dataset, reference)
    margins = np.array(annotated[f"{PROBE}_chosen"][:], dtype=float)
    record = edit.count_changes(data, dataset, pd.DataFrame({"contradicted": margins < 0}), ("contradicted", "%"))
    edit.save_splits(data, {**splits, data.dataset_split: annotated}, {"annotate.json": record | asdict(reference)})
