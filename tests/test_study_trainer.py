"""What a study's trainer remembers changes nothing: losses, gradients, weights and metrics, over epochs and runs."""

import contextlib
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer, logged, tiny_config
from peft import LoraConfig
from study_data import LORA
from test_frozen import LAYERS, Counter, batch, memory
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from trl_capo.study.frozen import FrozenLayers, SequenceMemory, scoring_completions_only
from trl_capo.study.methods import METHODS
from trl_capo.study.trainer import StudyTrainer


@pytest.fixture
def train(make_args, tmp_path, pairs):
    """Trains two epochs with LoRA on the highest of three layers, twice with the same memory; returns the trainers."""
    folder = tmp_path / "model"
    torch.manual_seed(4)
    LlamaForCausalLM(tiny_config(num_hidden_layers=LAYERS)).save_pretrained(folder)

    def make(remember: bool, method="dpo", seed=0, **options):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        counter = Counter(model.model.layers)
        hidden = memory(tmp_path) if remember else memory(tmp_path, f"none{seed}")
        references = memory(tmp_path, "references") if remember else memory(tmp_path, f"no-references{seed}")
        with scoring_completions_only() if remember else contextlib.nullcontext():
            if remember:
                FrozenLayers(model, 2, hidden)
            trainer = StudyTrainer(
                model,
                args=make_args(**{"max_steps": 12, "seed": seed} | METHODS[method].config | options),
                train_dataset=pairs,
                eval_dataset=pairs,
                processing_class=byte_tokenizer(),
                peft_config=LoraConfig(**LORA | {"layers_to_transform": [2], "init_lora_weights": False}),
                method=method,
                own=METHODS[method].own,
                references=references,
            )
            trainer.train()
            metrics = trainer.evaluate()
        for kept in (hidden, references):
            kept.save()
        return trainer, metrics, counter

    return make


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_checkpointing": True}, {"ld_alpha": 0.3}, {"method": "wpo"}],
    ids=["dpo", "gradient checkpointing", "ld_alpha", "wpo"],
)
def test_training_is_the_same_over_epochs_and_from_memory(options, train):
    """24 pairs in 12 steps of 4 are two epochs. The second training finds all in memory, and runs no frozen layer."""
    plain, metrics, _ = train(False, **options)
    for known in (False, True):
        trainer, found, counter = train(True, **options)
        for key in ("loss", "grad_norm", "rewards/margins", "logps/chosen"):
            assert logged(trainer, key) == pytest.approx(logged(plain, key), rel=1e-4, abs=1e-5), key
        for name, value in metrics.items():
            if name.startswith(("eval_loss", "eval_rewards", "eval_logps")):
                assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
        assert trainer.evaluated == pytest.approx(plain.evaluated, rel=1e-4, abs=1e-5)
        ours, theirs = (dict(t.model.named_parameters()) for t in (trainer, plain))
        for name, value in theirs.items():
            if "lora" in name:
                torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5)
        if known:
            assert counter.calls[:2] == [0, 0]
            assert counter.calls[2] > 12


@pytest.mark.parametrize("method", ["wpo", "dr_dpo"])
def test_references_that_trl_computes_before_the_training_are_the_same(method, train):
    """Methods with a loss of their own: TRL computes references for 8 pairs at a time, and trains on 4."""
    live, _, _ = train(False, method=method)
    before, _, _ = train(False, method=method, precompute_ref_log_probs=True, precompute_ref_batch_size=8)
    assert logged(before, "loss") == pytest.approx(logged(live, "loss"), rel=1e-4, abs=1e-5)
    assert logged(before, "grad_norm") == pytest.approx(logged(live, "grad_norm"), rel=1e-4, abs=1e-5)


def test_the_reference_is_computed_once(train):
    """With all in memory no batch needs a reference forward: as many runs of the last layer as policy forwards."""
    train(True)
    _, _, counter = train(True, seed=1)
    assert counter.calls[2] == 12 + 6  # steps, and 24 pairs evaluated 4 at a time


@pytest.mark.parametrize("ld_alpha", [None, 0.3])
def test_reference_log_probs_of_other_answers_and_partners_are_others(ld_alpha, train, monkeypatch):
    """The same tokens with another start of the answer; with ld_alpha, the same answer beside a shorter one."""
    trainer, _, _ = train(True, ld_alpha=ld_alpha)
    sequences = batch((9, 5, 5, 9))  # pairs (0, 1), (2, 3) and, of sequences that are known by then, (0, 3)
    places = torch.arange(9)

    def pair(*rows, start=3):
        inputs = {key: value[list(rows)] for key, value in sequences.items()}
        return inputs | {"completion_mask": inputs["attention_mask"] * (places >= start)}

    batches = [pair(0, 1), pair(2, 3), pair(0, 3), pair(0, 3, start=6)]
    found = [torch.cat(trainer.compute_ref_log_probs(trainer.model, one)) for one in batches]
    for one, logps in zip(batches, found, strict=True):
        monkeypatch.setattr(trainer, "_study_references", SequenceMemory(Path("none")))
        torch.testing.assert_close(torch.cat(trainer.compute_ref_log_probs(trainer.model, one)), logps)


def test_the_pairs_of_an_evaluation_are_kept_one_by_one(train, pairs):
    trainer, metrics, _ = train(True)
    assert len(trainer.evaluated) == len(pairs)
    margins = [trainer.evaluated[number] for number in sorted(trainer.evaluated)]
    assert sum(margins) / len(margins) == pytest.approx(metrics["eval_rewards/margins"], rel=1e-5)
    assert trainer.pair_groups(sorted(trainer.evaluated)) == pairs["language"][:]
