"""Models that are not what they should be: found by their files before anything is loaded, or when they are loaded."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from conftest import byte_tokenizer, save_lora, save_tiny_model, tiny_config
from safetensors.torch import load_file, save_file
from test_evaluate_bad_input import ERROR, refused, refused_at_once
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trl_capo.loading import load_model
from trl_capo.models import ModelSource

__all__ = ["refused", "refused_at_once"]  # fixtures


@pytest.fixture
def copy(options, tmp_path):
    """A copy of the model's folder, whose files a test can spoil."""
    return Path(shutil.copytree(options["model_name_or_path"], tmp_path / "spoilt"))


def rewrite(folder: Path, change) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


@pytest.mark.parametrize("option", ["model_name_or_path", "ref_model"])
@pytest.mark.parametrize("kind", ["missing", "another shape"])
def test_weights_that_would_be_random(refused, copy, option, kind):
    """Of 21 tensors, those of the last layer's nine are gone, or one has another shape."""
    changes = {
        "missing": lambda tensors: {k: v for k, v in tensors.items() if "layers.1." not in k},
        "another shape": lambda tensors: tensors | {"lm_head.weight": torch.zeros(10, 32)},
    }
    rewrite(copy, changes[kind])
    message = refused(**{option: copy})
    assert str(copy) in message
    assert {"missing": "9 of its tensors", "another shape": "lm_head.weight"}[kind] in message


def test_weights_that_are_tied_are_not_missing(command, tmp_path):
    tied = save_tiny_model(tmp_path / "tied", 0, tiny_config(tie_word_embeddings=True))
    assert "lm_head.weight" not in load_file(Path(tied) / "model.safetensors")
    assert command(model_name_or_path=tied, ref_model=None)[0] == 0


@pytest.mark.parametrize("tied", [False, True])
def test_a_reward_model_has_no_log_probabilities(refused_at_once, tmp_path, tied):
    """Tied embeddings would let it load, without a word."""
    config = tiny_config(tie_word_embeddings=tied)
    folder = save_tiny_model(tmp_path / "rm", 0, config, transformers.LlamaForSequenceClassification)
    message = refused_at_once(ref_model=folder)
    assert all(word in message for word in ("ref_model", folder, "LlamaForSequenceClassification")), message


def test_a_model_without_a_head(refused, tmp_path):
    folder = save_tiny_model(tmp_path / "headless", 0, architecture=transformers.LlamaModel)
    message = refused(model_name_or_path=folder)
    assert all(word in message for word in (folder, "lm_head.weight")), message


@pytest.mark.parametrize("kind", ["model", "adapter", "reference"])
@pytest.mark.parametrize("size", [0, 5, 5000])
def test_a_damaged_file_is_named(refused_at_once, options, copy, tmp_path, kind, size):
    changes, file = {"model_name_or_path": copy}, copy / "model.safetensors"
    if kind == "adapter":
        lora = save_lora(options["model_name_or_path"], tmp_path / "lora")
        changes, file = {"model_name_or_path": lora}, Path(lora) / "adapter_model.safetensors"
    elif kind == "reference":
        changes = {"ref_model": copy}
    file.write_bytes(file.read_bytes()[:size])
    message = refused_at_once(**changes)
    assert all(word in message for word in (*changes, str(file), "damaged")), message


def test_a_file_that_is_damaged_in_another_format(tmp_path, copy):
    """A pickle, whose damage only loading shows."""
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"no pickle")
    args = SimpleNamespace(dtype="auto", load_in_4bit=False, trust_remote_code=False)
    with pytest.raises(ValueError, match="spoilt' cannot be loaded"):
        load_model(args, ModelSource(str(copy), str(copy), None, None))


def test_a_lora_folder_whose_base_is_gone(refused_at_once, options, tmp_path):
    base = shutil.copytree(options["model_name_or_path"], tmp_path / "base")
    lora = save_lora(str(base), tmp_path / "lora")
    shutil.rmtree(base)
    message = refused_at_once(model_name_or_path=lora)
    assert all(word in message for word in ("lora", str(base), "no such folder"))


def rename_base(lora: str, name: str | None) -> str:
    file = Path(lora) / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": name}))
    return lora


def test_an_adapter_of_another_base_of_the_same_shape(refused_at_once, options, tmp_path):
    """Both are there, under different names or under one."""
    lora = save_lora(options["ref_model"], tmp_path / "lora")
    same_name = shutil.copytree(options["model_name_or_path"], tmp_path / Path(options["ref_model"]).name)
    for base in (options["model_name_or_path"], str(same_name)):
        message = refused_at_once(model_name_or_path=base, adapter=lora)
        assert all(name in message for name in (lora, base, options["ref_model"], "base_model_name_or_path"))


@pytest.mark.parametrize("trained_on", ["some/BASE", "/gone/BASE/", "", None])
def test_an_adapter_whose_base_was_moved_is_taken_by_its_name(command, options, tmp_path, trained_on):
    base = str(shutil.copytree(options["model_name_or_path"], tmp_path / "BASE"))
    lora = rename_base(save_lora(base, tmp_path / "lora"), trained_on)
    assert command(model_name_or_path=base, adapter=lora, ref_model=None)[0] == 0
    if trained_on:
        other = options["model_name_or_path"]
        code, _, errors = command(model_name_or_path=other, adapter=lora, ref_model=None)
        assert (code, trained_on in errors) == (2, True)
        rename_base(lora, other)  # what the error tells one to do
        assert command(model_name_or_path=other, adapter=lora, ref_model=None)[0] == 0


