"""The estimate of the noise rates at work in CAPOTrainer: which pairs it uses, and which pairs use it."""

import math

import pytest
import torch
from accelerate import Accelerator
from oracles import COMMON, Oracle, expected_logs, load, relative_rewards
from pair_oracle import make_pool
from rates_oracle import KeepEstimates, pair_rates

from trl_capo import CAPOTrainer
from trl_capo.core.noise_rate import NoiseRateEstimator

AUTO = COMMON | {"noise_rate": "auto"}
SCORES = [4.0, 1.0, -0.5, 3.0, 0.5, 2.0] * 4
X = [math.asinh(score / 1.5) for score in SCORES]


@pytest.fixture(autouse=True)
def median_slopes(monkeypatch):
    """The lower quantile that is used otherwise is 0 after so few pairs."""
    monkeypatch.setattr("trl_capo.core.noise_model.PESSIMISM", 0.5)


@pytest.fixture
def train(model_dir, other_model_dir, make_args):
    """Trains; returns the trainer, the oracle and the estimates before every step. Keywords are options."""

    def run(rows, repeats=1, **options):
        oracle, rows = Oracle([*rows] * repeats, load(other_model_dir)), rows.add_column("score", SCORES)
        args = make_args(**AUTO | options)
        trainer = CAPOTrainer(model_dir, load(other_model_dir), args, train_dataset=rows, callbacks=[oracle])
        kept = KeepEstimates(trainer)
        trainer.add_callback(kept)
        trainer.train()
        return trainer, oracle, kept

    return run


def test_a_second_training_continues_the_estimate(train, pairs):
    """3 steps each: the fourth begins with what was known after the third, about the labels and the witness."""
    trainer, _, kept = train(pairs, max_steps=3, witness="score")
    state = trainer.noise_rate_estimator.state()["args"]
    trainer.train()
    assert kept.states[3] == state != kept.states[0]


@pytest.mark.parametrize("witness", ["score", "none"])
def test_pairs_that_return_are_scaled_by_the_first_view_of_them_or_the_witness(train, monkeypatch, witness):
    """24 pairs in batches of 4 and windows of 8. Step 9 sees the pairs of step 3 again, which came after the first
    window had found its temperature: in Bayes' words, by plain sums, for every pair its language's rate."""
    monkeypatch.setattr("trl_capo.core.noise_rate.WINDOW_PAIRS", 8)
    rows = make_pool()
    trainer, oracle, kept = train(rows, 2, max_steps=9, learning_rate=1e-4, witness=witness)
    assert [sum(posterior) for posterior in kept.temperatures[1:3]] == [0, pytest.approx(1)]
    rhos = relative_rewards(oracle.steps[2], trainer.args).tolist()
    assert any(kept.known[8][1].values()) == (witness == "score")
    first_view = {"rhos": rhos, "temperature_posterior": kept.temperatures[2], "witness": X[8:12]}
    used, label_weight = pair_rates(rows["language"][8:12], *kept.known[8], **first_view)
    assert used.max() - used.min() > 0.05
    expected = expected_logs(oracle.steps[8], used, trainer.args, label_weight)
    expected["capo/noise_rate"] = float(used.mean())
    assert {key: trainer.state.log_history[8][key] for key in expected} == pytest.approx(expected, rel=2e-3)


def test_pairs_of_weight_0_carry_no_information_about_the_noise_rate(train, pairs):
    """One step of 4 pairs: the rate is that of an estimate of the two that count, however much they weigh."""
    trainer, oracle, _ = train(pairs.add_column("weight", [0.0, 0.5, 0.0, 7.0] * 6), max_steps=1)
    rates = []
    for rows in ([1, 3], [0, 1, 2, 3]):
        alone, numbers = NoiseRateEstimator(["de", "sw", "日本"], pairs=24), torch.tensor(rows)
        rho = relative_rewards(oracle.steps[0], trainer.args)[rows].float()
        zeros = torch.zeros(len(rows))
        alone.add(rho, zeros, numbers % 3, numbers, zeros.bool())
        alone.end_step(Accelerator(cpu=True))
        rates.append(alone.noise_rates)
    torch.testing.assert_close(trainer.noise_rate_estimator.noise_rates, rates[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(rates[0], rates[1], atol=1e-3)
