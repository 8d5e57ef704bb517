"""The fit of noise rates: against a plain NumPy loop, by hand, and on simulated preferences."""

import json
import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import TrainerState

from trl_capo.agreement import (
    GROUP_PRIOR_PAIRS,
    NOISE_RATES,
    TEMPERATURES,
    fit,
    log_likelihood,
)
from trl_capo.noise_rate import MEMORY, NoiseRateEstimate

RATES, HEAT = torch.tensor(NOISE_RATES), torch.tensor(TEMPERATURES)


def test_log_likelihood_by_hand():
    """rho = ln 3, tau = 1: belief 3/4, so e = 0.1 gives 0.1 + 0.8 * 0.75 = 0.7; tau = ln 3 / ln 9: 0.9, so 0.82.

    e = 0.5 gives 0.5 whatever rho; rho = 0 gives 0.5 whatever e; a rho that is not finite says nothing: log 1.
    """
    rho = torch.tensor([math.log(3), 0.0, float("nan"), float("inf")])
    found = log_likelihood(rho, torch.tensor([0.1, 0.5]), torch.tensor([1.0, 0.5])).exp()
    expected = [[[0.7, 0.82], [0.5, 0.5]], [[0.5, 0.5], [0.5, 0.5]], [[1, 1], [1, 1]], [[1, 1], [1, 1]]]
    assert found.tolist() == [[pytest.approx(row) for row in pair] for pair in expected]


def posterior_means(rho, groups, count):
    """By plain loops over the grid: the overall rate and the groups'."""

    def likelihood(pairs, e, tau):
        return sum(math.log(e + (1 - 2 * e) / (1 + math.exp(-value / tau))) for value in pairs)

    def beta(e, mean, pairs):
        return (pairs * mean - 1) * math.log(e) + (pairs * (1 - mean) - 1) * math.log(1 - e)

    def shares(logs):
        weights = np.exp(np.array(logs) - np.max(logs))
        return weights / weights.sum()

    grid = [(e, tau) for e in NOISE_RATES for tau in TEMPERATURES]
    weights = shares([likelihood(rho, e, t) - 0.5 * math.log(t) ** 2 for e, t in grid])
    overall = sum(weight * e for weight, (e, _) in zip(weights, grid, strict=True))
    of_temperature = weights.reshape(len(NOISE_RATES), -1).sum(axis=0)
    by_group = []
    for group in range(count):
        own = [value for value, g in zip(rho, groups, strict=True) if g == group]
        logs = []
        for e in NOISE_RATES:
            terms = [math.exp(likelihood(own, e, t)) * w for t, w in zip(TEMPERATURES, of_temperature, strict=True)]
            logs.append(math.log(sum(terms)) + beta(e, overall, GROUP_PRIOR_PAIRS))
        by_group.append(float((shares(logs) * np.array(NOISE_RATES)).sum()))
    return [overall, *by_group]


def test_fit_equals_a_plain_loop():
    generator = np.random.default_rng(3)
    rho, groups = generator.normal(0.4, 1.5, 60).tolist(), generator.integers(0, 3, 60).tolist()
    likelihood = log_likelihood(torch.tensor(rho, dtype=torch.float64), RATES.double(), HEAT.double())
    member = torch.tensor(groups) == torch.arange(3)[:, None]
    sums = torch.stack([likelihood.sum(dim=0), *(likelihood[row].sum(dim=0) for row in member)])
    rates = fit(sums, RATES.double(), HEAT.double())
    assert rates.tolist() == pytest.approx(posterior_means(rho, groups, 3), rel=1e-6)


def simulate(estimate, flips, temperature=1.0, pairs=24_000, batch=32, spread=2.0, seed=7):
    """Preferences that follow sigmoid(margin / temperature), a group's share of the labels flipped, as a stream."""
    generator = torch.Generator().manual_seed(seed)
    labels = list(flips)
    margin = spread * torch.randn(pairs, generator=generator)
    groups = torch.randint(len(labels), (pairs,), generator=generator)
    better = torch.rand(pairs, generator=generator) < torch.sigmoid(margin / temperature)
    flipped = torch.rand(pairs, generator=generator) < torch.tensor(list(flips.values()))[groups]
    rho = torch.where(better ^ flipped, margin, -margin)
    for some_rho, some_groups in zip(rho.split(batch), groups.split(batch), strict=True):
        estimate.add(some_rho, some_groups, labels)
        estimate.end_step(Accelerator(cpu=True))
    return estimate


