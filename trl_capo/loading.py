"""Models loaded to score with, and refused if a part of them is not what was asked for."""

from pickle import UnpicklingError
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, load_peft_weights
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from trl_capo.models import ModelSource, processes
from trl_capo.scoring import prepare_for_scoring
from trl_capo.stand_in import refuse_random


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
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=args.dtype if args.dtype == "auto" else getattr(torch, args.dtype),
            quantization_config=quantization,
            trust_remote_code=args.trust_remote_code,
            device_map={"": processes().device},
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
        )
    except (RuntimeError, SafetensorError, UnpicklingError, EOFError) as error:
        reason = str(error).strip().splitlines()
        raise ValueError(f"{name!r} cannot be loaded: {reason[0] if reason else type(error).__name__}") from error
    refuse_random(name, model, found)
    return prepare_for_scoring(model)
