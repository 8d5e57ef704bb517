"""What is measured of every kind of model, against the oracle; and which models are refused."""

import shutil
import statistics

import pytest
import torch
from conftest import as_conversation, byte_tokenizer, save_lora, save_tiny_model, tiny_config
from oracles import load
from pair_oracle import make_pool, score_pairs
from peft import PeftModel
from safetensors.torch import load_file, save_file
from scoring_oracle import measure, the_model
from transformers import BitsAndBytesConfig

import trl_capo.evaluate.command
from trl_capo import CAPOTrainer


def assert_figures(model: dict, scored: list[tuple], tolerance: float = 1e-4) -> None:
    """Counts, accuracies, means and medians of all pairs and of every group, the macro mean, and the worst group."""
    parts = [(model["overall"], scored)]
    parts += [(part, [pair for pair in scored if pair[0] == name]) for name, part in model["groups"].items()]
    assert sum(len(pairs) for _, pairs in parts[1:]) == len(scored)
    for part, pairs in parts:
        margins, leads = zip(*((figures["rewards/margins"], figures["lead"]) for _, figures in pairs), strict=True)
        assert part["pairs"] == len(pairs)
        assert part["accuracy"] == pytest.approx(statistics.mean(margin > 0 for margin in margins))
        assert part["reference_free_accuracy"] == pytest.approx(statistics.mean(lead > 0 for lead in leads))
        expected = (statistics.mean(margins), statistics.median(margins))
        assert (part["margin_mean"], part["margin_median"]) == pytest.approx(expected, rel=tolerance, abs=tolerance)
    values = {name: part["accuracy"] for name, part in model["groups"].items()}
    assert model["macro"]["accuracy"] == pytest.approx(statistics.mean(values.values()))
    assert model["worst"]["accuracy"] == {"group": min(values, key=values.get), "value": min(values.values())}


@pytest.mark.parametrize(("form", "limit"), [("text", None), ("text", 30), ("messages without a prompt", 1024)])
def test_a_full_checkpoint_against_a_reference(tmp_path, model_dir, other_model_dir, form, limit):
    """With `max_length`, pairs whose prompt fills it are left out, and answers are cut."""
    pool = rows = make_pool()
    if form != "text":
        pool = pool.map(as_conversation)
        rows = pool.map(lambda row: {side: row["prompt"] + row[side] for side in ("chosen", "rejected")})
        rows = rows.remove_columns("prompt")
    figures = measure(tmp_path, rows, model_name_or_path=model_dir, ref_model=other_model_dir, max_length=limit)
    scored = score_pairs(load(model_dir), load(other_model_dir), pool, limit or 10**6)
    assert_figures(the_model(figures), scored)
    assert figures["dropped_pairs"] == 24 - len(scored) == (4 if limit == 30 else 0)


def test_a_lora_is_measured_against_its_base(tmp_path, model_dir, other_model_dir, lora_dir):
    tuned = PeftModel.from_pretrained(load(model_dir), lora_dir)
    scored = score_pairs(tuned, load(model_dir), make_pool())
    model = the_model(measure(tmp_path, model_name_or_path=lora_dir))
    assert model["reference"] == model_dir
    assert_figures(model, scored)
    scored = score_pairs(load(other_model_dir), tuned, make_pool())
    assert_figures(the_model(measure(tmp_path, model_name_or_path=other_model_dir, ref_model=lora_dir)), scored)


def test_the_adapter_that_dpo_started_from_is_the_reference(tmp_path, model_dir, lora_dir, make_args, pairs):
    """With a learning rate of 0 the policy is its reference: all pairs are ties, whatever the adapter says."""
    start = PeftModel.from_pretrained(load(model_dir), lora_dir, is_trainable=True)
    options = {"train_dataset": pairs, "processing_class": byte_tokenizer()}
    trainer = CAPOTrainer(start, args=make_args(learning_rate=0.0), **options)
    trainer.train()
    trainer.save_model(tmp_path / "tuned")
    model = the_model(measure(tmp_path, model_name_or_path=str(tmp_path / "tuned")))
    assert (model["reference"], model["overall"]["ties"]) == (f"{tmp_path / 'tuned'}/ref", 1.0)


def test_a_shared_reference_is_scored_once_and_groups_without_pairs_are_named(
    tmp_path, model_dir, other_model_dir, lora_dir, monkeypatch
):
    loaded = []

    def spy(source, *options):
        loaded.append(source.name)
        return original(source, *options)

    original = trl_capo.evaluate.command.load_model
    monkeypatch.setattr(trl_capo.evaluate.command, "load_model", spy)
    figures = measure(tmp_path, compare=[model_dir, lora_dir, model_dir], ref_model=other_model_dir, max_length=16)
    assert loaded == [model_dir, other_model_dir, lora_dir]
    assert list(figures["models"]) == [model_dir, lora_dir, f"{model_dir} (2)"]
    assert figures["dropped_groups"] == ["日本"]
    loaded.clear()
    adapters = [lora_dir, shutil.copytree(lora_dir, tmp_path / "again")]
    measure(tmp_path, compare=list(map(str, adapters)))
    assert loaded == [lora_dir, model_dir, str(adapters[1])]


def test_a_model_without_a_reference_has_reference_free_figures_only(tmp_path, model_dir):
    model = the_model(measure(tmp_path, model_name_or_path=model_dir, also_by=["id"]))
    assert model["reference"] is None
    assert model["overall"]["accuracy"] is model["overall"]["margin_mean"] is None
    leads = [pair["lead"] > 0 for _, pair in score_pairs(load(model_dir), load(model_dir), make_pool())]
    assert model["overall"]["reference_free_accuracy"] == pytest.approx(statistics.mean(leads))
    by_id = [model["also_by"]["id"][f"pair-{index}"]["reference_free_accuracy"] for index in range(24)]
    assert by_id == list(map(float, leads))


def test_a_lora_in_4_bits(tmp_path):
    base = save_tiny_model(tmp_path / "base", 0, tiny_config(hidden_size=64))
    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
    quantised = {"quantization_config": BitsAndBytesConfig(**nf4)}
    adapter = save_lora(base, tmp_path / "lora")
    policy = PeftModel.from_pretrained(load(base, **quantised), adapter)
    found = the_model(measure(tmp_path, model_name_or_path=adapter, dtype="float32", load_in_4bit=True))
    assert_figures(found, score_pairs(policy, load(base, **quantised), make_pool()), tolerance=1e-3)


def test_weights_that_would_be_random_and_a_reference_with_another_vocabulary_are_refused(tmp_path, model_dir):
    folder = str(shutil.copytree(model_dir, tmp_path / "headless"))
    weights = load_file(f"{folder}/model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, f"{folder}/model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"headless.*lm_head\.weight"):
        measure(tmp_path, model_name_or_path=folder)
    folder, tokenizer = str(shutil.copytree(model_dir, tmp_path / "other")), byte_tokenizer()
    tokenizer.add_tokens(["hello"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match="another vocabulary"):
        measure(tmp_path, model_name_or_path=model_dir, ref_model=folder)
