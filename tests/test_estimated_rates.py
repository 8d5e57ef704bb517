"""The estimate of the noise rates at work in CAPOTrainer: which pairs it uses, and which pairs use it."""

import pytest
from conftest import logged
from pair_oracle import make_pool
from rates_oracle import KeepEstimates, own_rates, slopes_after_a_step
from test_modes import COMMON, Oracle, expected_logs, load, relative_rewards
from transformers import AutoModelForCausalLM

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


def test_second_training_goes_on_with_the_estimate(model_dir, other_model_dir, pairs, make_args):
    """3 steps each: the fourth begins with what was known after the third, of the labels and of the reference."""
    trainer = CAPOTrainer(model_dir, load(other_model_dir), args=make_args(max_steps=3), train_dataset=pairs)
    kept = KeepEstimates(trainer)
    trainer.add_callback(kept)
    trainer.train()
    state = trainer._capo_estimate.state()["args"]["saved"]
    trainer.train()
    assert kept.states[3] == state != kept.states[0]


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
    """Step 2 must use what was estimated in step 1, for every pair the rate of its own language, and what the
    reference's margin says of it there."""
    args = make_args(**COMMON | {"noise_rate": "auto", "max_steps": 2})
    trainer = CAPOTrainer(model_dir, load(other_model_dir), args=args, train_dataset=pairs)
    oracle = Oracle(pairs, load(other_model_dir))
    trainer.add_callback(oracle)
    kept = KeepEstimates(trainer)
    trainer.add_callback(kept)
    trainer.train()
    size, rates = args.per_device_train_batch_size, kept.rates[1]
    assert len(set(rates.values())) == 4  # three languages, and all
    used, weight = own_rates(oracle.steps[1], pairs["language"][size : 2 * size], rates, kept.of_slope[1])
    assert used.max() - used.min() > 0.05
    assert kept.of_slope[1] == {
        name: pytest.approx(shares, abs=1e-4)
        for name, shares in slopes_after_a_step(oracle.steps[0], pairs["language"][:size], rates).items()
    }
    expected = expected_logs(oracle.steps[1], used, args, weight)
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
    oracle, kept = Oracle([*pairs, *pairs], load(other_model_dir)), KeepEstimates(trainer)
    trainer.add_callback(oracle)
    trainer.add_callback(kept)
    trainer.train()
    shares = [state["shares"] for state in kept.states]
    assert sum(shares[1]) == 0
    assert sum(shares[2]) == pytest.approx(1)
    rhos = relative_rewards(oracle.steps[2], args).tolist()
    own, weight = own_rates(oracle.steps[8], pairs["language"][8:12], kept.rates[8], kept.of_slope[8], rhos, shares[2])
    assert own.max() - own.min() > 0.05
    expected = expected_logs(oracle.steps[8], own, args, weight)
    assert {key: trainer.state.log_history[8][key] for key in expected} == pytest.approx(expected, rel=2e-3)
    assert trainer.state.log_history[8]["capo/noise_rate"] == pytest.approx(float(own.mean()), rel=2e-3)


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({}, True),
        ({"sync_ref_model": True, "ref_model_sync_steps": 1}, False),
        ({"use_reference_margin": False}, False),
    ],
)
def test_a_reference_that_has_learned_from_the_labels_has_no_say(
    model_dir, other_model_dir, pairs, make_args, options, asked
):
    """One that follows the policy, or of which the user says so: after two steps all slopes are equally likely."""
    args = make_args(max_steps=2, **options)
    trainer = CAPOTrainer(model_dir, load(other_model_dir), args=args, train_dataset=pairs)
    trainer.train()
    by_slope = trainer._capo_estimate._reference
    assert (by_slope.std(dim=2).max() > 1e-4) == asked
