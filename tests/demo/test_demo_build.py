"""The demo's build uses finished parts again, and converts models. Not covered: the real models."""

from pathlib import Path

import build_demo
import demo_model
import pytest
import torch
from conftest import tiny_config
from tokenizers import Tokenizer, models, processors, trainers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


def write_hello(folder: Path) -> None:
    (folder / "hello.txt").write_text("hello")


def test_a_part_is_built_again_only_with_other_settings_and_an_interrupt_keeps_the_finished_one(tmp_path):
    def stop_halfway(folder: Path) -> None:
        write_hello(folder)
        raise KeyboardInterrupt

    built = [build_demo.build_part(tmp_path / "part", {"seed": seed}, write_hello) for seed in (0, 0, 1, 1)]
    assert built == [True, False, True, False]
    assert [path.name for path in tmp_path.iterdir()] == ["part"]
    with pytest.raises(KeyboardInterrupt):
        build_demo.build_part(tmp_path / "part", {"seed": 2}, stop_halfway)
    assert not build_demo.build_part(tmp_path / "part", {"seed": 1}, write_hello)


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not made by this script"):
        build_demo.build_part(tmp_path, {}, write_hello)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_cut_vocabulary_predicts_what_the_full_one_did():
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    words = ["User:\nAssistant:\nsay hello hallo welt", "other words that the chat does not need"]
    backend.train_from_iterator(words * 5, trainers.BpeTrainer(special_tokens=tokens, vocab_size=400))
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    full = PreTrainedTokenizerFast(tokenizer_object=backend, **names, chat_template=demo_model.GEMMA_CHAT_TEMPLATE)
    model = LlamaForCausalLM(tiny_config(vocab_size=len(full), tie_word_embeddings=True)).eval()
    chat = [{"role": "user", "content": "say hello"}, {"role": "assistant", "content": "hallo welt"}]
    ids = full.apply_chat_template(chat, return_tensors="pt", return_dict=True)["input_ids"]
    logits = model(ids).logits.detach()
    small = demo_model.cut_vocabulary(model, full, [chat])
    assert 260 < len(small) == model.config.vocab_size < len(full)
    kept = full.convert_tokens_to_ids(small.convert_ids_to_tokens(list(range(len(small)))))
    small_ids = small.apply_chat_template(chat, return_tensors="pt", return_dict=True)["input_ids"]
    torch.testing.assert_close(model(small_ids).logits, logits[..., kept], atol=1e-5, rtol=0)
