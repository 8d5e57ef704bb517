"""The estimate of the noise rates at work in CAPOTrainer: which pairs it uses, and which pairs use it."""

import math

import pytest
import torch
from conftest import logged
from pair_oracle import make_pool
from test_modes import COMMON, Oracle, expected_logs, load, relative_rewards
from transformers import AutoModelForCausalLM, TrainerCallback

from trl_capo import CAPOTrainer
from trl_capo.agreement import TEMPERATURES
from trl_capo.noise_rate import NoiseRateEstimate


def test_an_unfinished_step_is_forgotten_when_a_training_starts(model_dir, other_model_dir, pairs, make_args):
    """Micro-batches recorded before it (as when memory ran out) must not count: the rates are a new trainer's."""
    args, rates = make_args(gradient_accumulation_steps=2, max_steps=2), []
    for leftovers in (0, 3):
        reference = AutoModelForCausalLM.from_pretrained(other_model_dir)
        trainer = CAPOTrainer(model_dir, reference, args=args, train_dataset=pairs)
        batch = next(iter(trainer.get_train_dataloader()))
        trainer.model.train()
        trainer.accelerator.gradient_state._set_sync_gradients(False)
        for _ in range(leftovers):
            trainer.compute_loss(trainer.model, dict(batch))
        trainer.train()
        rates.append(trainer._capo_estimate.noise_rates.tolist())
    assert rates[0] == rates[1]
    assert rates[0] != NoiseRateEstimate().noise_rates.tolist()


def test_second_training_goes_on_with_the_estimate(model_dir, pairs, make_args):
    trainer = CAPOTrainer(model_dir, args=make_args(max_steps=3), train_dataset=pairs)
    trainer.train()
    before = trainer._capo_estimate.noise_rates.tolist()
    trainer.train()
    second = [entry for entry in trainer.state.log_history if "capo/noise_rate" in entry][-3]
    assert second["capo/noise_rate"] == pytest.approx(sum(before[1:]) / 3, rel=0.05)
    assert before != NoiseRateEstimate().noise_rates.tolist()


def test_estimate_is_frozen_after_the_first_epoch(model_dir, other_model_dir, pairs, make_args):
    """24 pairs in batches of 4: the estimate moves in the steps 1 to 6 and stays from then on."""
    reference = AutoModelForCausalLM.from_pretrained(other_model_dir)
    args = make_args(max_steps=12, per_device_train_batch_size=4)
    trainer = CAPOTrainer(model_dir, reference, args=args, train_dataset=pairs)
    trainer.train()
    found = logged(trainer, "capo/noise_rate/de")
    assert len(set(found[:6])) == 6
    assert set(found[5:]) == {found[5]}


def test_estimated_rates_scale_every_pair_by_its_group(make_args, model_dir, other_model_dir, pairs):
    """Step 2 must use what was estimated in step 1, for every pair the rate of its own language."""
    args = make_args(**COMMON | {"noise_rate": "auto", "max_steps": 2})
    trainer = CAPOTrainer(model_dir, load(other_model_dir), args=args, train_dataset=pairs)
    oracle = Oracle(pairs, load(other_model_dir))
    trainer.add_callback(oracle)
    estimates = []

    class KeepEstimates(TrainerCallback):
        def on_step_begin(self, *_, **__):
            estimates.append(trainer._capo_estimate.by_group())

    trainer.add_callback(KeepEstimates())
    trainer.train()
    size, rates = args.per_device_train_batch_size, estimates[1]
    languages = pairs["language"][size : 2 * size]
    assert len(set(rates.values())) == 3
    used = torch.tensor([rates[language] for language in languages])
    expected = expected_logs(oracle.steps[1], used, args)
    assert {key: trainer.state.log_history[1][key] for key in expected} == pytest.approx(expected, rel=1e-4)


def test_pairs_met_again_are_scaled_by_what_the_model_thought_of_them_first(
    make_args, model_dir, other_model_dir, monkeypatch
):
    """24 pairs in batches of 4 and blocks of 8. Step 9 meets the pairs of step 3 again, which met the model after the
    first block had told its temperatures: in Bayes' words, by plain sums, for every pair its language's rate."""
    monkeypatch.setattr("trl_capo.noise_rate.BLOCK_PAIRS", 8)
    pairs, sizes = make_pool(), {"max_steps": 9, "per_device_train_batch_size": 4, "learning_rate": 1e-4}
    args = make_args(**COMMON | {"noise_rate": "auto"} | sizes)
    trainer = CAPOTrainer(model_dir, load(other_model_dir), args=args, train_dataset=pairs)
    oracle, states, rates = Oracle([*pairs, *pairs], load(other_model_dir)), [], []

    class KeepEstimates(TrainerCallback):
        def on_step_begin(self, *_, **__):
            states.append(trainer._capo_estimate.state()["args"]["saved"])
            rates.append(trainer._capo_estimate.by_group())

    trainer.add_callback(oracle)
    trainer.add_callback(KeepEstimates())
    trainer.train()
    assert sum(states[1]["shares"]) == 0
    assert sum(states[2]["shares"]) == pytest.approx(1)
    own = []
    for rho, language in zip(relative_rewards(oracle.steps[2], args).tolist(), pairs["language"][8:12], strict=True):
        belief = sum(
            share / (1 + math.exp(-rho / t)) for share, t in zip(states[2]["shares"], TEMPERATURES, strict=True)
        )
        wrong = rates[8][language] * (1 - belief)
        own.append(min(0.5, wrong / (wrong + (1 - rates[8][language]) * belief)))
    own = torch.tensor(own, dtype=torch.float64)
    assert own.max() - own.min() > 0.05
    expected = expected_logs(oracle.steps[8], own, args, weight=1 - 2 * own)
    assert {key: trainer.state.log_history[8][key] for key in expected} == pytest.approx(expected, rel=2e-3)
    assert trainer.state.log_history[8]["capo/noise_rate"] == pytest.approx(float(own.mean()), rel=2e-3)
