"""Finished models for an evaluation: what a name stands for, found and checked before any weights are loaded; loading.

A name is that of a checkpoint or of an adapter, whose base its config names; both are folders or on the hub.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from huggingface_hub import snapshot_download
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, load_peft_weights
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import find_adapter_config_file

from trl_capo.scoring import prepare_for_scoring


def processes() -> PartialState:
    """The processes that share the work; on CPUs they must be told so, or each would take itself for alone."""
    return PartialState(cpu=not torch.accelerator.is_available())


@dataclass(frozen=True)
class ModelSource:
    """What a name stands for: a model, or an adapter (its folder) and the base that it changes; and the tokenizer."""

    name: str
    base: str
    adapter: str | None
    tokenizer: Any


def _has_weights(name: str) -> bool:
    """Whether the name is a folder with the weights of a whole model, though it may have an adapter's beside them."""
    return any(any(Path(name).expanduser().glob(pattern)) for pattern in ("model*.safetensors", "pytorch_model*.bin"))


def check_model_path(name: str | None, option: str = "model_name_or_path") -> None:
    """Refuse a name that is plainly neither a hub name nor a model's folder, before anything is loaded."""
    if not name:
        raise ValueError(f"{option} is missing: give a hub name or the folder of a model.")
    path = Path(name).expanduser()
    if path.exists() and not (path / "config.json").is_file():
        raise ValueError(f"{option}={name!r} is not a model: it has no config.json.")
    if path.exists() and not _has_weights(name):
        raise ValueError(f"{option}={name!r} has no weights: no model*.safetensors and no pytorch_model*.bin.")
    if not path.exists() and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        raise ValueError(f"{option}={name!r}: there is no such folder.")


def _adapter_folder(name: str, option: str) -> str | None:
    """The folder of the PEFT adapter of that name, downloaded if it is on the hub; None if it is not an adapter's."""
    if Path(name).exists():
        return name if (Path(name) / "adapter_config.json").is_file() else None
    check_model_path(name, option)
    if find_adapter_config_file(name) is None:
        return None
    return snapshot_download(name, allow_patterns=["adapter_*", "*token*", "*.jinja", "*.model", "vocab*", "merges*"])


def find_model(args: Any, name: str, option: str = "model_name_or_path", adapter: str | None = None) -> ModelSource:
    """Find what the name, or the adapter on the model of that name, stands for; only configs and tokenizers are read.

    Args:
        args: `trust_remote_code` is read.
        name: of a model or an adapter.
        option: what gave the name, for errors.
        adapter: an adapter to put on the model of that name.

    Raises:
        ValueError, OSError: there is no such model, or its parts do not belong together.
    """
    if adapter is not None:
        check_model_path(name, option)
        folder = _adapter_folder(adapter, "adapter")
        if folder is None:
            raise ValueError(f"adapter={adapter!r} is not an adapter: it has no adapter_config.json.")
        _refuse_other_base(adapter, folder, name)
        return ModelSource(adapter, name, folder, _load_tokenizer(args, name, folder))
    folder = None if _has_weights(name) else _adapter_folder(name, option)
    if folder is None:
        check_model_path(name, option)
        return ModelSource(name, name, None, _load_tokenizer(args, name, None))
    base = PeftConfig.from_pretrained(folder).base_model_name_or_path
    if not base:
        raise ValueError(
            f"{option}={name!r} does not say what its base is: give the base as model_name_or_path and {name!r} as "
            "adapter."
        )
    check_model_path(base, f"{option}={name!r}: its base")
    return ModelSource(name, base, folder, _load_tokenizer(args, base, folder))


def _refuse_other_base(adapter: str, folder: str, base: str) -> None:
    """An adapter fits every model of its base's shape, so only the names tell whether it belongs to this one."""
    trained_on = PeftConfig.from_pretrained(folder).base_model_name_or_path
    if not trained_on:
        return
    if Path(trained_on).exists() and Path(base).exists():
        same = Path(trained_on).samefile(base)
    else:  # folders are moved, and a hub name has an owner before it
        same = os.path.basename(os.path.abspath(trained_on)) == os.path.basename(os.path.abspath(base))
    if not same:
        raise ValueError(
            f"adapter={adapter!r} was trained on another base ({trained_on!r}) than model_name_or_path={base!r}, and "
            f"what it learned means nothing there. Give its own base. If {base!r} is that base under another name, "
            f"write this name as base_model_name_or_path into {Path(folder) / 'adapter_config.json'}."
        )


def refuse_other_vocabulary(reference: ModelSource, policy: ModelSource) -> None:
    """The reference is given the policy's tokens, so they must mean the same to it."""
    theirs, ours = reference.tokenizer.get_vocab(), policy.tokenizer.get_vocab()
    if theirs != ours:
        raise ValueError(
            f"ref_model={reference.name!r} has another vocabulary than {policy.name!r} ({len(theirs):,} tokens "
            f"against {len(ours):,}), so their log-probabilities cannot be compared. Give the model that the policy "
            "was trained from."
        )


def load_model(args: Any, source: ModelSource) -> Any:
    """Load a model to score with: `args.dtype`, `args.load_in_4bit`, `args.trust_remote_code`."""
    model = _load_base(source.base, args)
    if source.adapter is None:
        return model
    try:
        model = PeftModel.from_pretrained(model, source.adapter).eval()
    except (RuntimeError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"the adapter {source.name!r} does not fit the base {source.base!r}: {reason}") from error
    _refuse_partial(source, model)
    return model


def _refuse_partial(source: ModelSource, model: PeftModel) -> None:
    """PEFT loads what fits of an adapter and warns of the rest, but a part of it is not what was asked for."""
    saved = {key for key in load_peft_weights(source.adapter, device="cpu") if "lora_" in key}
    loaded = {key for key in get_peft_model_state_dict(model, save_embedding_layers=False) if "lora_" in key}
    if saved != loaded:
        raise ValueError(
            f"the adapter {source.name!r} does not fit the base {source.base!r}: {len(loaded - saved)} matrices are "
            f"missing and {len(saved - loaded)} have no place."
        )


def _load_base(name: str, args: Any) -> Any:
    quantization = None
    if args.load_in_4bit:
        quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(
        name,
        dtype=args.dtype if args.dtype == "auto" else getattr(torch, args.dtype),
        quantization_config=quantization,
        trust_remote_code=args.trust_remote_code,
        device_map={"": processes().device},
    )
    return prepare_for_scoring(model)


def _load_tokenizer(args: Any, base: str, adapter: str | None) -> Any:
    """The adapter's own tokenizer, or else its base's."""
    name = adapter if adapter is not None and (Path(adapter) / "tokenizer_config.json").is_file() else base
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=args.trust_remote_code)
    config = AutoConfig.from_pretrained(base, trust_remote_code=args.trust_remote_code)
    rows, largest = config.get_text_config().vocab_size, max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise ValueError(
            f"{name!r}: its tokenizer has token {largest:,}, and the model {base!r} has only {rows:,} embeddings."
        )
    return tokenizer
