"""A model's folder that lacks a part is refused before it is loaded, and a whole one of any kind is not."""

import json
from pathlib import Path

import pytest
import torch
from conftest import make_pairs, save_tiny_model, tiny_config, tiny_llava
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, LlavaForConditionalGeneration, MixtralConfig, MixtralForCausalLM
from transformers.integrations import deepspeed

from trl_capo import train
from trl_capo.models import load_config
from trl_capo.stand_in import load_stand_in

LAST = "model.layers.1.mlp.down_proj.weight"


def loaded(folder) -> torch.nn.Module:
    return load_stand_in(str(folder), load_config(str(folder), "the model"), {"dtype": "float32"})


def change_shard(folder, change) -> None:
    """Save the weights in many files, and one of them changed."""
    LlamaForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 3
    shard = folder / index["weight_map"][LAST]
    tensors = load_file(shard)
    change(tensors)
    save_file(tensors, shard, metadata={"format": "pt"})


def change_weights(folder, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


NOT_WHOLE = {
    "a tensor is missing": lambda folder: change_weights(folder, lambda tensors: tensors.pop(LAST)),
    "the head is missing": lambda folder: change_weights(folder, lambda tensors: tensors.pop("lm_head.weight")),
    "a tensor of another shape": lambda folder: change_weights(
        folder, lambda tensors: tensors.update({LAST: torch.zeros(3, 3)})
    ),
    "of another model": lambda folder: save_file(
        {"nothing": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"}
    ),
    "a shard lacks a tensor": lambda folder: change_shard(folder, lambda tensors: tensors.pop(LAST)),
}


@pytest.mark.parametrize("case", NOT_WHOLE)
def test_weights_that_are_not_whole_are_not_trained(tmp_path, capfd, case):
    folder = tmp_path / "model"
    save_tiny_model(folder, 0)
    NOT_WHOLE[case](folder)
    make_pairs().to_json(tmp_path / "train.jsonl", force_ascii=False)
    arguments = ["--model_name_or_path", str(folder), "--dataset_name", str(tmp_path / "train.jsonl")]
    arguments += ["--output_dir", str(tmp_path / "out"), "--use_cpu", "--bf16", "false"]
    capfd.readouterr()
    assert train.main(arguments) == 2
    said = capfd.readouterr().err
    assert f"{str(folder)!r} is not a whole LlamaForCausalLM" in said
    assert "Loading weights" not in said
    assert "lm_head" in said if case in ("the head is missing", "of another model") else LAST in said
    assert not (tmp_path / "out").exists()


def test_whole_models_are_accepted(tmp_path):
    """In shards; with tied embeddings, whose head has no tensor; experts, which are merged; images; a pickle."""
    save_tiny_model(tmp_path / "sharded", 0)
    change_shard(tmp_path / "sharded", lambda tensors: None)
    save_tiny_model(tmp_path / "tied", 0, tiny_config(tie_word_embeddings=True))
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")
    experts = MixtralConfig(**tiny_config().to_dict() | {"model_type": "mixtral"}, num_local_experts=2)
    save_tiny_model(tmp_path / "experts", 0, experts, MixtralForCausalLM)
    processor, config = tiny_llava()
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path / "images")
    save_tiny_model(tmp_path / "pickle", 0)
    torch.save(load_file(tmp_path / "pickle" / "model.safetensors"), tmp_path / "pickle" / "pytorch_model.bin")
    (tmp_path / "pickle" / "model.safetensors").unlink()
    for folder in sorted(Path(tmp_path).iterdir()):
        assert {p.device.type for p in loaded(folder).parameters()} == {"meta"}, folder


class Stage3:
    """What Transformers asks of a config of DeepSpeed, which needs the package."""

    def is_zero3(self) -> bool:
        return True


def test_zero3_stays_as_it_is(model_dir):
    """Under it Transformers loads nothing onto the device "meta"; the setting is back afterwards."""
    config = Stage3()
    deepspeed.set_hf_deepspeed_config(config)
    assert next(loaded(model_dir).parameters()).device.type == "meta"
    assert deepspeed.is_deepspeed_zero3_enabled()
    deepspeed.unset_hf_deepspeed_config()
