"""Loading finished models for an evaluation: checkpoints, LoRA folders with their base, quantised."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.logging import get_logger
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from trl_capo.scoring import prepare_for_scoring

logger = get_logger(__name__)


def processes() -> PartialState:
    """The processes that share the work; on CPUs they must be told so, or each would take itself for alone."""
    return PartialState(cpu=not torch.accelerator.is_available())


@dataclass
class LoadedModel:
    """A model ready to be scored, its tokenizer, and where it has one, the base that its adapter changes."""

    name: str
    model: Any
    tokenizer: Any
    base_name: str | None = None

    @contextlib.contextmanager
    def as_base(self) -> Iterator[None]:
        """Within it, the model is its adapter's base."""
        with self.model.disable_adapter():
            yield

    @property
    def vocabulary(self) -> dict[str, int]:
        return self.tokenizer.get_vocab()


def is_adapter(name: str) -> bool:
    """Whether the name is a folder that holds a PEFT adapter and no model of its own."""
    folder = Path(name)
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def check_model_path(name: str | None, option: str = "model_name_or_path", *, adapter: bool = False) -> None:
    """Refuse a name that is plainly neither a hub name nor a model's folder, before anything is loaded."""
    if not name:
        raise ValueError(f"{option} is missing: give a hub name or the folder of a model.")
    path = Path(name).expanduser()
    wanted = "adapter_config.json" if adapter else "config.json"
    if path.exists() and not (path / wanted).is_file():
        raise ValueError(f"{option}={name!r} is not {'an adapter' if adapter else 'a model'}: it has no {wanted}.")
    if not path.exists() and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        raise ValueError(f"{option}={name!r}: there is no such folder.")


def load_model(args: Any) -> LoadedModel:
    """Load what `args.model_name_or_path` and `args.adapter` name; see `EvaluateArguments`."""
    name, adapter = args.model_name_or_path, args.adapter
    if adapter is None and is_adapter(name):
        name, adapter = PeftConfig.from_pretrained(name).base_model_name_or_path, name
        if not name:
            raise ValueError(f"{adapter!r} does not say what its base is. Give the base as model_name_or_path.")
        check_model_path(name, f"the base of {adapter!r}")
    check_model_path(name)
    if adapter is not None:
        check_model_path(adapter, "adapter", adapter=True)
    model = _load_base(name, args)
    if args.adapter is not None:
        trained_on = PeftConfig.from_pretrained(adapter).base_model_name_or_path
        if trained_on and Path(trained_on).name != Path(name).name:
            logger.warning(f"the adapter {adapter!r} was trained on {trained_on!r} and is put on {name!r}")
    if adapter is None:
        return LoadedModel(name, model, _load_tokenizer(name, args, model))
    tokenizer = _load_tokenizer(adapter if (Path(adapter) / "tokenizer_config.json").is_file() else name, args, model)
    try:
        model = PeftModel.from_pretrained(model, adapter).eval()
    except (RuntimeError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"the adapter {adapter!r} does not fit the base {name!r}: {reason}") from error
    _refuse_partial(adapter, name, model)
    return LoadedModel(adapter, model, tokenizer, base_name=name)


def _refuse_partial(adapter: str, base: str, model: PeftModel) -> None:
    """PEFT loads what fits of an adapter and warns of the rest, but a part of it is not what was asked for."""
    file = Path(adapter) / "adapter_model.safetensors"
    if not file.is_file():
        return
    with safe_open(file, framework="pt") as tensors:
        saved = {key for key in tensors.keys() if "lora_" in key}  # noqa: SIM118
    loaded = {key for key in get_peft_model_state_dict(model, save_embedding_layers=False) if "lora_" in key}
    if saved != loaded:
        raise ValueError(
            f"the adapter {adapter!r} does not fit the base {base!r}: {len(loaded - saved)} matrices are missing and "
            f"{len(saved - loaded)} have no place."
        )


def load_reference(args: Any, policy_name: str, vocabulary: dict[str, int]) -> LoadedModel:
    """Load `args.ref_model`, which must read text as the policy does."""
    check_model_path(args.ref_model, "ref_model")
    model = _load_base(args.ref_model, args)
    reference = LoadedModel(args.ref_model, model, _load_tokenizer(args.ref_model, args, model))
    if reference.vocabulary != vocabulary:
        raise ValueError(
            f"ref_model={args.ref_model!r} has another vocabulary than {policy_name!r} ({len(reference.vocabulary):,} "
            f"tokens against {len(vocabulary):,}), so their log-probabilities cannot be compared. Give the model that "
            "the policy was trained from."
        )
    return reference


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


def _load_tokenizer(name: str, args: Any, model: Any) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=args.trust_remote_code)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    rows = model.get_input_embeddings().weight.shape[0]
    largest = max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise ValueError(f"{name!r}: its tokenizer has token {largest:,}, and the model only {rows:,} embeddings.")
    return tokenizer
