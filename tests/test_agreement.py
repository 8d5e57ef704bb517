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
    TEMPERATURE_SPREAD,
    TEMPERATURES,
    fit,
    log_likelihood,
)
from trl_capo.noise_rate import BLOCK_PAIRS, NoiseRateEstimate

RATES, HEAT = torch.tensor(NOISE_RATES), torch.tensor(TEMPERATURES)


def test_log_likelihood_by_hand():
    """rho = ln 3, tau = 1: belief 3/4, so e = 0.1 gives 0.1 + 0.8 * 0.75 = 0.7; tau = ln 3 / ln 9: 0.9, so 0.82.

    e = 0.5 gives 0.5 whatever rho; rho = 0 gives 0.5 whatever e; a rho that is not finite says nothing: log 1.
    """
    rho = torch.tensor([math.log(3), 0.0, float("nan"), float("inf")])
    found = log_likelihood(rho, torch.tensor([0.1, 0.5]), torch.tensor([1.0, 0.5])).exp()
    expected = [[[0.7, 0.82], [0.5, 0.5]], [[0.5, 0.5], [0.5, 0.5]], [[1, 1], [1, 1]], [[1, 1], [1, 1]]]
    assert found.tolist() == [[pytest.approx(row) for row in pair] for pair in expected]


def normalised(logs):
    weights = np.exp(np.array(logs) - np.max(logs))
    return weights / weights.sum()


def log_mean_exp(logs, weights):
    return math.log(sum(math.exp(log) * weight for log, weight in zip(logs, weights, strict=True)))


def posterior_means(blocks, count):
    """By plain loops over the grid: the overall rate and the groups', of blocks of (rho, groups)."""
    of_temperature = normalised([-0.5 * (math.log(t) / TEMPERATURE_SPREAD) ** 2 for t in TEMPERATURES])
    known, known_of_group = [0.0] * len(NOISE_RATES), [[0.0] * len(NOISE_RATES) for _ in range(count)]
    for rho, groups in blocks:

        def likelihoods(e, pairs):
            return [sum(math.log(e + (1 - 2 * e) / (1 + math.exp(-r / t))) for r in pairs) for t in TEMPERATURES]

        logs = [
            [before + log + math.log(prior) for log, prior in zip(likelihoods(e, rho), of_temperature, strict=True)]
            for e, before in zip(NOISE_RATES, known, strict=True)
        ]
        of_block = normalised(logs).sum(axis=0)
        known = [
            k + log_mean_exp(likelihoods(e, rho), of_temperature) for e, k in zip(NOISE_RATES, known, strict=True)
        ]
        for group, before in enumerate(known_of_group):
            own = [value for value, g in zip(rho, groups, strict=True) if g == group]
            for row, e in enumerate(NOISE_RATES):
                before[row] += log_mean_exp(likelihoods(e, own), of_block)
    overall = float(normalised(known) @ np.array(NOISE_RATES))
    means, evidence = [], []
    for pairs in GROUP_PRIOR_PAIRS:
        a, b = pairs * overall - 1, pairs * (1 - overall) - 1
        prior = normalised([a * math.log(e) + b * math.log(1 - e) for e in NOISE_RATES])
        posteriors = [normalised(np.log(prior) + np.array(logs)) for logs in known_of_group]
        means.append([float(posterior @ np.array(NOISE_RATES)) for posterior in posteriors])
        evidence.append(sum(log_mean_exp(logs, prior) for logs in known_of_group))
    return [overall, *(normalised(evidence) @ np.array(means))]


def test_fit_equals_a_plain_loop():
    """Two blocks, in the second of which the model is surer of itself, and three groups, one of them noisier."""
    generator = np.random.default_rng(3)
    blocks = []
    for spread in (0.5, 2.0):
        groups = generator.integers(0, 3, 60)
        rho = generator.normal(spread, spread, 60) * np.where((groups == 2) & (generator.random(60) < 0.4), -1, 1)
        blocks.append((rho.tolist(), groups.tolist()))
    past = torch.zeros(4, len(NOISE_RATES), dtype=torch.float64)
    for rho, groups in blocks:
        likelihood = log_likelihood(torch.tensor(rho, dtype=torch.float64), RATES.double(), HEAT.double())
        member = torch.tensor(groups) == torch.arange(3)[:, None]
        block = torch.stack([likelihood.sum(dim=0), *(likelihood[row].sum(dim=0) for row in member)])
        rates, past = fit(past, block, RATES.double(), HEAT.double())
    assert rates.tolist() == pytest.approx(posterior_means(blocks, 3), rel=1e-6)
    assert max(rates.tolist()) - min(rates.tolist()) > 0.05


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


def test_a_model_that_grows_surer_of_itself_does_not_hide_the_flips():
    """Its margins grow a hundredfold in twenty blocks, while it is right as often: 30 % flips are found."""
    generator = torch.Generator().manual_seed(5)
    estimate, accelerator = NoiseRateEstimate(), Accelerator(cpu=True)
    for block in range(20):
        margin = 2 * torch.randn(int(BLOCK_PAIRS), generator=generator)
        better = torch.rand(len(margin), generator=generator) < torch.sigmoid(margin)
        flipped = torch.rand(len(margin), generator=generator) < 0.3
        sizes = margin * 0.05 * 100 ** (block / 19)
        estimate.add(torch.where(better ^ flipped, sizes, -sizes), torch.full((len(margin),), -1), [])
        estimate.end_step(accelerator)
    assert float(estimate.noise_rates[0]) == pytest.approx(0.3, abs=0.03)


def test_groups_that_are_alike_borrow_more_from_each_other():
    """60 pairs a group. A prior of 10 pairs lets the first stray by 4 points, one of 300 pulls the others together."""
    alike = simulate(NoiseRateEstimate(), dict.fromkeys("abcdef", 0.25), pairs=360, spread=6.0).noise_rates
    rates = {group: 0.05 if group in "abc" else 0.45 for group in "abcdef"}
    apart = simulate(NoiseRateEstimate(), rates, pairs=360, spread=6.0).by_group()
    assert (alike[1:] - alike[0]).abs().max() < 0.015
    assert max(apart[group] for group in "abc") + 0.1 < min(apart[group] for group in "def")


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
