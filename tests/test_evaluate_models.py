"""The kinds of models that `trl-capo evaluate` measures: adapters, models in 4 bits; and that it holds one at a time.

The oracle is pair_oracle.py. Full checkpoints: test_evaluate.py; what is refused: test_evaluate_bad_input.py.
"""

import weakref

import pytest
import torch
from conftest import save_lora, save_tiny_model, tiny_config
from pair_oracle import score_pairs
from peft import PeftModel
from test_evaluate import assert_figures, the_model
from test_modes import load
from transformers import BitsAndBytesConfig

from trl_capo.models import load_model


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
    assert four["overall"]["margin_mean"] != pytest.approx(full["overall"]["margin_mean"], abs=2e-3)
