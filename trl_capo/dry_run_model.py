"""The model of a dry run: its parts are looked at without weights, and the trainer is built of one without memory."""

import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from datasets import IterableDataset
from peft import PeftConfig
from transformers import PretrainedConfig, PreTrainedModel
from trl import get_peft_config, get_quantization_config

from trl_capo.config import CAPOConfig
from trl_capo.dry_run_data import Data
from trl_capo.dry_run_report import Findings
from trl_capo.lenient import Usable
from trl_capo.memory import empty_model
from trl_capo.models import check_model_path, load_config, load_tokenizer, refusing
from trl_capo.optimiser import optimiser_problems
from trl_capo.paths import find_path
from trl_capo.rehearsal import IMAGES, Parts, made_up_config, made_up_tokenizer, rehearse
from trl_capo.stand_in import load_stand_in, model_option_problems
from trl_capo.train import model_options

OF_MODEL, OF_TOKENIZER = {"router_aux_loss_coef"}, {"pad_token"}
"""Options that only the training's own model, or tokenizer, can say something of."""


@dataclass
class Model:
    """The model's parts; None for what there is not, or cannot be used.

    Args:
        options: of `from_pretrained`.
        config: of the model.
        tokenizer: of the model.
        peft_config: of the adapter, if one is trained.
    """

    options: dict[str, Any] = field(default_factory=dict)
    config: PretrainedConfig | None = None
    tokenizer: Any = None
    peft_config: PeftConfig | None = None


def check_model(found: Findings, usable: Usable) -> Model:
    """Look at the model's folder, its config, its tokenizer, its weights' files, the optimiser and the adapter."""
    _, args, model_args, _, _, _ = usable.parsed
    model, stand_in = Model(), None
    name, told = model_args.model_name_or_path, f"model_name_or_path={model_args.model_name_or_path!r}"
    own = {"revision": model_args.model_revision, "trust_remote_code": args.trust_remote_code}
    with found.collecting():
        model.options = model_options(args, model_args)
        found.problems += model_option_problems(model.options)
    if name is not None or "model_name_or_path" not in usable.left_out:
        with found.collecting():
            check_model_path(name)
            with found.collecting():
                model.tokenizer = load_tokenizer(name, told, **own)
            model.config = load_config(name, told, **own)
            if find_path(name) is not None:  # what is on the hub is not downloaded for this
                with refusing(f"{told} cannot be loaded"):
                    stand_in = load_stand_in(name, model.config, own | model.options)
    with found.collecting():
        get_quantization_config(model_args)
        model.peft_config = get_peft_config(model_args)
    found.problems += optimiser_problems(args, stand_in)
    return model


def check_trainer(found: Findings, args: CAPOConfig, model: Model, data: Data, *, adapter_fits: bool) -> None:
    """Build the trainer of a model without memory: of the training's own, or else of a made-up one."""
    config, tokenizer, unknown = model.config, model.tokenizer, set()
    try:
        empty_model(config)
    except Exception:  # there is none, or it has code of its own, of which the estimate of the memory has warned
        config, unknown = made_up_config(), OF_MODEL
    if tokenizer is None:
        tokenizer, unknown = made_up_tokenizer(), unknown | OF_TOKENIZER
    whole, pairs = not unknown, data.pairs
    parts = Parts(
        partial(_empty_model, config),
        tokenizer=None if whole else tokenizer,
        row=pairs[0] if whole and pairs is not None and IMAGES & set(pairs.column_names) else None,
        streaming=isinstance(data.train, IterableDataset),
        attention=_attention(model.options, elsewhere=found.elsewhere),
        peft_config=model.peft_config if adapter_fits and config is model.config else None,
    )
    found.problems += rehearse(args, parts, unknown, elsewhere=found.elsewhere)


def _empty_model(config: PretrainedConfig, attention: str | None) -> PreTrainedModel:
    config = copy.deepcopy(config)
    if attention is not None:
        config._attn_implementation = attention
    return empty_model(config)


def _attention(options: dict[str, Any], *, elsewhere: bool) -> str | None:
    """The attention that is asked for; None for one that asks the hub for code, or for a GPU that is elsewhere."""
    name = options.get("attn_implementation")
    asks_hub_or_gpu = "/" in str(name) or (elsewhere and "flash" in str(name))
    return None if asks_hub_or_gpu else name
