"""The kinds of models that `trl-capo evaluate` measures: adapters, models in 4 bits; and that it holds one at a time.

The oracle is pair_oracle.py. Full checkpoints: test_evaluate.py; what is refused: test_evaluate_bad_input.py.
"""

import shutil
import weakref
from pathlib import Path

import huggingface_hub
import pytest
import torch
from conftest import save_lora, save_tiny_model, tiny_config
from pair_oracle import score_pairs
from peft import PeftModel
from test_evaluate import assert_figures, the_model
from test_modes import load
from transformers import BitsAndBytesConfig

from trl_capo.loading import load_model


def test_a_lora_folder_is_measured_against_its_base(measured, model_dir, other_model_dir, lora_dir, pool):
    tuned = PeftModel.from_pretrained(load(model_dir), lora_dir)
    scored = score_pairs(tuned, load(model_dir), pool, beta=0.1)
    assert_figures(the_model(measured(model_name_or_path=lora_dir)), scored)
    assert_figures(the_model(measured(adapter=lora_dir)), scored)
    other = score_pairs(tuned, load(other_model_dir), pool, beta=0.1)
    assert_figures(the_model(measured(model_name_or_path=lora_dir, ref_model=other_model_dir)), other)


@pytest.mark.parametrize("kind", ["full", "compared", "lora"])
def test_never_are_two_models_in_memory(measured, monkeypatch, model_dir, other_model_dir, lora_dir, kind):
    """Each is gone when the next is loaded; an adapter's base is the model that is there."""
    loaded = []

    def load_one(args, source):
        assert [model for model in loaded if model() is not None] == []
        model = load_model(args, source)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr("trl_capo.evaluate.load_model", load_one)
    asked = {
        "full": ({"ref_model": other_model_dir}, 2),
        "compared": ({"compare": [model_dir, lora_dir], "ref_model": other_model_dir}, 3),
        "lora": ({"compare": [lora_dir, lora_dir]}, 2),
    }
    options, count = asked[kind]
    measured(**options)
    assert len(loaded) == count


@pytest.mark.parametrize("weights", [False, True])
def test_a_lora_folder_with_a_config_of_its_own(measured, model_dir, lora_dir, tmp_path, weights):
    """Some tools save the base's config beside the adapter. That makes it no model, but the weights of one do."""
    folder = str(shutil.copytree(lora_dir, tmp_path / "lora"))
    shutil.copy(Path(model_dir) / "config.json", folder)
    if weights:
        shutil.copytree(model_dir, folder, dirs_exist_ok=True)
    assert the_model(measured(model_name_or_path=folder))["reference"] == (None if weights else model_dir)


@pytest.mark.parametrize("given", ["alone", "on its base"])
def test_an_adapter_on_the_hub(measured, monkeypatch, model_dir, lora_dir, tmp_path, given):
    """The hub is its cache here: there is no network in tests."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--lora"
    shutil.copytree(lora_dir, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    option = {"alone": "model_name_or_path", "on its base": "adapter"}[given]
    figures, local = (measured(**{option: name}) for name in ("someone/lora", lora_dir))
    assert list(figures["models"]) == ["someone/lora"]
    assert the_model(figures) == the_model(local)
    assert the_model(figures)["reference"] == model_dir


def test_an_adapter_may_be_the_reference(measured, model_dir, other_model_dir, lora_dir, pool):
    """Of a model that was tuned from it, say."""
    reference = PeftModel.from_pretrained(load(model_dir), lora_dir)
    scored = score_pairs(load(other_model_dir), reference, pool, beta=0.1)
    assert_figures(the_model(measured(model_name_or_path=other_model_dir, ref_model=lora_dir)), scored)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_models_in_4_bits(measured, tmp_path, pool, kind):
    base, other = (save_tiny_model(tmp_path / str(seed), seed, tiny_config(hidden_size=64)) for seed in (0, 1))
    nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
    options = {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, **nf4)}
    policy, reference = (load(f, **options).eval() for f in (base, other if kind == "full" else base))
    asked = {"model_name_or_path": base, "ref_model": other}
    if kind == "lora":
        asked = {"model_name_or_path": save_lora(base, tmp_path / "lora")}
        policy = PeftModel.from_pretrained(policy, tmp_path / "lora").eval()
    four, full = (the_model(measured(**asked, dtype="float32", load_in_4bit=bits)) for bits in (True, False))
    assert_figures(four, score_pairs(policy, reference, pool, beta=0.1), tolerance=1e-3)
    assert four["overall"]["margin_mean"] != pytest.approx(full["overall"]["margin_mean"], abs=1e-4)
