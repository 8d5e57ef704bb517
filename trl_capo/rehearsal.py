"""What TRL and Transformers refuse only when the trainer is built: it is built, of a model without memory.

Their checks stand in the trainer's making, between the loading of a model and the writing of a folder. So a dry run
makes the trainer with the training's own options, of a model without memory and one made-up pair, into a folder that
is gone at the end. What such a model has no part in, quantised weights and references that are computed before the
training, is looked at in words of our own.
"""

import copy
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

from datasets import Dataset, IterableDataset, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from peft import PeftConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from trl import ModelConfig

from trl_capo.arguments import without_renaming
from trl_capo.config import CAPOConfig
from trl_capo.lenient import UncheckedConfig, leave_out
from trl_capo.trainer import CAPOTrainer

IMAGES = {"image", "images"}
BY_LENGTH = ("group_by_length", "batch_rebalance")


@dataclass(frozen=True)
class Parts:
    """What the trainer is built of.

    Args:
        make_model: gives a model on the device "meta", a new one each time, with this attention (None: the usual).
        tokenizer: None if the model's own can be loaded.
        row: a pair with images; None where there are none.
        streaming: whether the pairs come as a stream.
        attention: the name of the model's attention, or None.
        peft_config: of an adapter, or None.
    """

    make_model: Callable[[str | None], PreTrainedModel]
    tokenizer: PreTrainedTokenizerBase | None
    row: Mapping[str, Any] | None
    streaming: bool
    attention: str | None
    peft_config: PeftConfig | None


def rehearse(args: CAPOConfig, parts: Parts, unknown: Collection[str], *, elsewhere: bool) -> list[str]:
    """Why the trainer cannot be built; nothing if it can, or if a model without memory cannot tell.

    It is built again without the option that was at fault, until it can be.

    Args:
        args: of the training; they stay as they are.
        parts: of the trainer.
        unknown: options that these parts say nothing of.
        elsewhere: whether the training is for another machine than this, which has no GPU.
    """
    with _without_bars(), tempfile.TemporaryDirectory() as folder:
        with without_renaming():
            plain = UncheckedConfig(folder, use_cpu=args.use_cpu, bf16=args.bf16, fp16=args.fp16)
        names = {option.name for option in fields(args) if option.init}
        given = {name: getattr(args, name) for name in sorted(names - set(unknown))}
        given = {name: value for name, value in given.items() if value != getattr(plain, name)}

        def build(options: dict[str, Any]) -> None:
            told = copy.copy(args)
            for name in names - options.keys():
                setattr(told, name, getattr(plain, name))
            _set_aside(told, parts, folder, elsewhere=elsewhere)
            _build(told, replace(parts, attention=options.get("attention"), peft_config=options.get("peft_config")))

        of_model = {"attention": parts.attention, "peft_config": parts.peft_config}
        return leave_out({name: part for name, part in of_model.items() if part is not None} | given, build)[1]


def _build(args: CAPOConfig, parts: Parts) -> None:
    """Build the trainer; a ValueError says why it cannot be."""
    data: Any = Dataset.from_list([parts.row or {"prompt": "a", "chosen": "b", "rejected": "c"}] * 2)
    data = data.to_iterable_dataset() if parts.streaming else data
    try:
        CAPOTrainer(
            _staying(parts.make_model(parts.attention)),
            ref_model=None if parts.peft_config is not None else _staying(parts.make_model(parts.attention)),
            args=args,
            train_dataset=data,
            eval_dataset=None if args.eval_strategy == "no" else data,
            processing_class=parts.tokenizer,
            peft_config=copy.deepcopy(parts.peft_config),
        )
    except Exception as error:  # of TRL's, Transformers' and PEFT's own checks
        if "meta tensor" in str(error):
            return
        kind = "" if isinstance(error, ValueError | ImportError | NotImplementedError) else f"{type(error).__name__}: "
        raise ValueError(f"the trainer cannot be built: {kind}{error}") from error


def _set_aside(args: CAPOConfig, parts: Parts, folder: str, *, elsewhere: bool) -> None:
    """Change the options that ask for data, a GPU or the hub, or that are looked at by themselves."""
    args.output_dir, args.group_column, args.pair_log = folder, "auto", None
    args.precompute_ref_log_probs = args.push_to_hub = False
    if parts.row is None:
        args.max_length = None
    if parts.streaming and args.max_steps <= 0:
        args.max_steps = 1
    if elsewhere:
        args.bf16 = args.fp16 = args.activation_offloading = False


def made_up_config() -> PretrainedConfig:
    """Of a model, where there is none that could be used."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return LlamaConfig(architectures=["LlamaForCausalLM"], vocab_size=4, **sizes)


def made_up_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer, where there is none that could be used."""
    words = Tokenizer(WordLevel({"a": 0, "b": 1, "c": 2, "</s>": 3}, unk_token="a"))
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>")


@contextmanager
def _without_bars() -> Iterator[None]:
    bars = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if bars:
            enable_progress_bars()


def unrehearsed_problems(args: CAPOConfig, model_args: ModelConfig, pairs: Any) -> Iterator[str]:
    """What TRL refuses of quantised weights, batches by length and references that are computed before the training.

    Args:
        args, model_args: of the training.
        pairs: to train on, a stream or not; None if they are not known.
    """
    bits = "load_in_4bit" if model_args.load_in_4bit else "load_in_8bit" if model_args.load_in_8bit else None
    if bits and not model_args.use_peft:
        yield f"{bits}: quantised weights cannot be trained themselves. Train an adapter on them: use_peft."
    if args.train_sampling_strategy in BY_LENGTH and isinstance(pairs, Dataset):  # of streams it is ignored
        yield (
            f"train_sampling_strategy={str(args.train_sampling_strategy)!r}: Transformers looks for lengths in a "
            "column that pairs have not. Choose 'random' or 'sequential'."
        )
    if not args.precompute_ref_log_probs:
        return
    told = "precompute_ref_log_probs=True"
    if args.sync_ref_model:
        yield f"{told} with sync_ref_model=True: a reference that changes cannot be computed before. Drop one of them."
    if isinstance(pairs, IterableDataset):
        yield f"{told}: of a stream it would have to read everything. Drop it, or dataset_streaming."
    elif pairs is not None and IMAGES & set(pairs.column_names):
        yield f"{told}: TRL has it for text alone, and these pairs have images. Drop it."


def _staying(model: PreTrainedModel) -> PreTrainedModel:
    """The model, which neither Transformers nor Accelerate moves to another device: there is nothing to move."""
    model.hf_device_map = {"": "meta"}
    model.to = lambda *_, **__: model
    return model
