"""Finished models for an evaluation: what a name stands for, found and checked before any weights are loaded.

A name is that of a checkpoint or of an adapter, whose base its config names; both are folders or on the hub. Loading
them: loading.py.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import torch
from accelerate import PartialState
from huggingface_hub import snapshot_download
from peft import PeftConfig
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig
from transformers.utils import find_adapter_config_file

from trl_capo.paths import can_be_on_hub, find_path

MODEL_FILES = ("model*.safetensors", "pytorch_model*.bin")
ADAPTER_FILES = ("adapter_model*.safetensors", "adapter_model*.bin")


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


@contextmanager
def refusing(what: str, remedy: str = "") -> Iterator[None]:
    """Within it, errors of the readers of models' files, which are of any kind, become one that says of what."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(" :.")
        raise ValueError(f"{what} ({reason}). {remedy}".rstrip()) from error


def _weights(name: str, patterns: tuple[str, ...]) -> list[Path]:
    """The files of weights in the folder of that name."""
    folder = find_path(name)
    return [] if folder is None else [file for pattern in patterns for file in sorted(folder.glob(pattern))]


def check_model_path(name: str | None, option: str = "model_name_or_path") -> None:
    """Refuse a name that is plainly neither a hub name nor a model's folder, before anything is loaded."""
    if not name:
        raise ValueError(f"{option} is missing: give a hub name or the folder of a model.")
    path = find_path(name)
    if path is None:
        if not can_be_on_hub(name):
            raise ValueError(f"{option}={name!r}: there is no such folder, and none on the hub.")
    elif not (path / "config.json").is_file():
        raise ValueError(f"{option}={name!r} is not a model: it has no config.json.")
    else:
        _check_weights(name, option, MODEL_FILES)


def _check_weights(name: str, option: str, patterns: tuple[str, ...]) -> None:
    """Refuse a folder without weights, or with a damaged or unsafe file of them; no tensor is read."""
    files = _weights(name, patterns)
    if not files:
        raise ValueError(f"{option}={name!r} has no weights: no {' and no '.join(patterns)}.")
    for file in files:
        try:
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt"):
                    pass
            else:  # a pickle, of which nothing but tensors is read
                torch.load(file, map_location="meta", weights_only=True, mmap=is_zipfile(file))
        except UnpicklingError as error:
            raise ValueError(
                f"{option}={name!r}: {file} holds something other than weights, which could run code and is not "
                "read. Save the model as safetensors."
            ) from error
        except (SafetensorError, OSError, RuntimeError, EOFError) as error:
            raise ValueError(f"{option}={name!r}: {file} is damaged ({error}). Save or download it again.") from error


def _adapter_folder(name: str, option: str) -> str | None:
    """The folder of the PEFT adapter of that name, downloaded if it is on the hub; None if it is not an adapter's."""
    folder = name
    if find_path(name) is None:
        check_model_path(name, option)
        if find_adapter_config_file(name) is None:
            return None
        wanted = ["adapter_*", "*token*", "*.jinja", "*.model", "vocab*", "merges*"]
        folder = snapshot_download(name, allow_patterns=wanted)
    if not (Path(folder) / "adapter_config.json").is_file():
        return None
    _check_weights(folder, option, ADAPTER_FILES)
    return folder


def _trained_on(folder: str, told: str) -> str | None:
    """The name of the base in an adapter's config, where there is one."""
    with refusing(f"{told}: its adapter_config.json cannot be read"):
        return PeftConfig.from_pretrained(folder).base_model_name_or_path or None


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
    told = f"{option}={name!r}"
    if adapter is not None:
        check_model_path(name, option)
        folder = _adapter_folder(adapter, "adapter")
        if folder is None:
            raise ValueError(f"adapter={adapter!r} is not an adapter: no adapter_config.json, here or on the hub.")
        _refuse_other_base(adapter, folder, name)
        return ModelSource(adapter, name, folder, _own_tokenizer(args, name, folder, told))
    folder = None if _weights(name, MODEL_FILES) else _adapter_folder(name, option)
    if folder is None:
        check_model_path(name, option)
        return ModelSource(name, name, None, _own_tokenizer(args, name, None, told))
    base = _trained_on(folder, told)
    remedy = f"Give the base as model_name_or_path and {name!r} as adapter."
    if base is None:
        raise ValueError(f"{told} does not say what its base is. {remedy}")
    check_model_path(base, f"{told}: its base")
    told = f"{told}: its base {base!r} (named in its adapter_config.json)"
    return ModelSource(name, base, folder, _own_tokenizer(args, base, folder, told, remedy))


def _refuse_other_base(adapter: str, folder: str, base: str) -> None:
    """An adapter fits every model of its base's shape, so only the names tell whether it belongs to this one."""
    trained_on = _trained_on(folder, f"adapter={adapter!r}")
    if trained_on is None:
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
        token = next(token for token in {**ours, **theirs} if ours.get(token) != theirs.get(token))
        raise ValueError(
            f"ref_model={reference.name!r} has another vocabulary than {policy.name!r} ({len(theirs):,} tokens "
            f"against {len(ours):,}; {token!r} is number {theirs.get(token)} against {ours.get(token)}), so their "
            "log-probabilities cannot be compared. Give the model that the policy was trained from."
        )


def load_config(base: str, told: str, remedy: str = "", **options: Any) -> PretrainedConfig:
    """The model's config, which tells whether there is such a model, and whether it can be used.

    Args:
        base: the model's name.
        told: says in errors what was asked for.
        remedy: is said after it.
        options: of `from_pretrained`.

    Raises:
        ValueError: it cannot be used; the message is for the user.
    """
    missing = "cannot be used" if Path(base).exists() else "is neither a folder here nor can it be had from the hub"
    with refusing(f"{told} {missing}", remedy):
        config = AutoConfig.from_pretrained(base, **options)
    other_task = [name for name in config.architectures or () if "Classification" in name]
    if other_task:
        raise ValueError(
            f"{told} is a {other_task[0]}, which gives scores and no log-probabilities of answers. Give a causal "
            "language model."
        )
    return config


def load_tokenizer(name: str, told: str, **options: Any) -> Any:
    """The tokenizer of that name; arguments and errors as of `load_config`."""
    with refusing(f"{told}: no tokenizer can be loaded from {name!r}", "Save the model's tokenizer there."):
        return AutoTokenizer.from_pretrained(name, **options)


def _own_tokenizer(args: Any, base: str, adapter: str | None, told: str, remedy: str = "") -> Any:
    """The adapter's own tokenizer, or else its base's."""
    config = load_config(base, told, remedy, trust_remote_code=args.trust_remote_code)
    name = adapter if adapter is not None and (Path(adapter) / "tokenizer_config.json").is_file() else base
    tokenizer = load_tokenizer(name, told, trust_remote_code=args.trust_remote_code)
    rows, largest = config.get_text_config().vocab_size, max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise ValueError(
            f"{name!r}: its tokenizer has token {largest:,}, and the model {base!r} has only {rows:,} embeddings."
        )
    return tokenizer
