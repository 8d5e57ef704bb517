"""The estimate of the noise rates at work in CAPOTrainer: which pairs it uses, and which pairs use it."""

import pytest
import torch
from conftest import logged
from test_modes import COMMON, Oracle, expected_logs, load
from transformers import AutoModelForCausalLM, TrainerCallback

from trl_capo import CAPOTrainer
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
