"""What TRL and Transformers refuse only when the trainer is built: it is built, of a model without memory.

Their checks stand in the trainer's making, between the loading of a model and the writing of a folder. So a dry run
makes the trainer with the training's own options, of a model without memory and one made-up pair, into a folder that
is gone at the end. What such a model has no part in, quantised weights and references that are computed before the
training, is looked at in words of our own.
"""

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from datasets import Dataset, IterableDataset, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from peft import PeftConfig
from transformers import PreTrainedModel
from trl import ModelConfig

from trl_capo.config import CAPOConfig
from trl_capo.trainer import CAPOTrainer

IMAGES = {"image", "images"}


def rehearse(
    args: CAPOConfig,
    make_model: Callable[[], PreTrainedModel],
    row: Mapping[str, Any] | None,
    *,
    streaming: bool,
    elsewhere: bool,
    peft_config: PeftConfig | None,
) -> str | None:
    """Why the trainer cannot be built; None if it can, or if a model without memory cannot tell.

    Args:
        args: of the training; they stay as they are.
        make_model: gives a model on the device "meta", a new one each time.
        row: a pair with images; None where there are none.
        streaming: whether the pairs come as a stream.
        elsewhere: whether the training is for another machine than this, which has no GPU.
        peft_config: of an adapter, or None.
    """
    data: Any = Dataset.from_list([row or {"prompt": "a", "chosen": "b", "rejected": "c"}] * 2)
    data = data.to_iterable_dataset() if streaming else data
    try:
        with _without_bars(), tempfile.TemporaryDirectory() as folder:
            CAPOTrainer(
                _staying(make_model()),
                ref_model=None if peft_config is not None else _staying(make_model()),
                args=_told(args, folder, streaming=streaming, elsewhere=elsewhere, images=row is not None),
                train_dataset=data,
                eval_dataset=None if args.eval_strategy == "no" else data,
                peft_config=peft_config,
            )
    except Exception as error:  # of TRL's, Transformers' and PEFT's own checks
        if "meta tensor" in str(error):
            return None
        kind = "" if isinstance(error, ValueError | ImportError | NotImplementedError) else f"{type(error).__name__}: "
        return f"the trainer cannot be built: {kind}{error}"
    return None


def _told(args: CAPOConfig, folder: str, *, streaming: bool, elsewhere: bool, images: bool) -> CAPOConfig:
    """The options, but for those that ask for data, a GPU or the hub, or that are looked at by themselves."""
    told = copy.copy(args)
    told.output_dir, told.group_column, told.pair_log = folder, "auto", None
    told.precompute_ref_log_probs = told.push_to_hub = False
    if not images:
        told.max_length = None
    if streaming and args.max_steps <= 0:
        told.max_steps = 1
    if elsewhere:
        told.bf16 = told.fp16 = told.activation_offloading = False
    return told


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
    """What TRL refuses of quantised weights and of references that are computed before the training.

    Args:
        args, model_args: of the training.
        pairs: to train on, a stream or not; None if they are not known.
    """
    bits = "load_in_4bit" if model_args.load_in_4bit else "load_in_8bit" if model_args.load_in_8bit else None
    if bits and not model_args.use_peft:
        yield f"{bits}: quantised weights cannot be trained themselves. Train an adapter on them: use_peft."
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