@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
def test_flips_of_every_group_are_found_and_hard_pairs_are_not_taken_for_flips(temperature):
    flips = {"de": 0.0, "hi": 0.1, "sw": 0.25, "cy": 0.4}
    estimate = simulate(NoiseRateEstimate(), flips, temperature, spread=3 * temperature)
    assert estimate.by_group() == pytest.approx(flips, abs=0.05)
    assert float(estimate.noise_rates[0]) == pytest.approx(sum(flips.values()) / 4, abs=0.03)


def test_batches_do_not_matter_between_steps():
    """4 micro-batches of 8 in one step are one batch of 32: the same sums, up to rounding."""
    rho = torch.randn(32, generator=torch.Generator().manual_seed(1))
    groups = torch.arange(32) % 2
    one, four = NoiseRateEstimate(), NoiseRateEstimate()
    one.add(rho, groups, ["a", "b"])
    for start in range(0, 32, 8):  # the second group is new in the second micro-batch
        part = slice(start, start + 8)
        four.add(rho[part], groups[part], ["a", "b"])
    for estimate in (one, four):
        estimate.end_step(Accelerator(cpu=True))
    assert four.noise_rates.tolist() == pytest.approx(one.noise_rates.tolist(), rel=1e-5)


def test_a_model_that_knows_nothing_moves_nothing():
    estimate, untouched = NoiseRateEstimate(), NoiseRateEstimate()
    estimate.add(torch.zeros(500), torch.full((500,), -1), [])
    estimate.end_step(Accelerator(cpu=True))
    assert estimate.noise_rates.tolist() == pytest.approx(untouched.noise_rates.tolist(), abs=1e-5)


def test_what_was_seen_long_ago_counts_less():
    """After a step of 8 pairs at rho = 2 and one of MEMORY zeros, the sums are e^-1 of the first's, and log 1/2."""
    estimate = NoiseRateEstimate()
    for rho in (torch.full((8,), 2.0), torch.zeros(int(MEMORY))):
        estimate.add(rho, torch.full_like(rho, -1, dtype=torch.long), [])
        estimate.end_step(Accelerator(cpu=True))
    first = log_likelihood(torch.full((8,), 2.0), RATES, HEAT).sum(dim=0) * math.exp(-1)
    sums = torch.tensor(estimate.state()["args"]["saved"]["sums"])[0]
    torch.testing.assert_close(sums - sums.max(), first - first.max(), atol=2e-3, rtol=0)


def test_only_pairs_that_are_new_count():
    estimate = NoiseRateEstimate()
    estimate.on_step_begin(None, TrainerState(epoch=1.0), None)
    before = estimate.state()
    estimate.add(torch.full((64,), -3.0), torch.full((64,), -1), [])
    estimate.end_step(Accelerator(cpu=True))
    assert estimate.state() == before


def test_estimate_comes_back_from_a_checkpoint_whatever_the_order_of_the_groups():
    """Through JSON, as in trainer_state.json; a resumed stream may meet its groups in another order."""
    estimate = simulate(NoiseRateEstimate(), {"en": 0.05, "sw": 0.4}, pairs=3_000)
    saved = json.loads(json.dumps(TrainerState(stateful_callbacks=[estimate]).stateful_callbacks))
    restored = NoiseRateEstimate()
    restored.on_train_begin(None, TrainerState(stateful_callbacks=saved), None)
    assert restored.by_group() == estimate.by_group()
    rho = torch.tensor([2.0, -2.0, 1.0])
    for one, groups, labels in ((estimate, [0, 1, 2], ["en", "sw", "yo"]), (restored, [2, 0, 1], ["sw", "yo", "en"])):
        one.add(rho, torch.tensor(groups), labels)
        one.end_step(Accelerator(cpu=True))
    assert restored.by_group() == pytest.approx(estimate.by_group(), rel=1e-6)


def test_a_batch_that_overflowed_does_not_end_the_estimate():
    estimate = simulate(NoiseRateEstimate(), {"a": 0.2}, pairs=1_000)
    before = estimate.noise_rates.tolist()
    estimate.add(torch.tensor([float("nan"), float("inf")]), torch.tensor([0, 0]), ["a"])
    estimate.end_step(Accelerator(cpu=True))
    assert estimate.noise_rates.tolist() == pytest.approx(before, rel=1e-4)


def test_pairs_of_no_group_and_of_a_new_one_have_the_overall_rate():
    estimate = simulate(NoiseRateEstimate(), {"a": 0.0, "b": 0.4}, pairs=4_000)
    rates = estimate.rates(torch.tensor([1, 0, -1, 2]), ["b", "a", "c"]).tolist()
    assert rates[2] == rates[3] == pytest.approx(float(estimate.noise_rates[0]))
    assert rates[0] < rates[2] < rates[1]