def reorder_vocabulary(folder: str) -> str:
    tokens = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True)]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


def test_a_reference_with_another_vocabulary_than_one_of_the_models(refused_at_once, options, tmp_path):
    other = reorder_vocabulary(save_tiny_model(tmp_path / "other", 1))
    message = refused_at_once(ref_model=other)
    assert all(word in message for word in ("ref_model", "other", "vocabulary"))
    message = refused_at_once(model_name_or_path=None, compare=[options["model_name_or_path"], other])
    assert all(word in message for word in ("ref_model", "other", "vocabulary"))


def test_a_model_with_fewer_embeddings_than_its_tokenizer_has_tokens(refused_at_once, tmp_path):
    message = refused_at_once(ref_model=save_tiny_model(tmp_path / "small", 1, tiny_config(vocab_size=100)))
    assert all(word in message for word in ("small", "100", "258"))


@pytest.fixture
def lora(options, tmp_path) -> str:
    return save_lora(options["model_name_or_path"], tmp_path / "lora")


def test_a_base_that_was_named_from_another_folder(refused_at_once, lora):
    """One slash and no such folder here: it may be a hub name, and is none."""
    message = refused_at_once(model_name_or_path=rename_base(lora, "somewhere/else"), ref_model=None)
    words = (f"model_name_or_path={lora!r}", "'somewhere/else'", "adapter_config.json", f"and {lora!r} as adapter")
    assert all(word in message for word in words), message
    assert len(message.removeprefix(ERROR).splitlines()) == 1


@pytest.mark.parametrize("option", ["model_name_or_path", "ref_model"])
def test_a_name_that_is_nothing(refused_at_once, option):
    message = refused_at_once(**{option: "nope"})
    assert f"{option}='nope' is neither a folder here nor" in message
    assert len(message.removeprefix(ERROR).splitlines()) == 1


@pytest.mark.parametrize("how", ["alone", "on its base"])
def test_an_adapter_without_weights(refused_at_once, lora, how):
    (Path(lora) / "adapter_model.safetensors").unlink()
    option = {"alone": "model_name_or_path", "on its base": "adapter"}[how]
    message = refused_at_once(**{option: lora, "ref_model": None})
    assert all(word in message for word in (f"{option}={lora!r}", "no weights", "adapter_model")), message


@pytest.mark.parametrize("content", ["{", "[]", '{"peft_type": "NOSUCH"}'])
@pytest.mark.parametrize("how", ["alone", "on its base"])
def test_an_adapter_config_that_cannot_be_read(refused_at_once, lora, content, how):
    (Path(lora) / "adapter_config.json").write_text(content)
    option = {"alone": "model_name_or_path", "on its base": "adapter"}[how]
    message = refused_at_once(**{option: lora, "ref_model": None})
    assert all(word in message for word in (f"{option}={lora!r}", "adapter_config.json cannot be read")), message


def test_a_model_without_a_tokenizer(refused_at_once, copy):
    for file in copy.glob("tokenizer*"):
        file.unlink()
    message = refused_at_once(ref_model=copy)
    assert all(word in message for word in (f"ref_model={str(copy)!r}", "no tokenizer")), message
    assert len(message.removeprefix(ERROR).splitlines()) == 1


@pytest.mark.parametrize("content", ["{", "{}"])
def test_a_config_that_cannot_be_read(refused_at_once, copy, content):
    (copy / "config.json").write_text(content)
    assert f"ref_model={str(copy)!r} cannot be used" in refused_at_once(ref_model=copy)


def test_vocabularies_of_equal_size_are_told_apart_by_a_token(refused_at_once, tmp_path):
    other = reorder_vocabulary(save_tiny_model(tmp_path / "other", 1))
    theirs = json.loads((Path(other) / "tokenizer.json").read_text())["model"]["vocab"]
    ours = byte_tokenizer().get_vocab()
    message = refused_at_once(ref_model=other)
    assert any(f"{token!r} is number {theirs[token]} against {ours[token]}" in message for token in ours), message


def test_an_adapter_of_another_shape(refused, options, tmp_path):
    wide = save_tiny_model(tmp_path / "wide", 0, tiny_config(hidden_size=64))
    lora = rename_base(save_lora(options["ref_model"], tmp_path / "lora"), wide)
    message = refused(model_name_or_path=lora, ref_model=None)
    assert all(word in message for word in ("lora", "wide", "does not fit"))


@pytest.mark.parametrize(("trained_on", "put_on", "words"), [(2, 4, "12 matrices are missing"), (4, 2, "12 have no")])
def test_an_adapter_of_which_only_a_part_fits(refused, tmp_path, trained_on, put_on, words):
    """Two layers more or less; three modules of each have two matrices."""
    bases = {n: save_tiny_model(tmp_path / f"{n} layers", 0, tiny_config(num_hidden_layers=n)) for n in (2, 4)}
    lora = rename_base(save_lora(bases[trained_on], tmp_path / "lora"), bases[put_on])
    message = refused(model_name_or_path=lora, ref_model=None)
    assert all(word in message for word in ("lora", bases[put_on], words)), message
