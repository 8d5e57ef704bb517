"""Load finished models or PEFT adapters on their bases, and score the answers of preference pairs.

TRL's fused head avoids a tensor of the size of the vocabulary. Several processes divide the batches among themselves.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from huggingface_hub import snapshot_download
from peft import PeftConfig, PeftModel, PeftType
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import find_adapter_config_file
from trl.trainer.utils import add_fused_lm_head

from trl_capo.common.command import model_problem, processes
from trl_capo.common.text import first_few
from trl_capo.core.packing import PaddingFree
from trl_capo.data.tokenise import TokenisedPair

_ADAPTER_FILES = ["adapter_*", "ref/adapter_*", "*token*", "*.jinja", "*.model", "vocab*", "merges*"]


@dataclass(frozen=True)
class ModelSource:
    """The model `base`, or an adapter (its folder) on it, and the tokenizer to use."""

    name: str
    base: str
    adapter: str | None
    tokenizer: Any


def resolve_model(name: str, option: str, trust_remote_code: bool = False) -> ModelSource:
    """Find the model or adapter that `option` names, and load its tokenizer; raise ValueError if there is none."""
    given, base, adapter = f"{option}={name!r}", name, None
    try:
        if find_adapter_config_file(name):
            adapter = name if Path(name).is_dir() else snapshot_download(name, allow_patterns=_ADAPTER_FILES)
            base = PeftConfig.from_pretrained(adapter).base_model_name_or_path
        given += "" if base == name else f", whose base is {base!r},"
        AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code)
        folder = adapter if adapter and (Path(adapter) / "tokenizer_config.json").is_file() else base
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(f"{given} cannot be used: {model_problem(base, error)}") from error
    return ModelSource(name, base, adapter, tokenizer)


def load_model(source: ModelSource, dtype: str, load_in_4bit: bool, trust_remote_code: bool) -> Any:
    """Load a model, with its adapter if it has one, for `answer_log_probs`.

    Raises ValueError if the checkpoint lacks tensors, which Transformers would fill with random numbers.
    """
    options = {"dtype": dtype, "trust_remote_code": trust_remote_code, "device_map": {"": processes().device}}
    if load_in_4bit:
        nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": None if dtype == "auto" else dtype}
        options["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, **nf4)
    model, loading = AutoModelForCausalLM.from_pretrained(source.base, output_loading_info=True, **options)
    if loading["missing_keys"]:
        raise ValueError(f"{source.base!r} lacks weights: {first_few(sorted(loading['missing_keys']), 3)}.")
    add_fused_lm_head(model)  # before the adapter, which wraps the model
    return (model if source.adapter is None else PeftModel.from_pretrained(model, source.adapter)).eval()


def _call_with_logits(model: Any, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **_: Any) -> Any:
    """Score as TRL's fused head does, with the model's own head, which may have an adapter."""
    logits = model(input_ids=input_ids, attention_mask=attention_mask).logits[:, -labels.size(1) : -1]
    losses = F.cross_entropy(logits.transpose(1, 2).float(), labels[:, 1:], reduction="none")
    return SimpleNamespace(log_probs=-losses)


def batches(
    pairs: Sequence[TokenisedPair], batch_size: int, max_length: int | None, name: str
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Yield this process's batches: B numbers of pairs, and the padded sequences of their 2B answers, chosen first.

    Sequences are cut at the end to `max_length` tokens, as in TRL. Labels are -100 outside of answers.
    """

    def pad(rows: list[list[int]], value: int) -> Tensor:
        tensors = [torch.tensor(row, device=state.device) for row in rows]
        return pad_sequence(tensors, batch_first=True, padding_value=value)

    state = processes()
    sequences = [[((prompt + ids)[:max_length], len(prompt)) for ids in answers] for prompt, *answers in pairs]
    order = sorted(range(len(pairs)), key=lambda index: -max(len(ids) for ids, _ in sequences[index]))
    starts = range(0, len(order), batch_size)[state.process_index :: state.num_processes]
    for start in tqdm(starts, desc=f"Scoring {name}", unit="batch", disable=not state.is_main_process):
        batch = order[start : start + batch_size]
        rows = [sequences[index][side] for side in (0, 1) for index in batch]
        inputs = {"input_ids": pad([ids for ids, _ in rows], 0)}  # padding is masked, so any token will do
        inputs["attention_mask"] = pad([[1] * len(ids) for ids, _ in rows], 0)
        yield batch, inputs | {"labels": pad([[-100] * start + ids[start:] for ids, start in rows], -100)}


@torch.no_grad()
def answer_log_probs(
    model: Any, pairs: Sequence[TokenisedPair], batch_size: int, max_length: int | None, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return both answers' (N, 2) log-probabilities in nats and (N, 2) numbers of tokens, on every process.

    The model is one of `load_model`. Raises ValueError if a log-probability is not finite.
    """
    is_adapted = isinstance(model.get_output_embeddings(), BaseTunerLayer | TrainableTokensWrapper)
    needs_logits = is_adapted or getattr(model, "peft_type", None) in (PeftType.ADALORA, PeftType.CPT)
    call, scored = _call_with_logits if needs_logits else PaddingFree(model), []
    for batch, inputs in batches(pairs, batch_size, max_length, name):
        outputs = call(model, **inputs, use_cache=False, fused_lm_head=True)
        scored.append((batch, outputs.log_probs.double().sum(dim=1).view(2, -1).T.tolist()))
    log_probs = np.zeros((len(pairs), 2))
    for batch, values in gather_object(scored):
        log_probs[batch] = values
    if not np.isfinite(log_probs).all():
        raise ValueError(f"{name!r}: {(~np.isfinite(log_probs)).sum():,} log-probabilities are not finite.")
    starts = [max(len(pair.prompt), 1) for pair in pairs]  # nothing predicts the very first token
    ends = [[len((prompt + ids)[:max_length]) for ids in answers] for prompt, *answers in pairs]
    return log_probs, np.array(ends) - np.array(starts)[:, None]
