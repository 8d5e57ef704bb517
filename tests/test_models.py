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
from test_evaluate_bad_input import ERROR, refused, refused_at_once, rename_base, reorder_vocabulary

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


@pytest.fixture
def lora(options, tmp_path) -> str:
    return save_lora(options["model_name_or_path"], tmp_path / "lora")


def test_a_base_that_was_named_from_another_folder(refused_at_once, lora):
    """One slash and no such folder here: it may be a hub name, and is none."""
    message = refused_at_once(model_name_or_path=rename_base(lora, "demo/model"), ref_model=None)
    words = (f"model_name_or_path={lora!r}", "'demo/model'", "adapter_config.json", f"and {lora!r} as adapter")
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
    tokenizers = [json.loads((Path(other) / "tokenizer.json").read_text()), None]
    theirs, ours = tokenizers[0]["model"]["vocab"], byte_tokenizer().get_vocab()
    message = refused_at_once(ref_model=other)
    assert any(f"{token!r} is number {theirs[token]} against {ours[token]}" in message for token in ours), message
