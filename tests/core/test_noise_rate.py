"""The running estimate: simulated preferences, the memory of each pair, the witness, and checkpoints."""

import json
import math

import pytest
import torch
from accelerate import Accelerator
from transformers import TrainerState

from trl_capo.core.noise_rate import WINDOW_PAIRS, NoiseRateEstimator

NOTHING = torch.tensor([0]), None, torch.tensor([False]), torch.tensor([0.0])  # is known about a pair of group 0


def step(estimator, rho, groups, pairs=None, trusted=None, scale=1.0):
    """One optimiser step with these pairs."""
    rho = torch.as_tensor(rho, dtype=torch.float32)
    trusted = torch.zeros(len(rho), dtype=torch.bool) if trusted is None else trusted
    estimator.add(rho, torch.full_like(rho, scale), groups, pairs, trusted)
    estimator.end_step(Accelerator(cpu=True))


def simulate(flips, temperature=1.0, pairs=24_000, batch=100, spread=2.0, seed=7):
    """Preferences that follow sigmoid(margin / temperature), a group's share of the labels flipped, as a stream."""
    estimator, generator = NoiseRateEstimator(list(flips)), torch.Generator().manual_seed(seed)
    margin = spread * torch.randn(pairs, generator=generator)
    groups = torch.randint(len(flips), (pairs,), generator=generator)
    better = torch.rand(pairs, generator=generator) < torch.sigmoid(margin / temperature)
    flipped = torch.rand(pairs, generator=generator) < torch.tensor(list(flips.values()))[groups]
    rho = torch.where(better ^ flipped, margin, -margin)
    for some_rho, some_groups in zip(rho.split(batch), groups.split(batch), strict=True):
        step(estimator, some_rho, some_groups)
    return estimator


@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
def test_flips_of_every_group_are_found_and_hard_pairs_are_not_taken_for_flips(temperature):
    """Pairs of no group, and of one that training lacks, have the overall rate."""
    flips = {"de": 0.0, "hi": 0.1, "sw": 0.25, "cy": 0.4}
    estimator = simulate(flips, temperature, spread=3 * temperature)
    assert estimator.by_group() == pytest.approx(flips, abs=0.05)
    assert float(estimator.noise_rates[0]) == pytest.approx(sum(flips.values()) / 4, abs=0.03)
    rates = estimator.group_rates(torch.tensor([0, 3, -1, 4])).tolist()
    assert rates[0] < rates[2] == rates[3] == float(estimator.noise_rates[0]) < rates[1]


def test_a_model_that_grows_surer_does_not_hide_the_flips():
    """Its margins grow a hundredfold in twenty windows, while it is right as often: 30 % flips are found."""
    generator, estimator = torch.Generator().manual_seed(5), NoiseRateEstimator([])
    for window in range(20):
        margin = 2 * torch.randn(WINDOW_PAIRS, generator=generator)
        better = torch.rand(len(margin), generator=generator) < torch.sigmoid(margin)
        flipped = torch.rand(len(margin), generator=generator) < 0.3
        sizes = margin * 0.05 * 100 ** (window / 19)
        step(estimator, torch.where(better ^ flipped, sizes, -sizes), torch.full((WINDOW_PAIRS,), -1))
    assert float(estimator.noise_rates[0]) == pytest.approx(0.3, abs=0.03)


def test_the_estimate_returns_from_a_checkpoint():
    """Through JSON, as in trainer_state.json; then both learn the same."""
    estimator = simulate({"en": 0.05, "sw": 0.4}, pairs=3_000)
    estimator.add_evidence(torch.tensor([0, 1]), torch.tensor([False, True]), torch.tensor([1.0, -0.5]))
    saved = json.loads(json.dumps(TrainerState(stateful_callbacks=[estimator]).stateful_callbacks))
    restored = NoiseRateEstimator(["en", "sw"])
    restored.on_train_begin(None, TrainerState(stateful_callbacks=saved), None)
    assert restored.state() == estimator.state()
    for one in (estimator, restored):
        step(one, [2.0, -2.0, 1.0], torch.tensor([0, 1, -1]))
    assert restored.state() == estimator.state()
    with pytest.raises(ValueError, match="an earlier trl-capo"):
        NoiseRateEstimator.from_state(restored.state() | {"args": restored.state()["args"] | {"saved": {}}})
    for other in (NoiseRateEstimator(["en"]), NoiseRateEstimator(["en", "sw"], pairs=7)):
        with pytest.raises(ValueError, match=r"resume_from_checkpoint.*'sw'"):
            other.on_train_begin(None, TrainerState(stateful_callbacks=saved), None)


def test_relative_rewards_that_are_not_finite_carry_no_information():
    estimator = simulate({"a": 0.2}, pairs=600)
    rates = estimator.noise_rates.tolist()
    step(estimator, [math.nan, math.inf, -math.inf], torch.zeros(3).long())
    assert estimator.noise_rates.tolist() == pytest.approx(rates, rel=1e-4)


def test_rates_are_fitted_in_the_first_epoch_and_frozen_afterwards():
    estimator = NoiseRateEstimator(["a"])
    rates = []
    for epoch in (0.0, 0.99, 1.0, 2.5):
        estimator.on_step_begin(None, TrainerState(epoch=epoch), None)
        step(estimator, [-2.0, 1.0, 3.0], torch.zeros(3).long())
        rates.append(estimator.noise_rates.tolist())
    assert rates[0] != rates[1] == rates[2] == rates[3]


def at_rate(estimator, pairs, rate):
    """Rates and label weights of these pairs of a group with this noise rate."""
    estimator._used_rates[1] = rate
    pairs, none = torch.tensor(pairs), torch.zeros(len(pairs), dtype=torch.bool)
    return tuple(found.tolist() for found in estimator.pair_rates(none.long(), pairs, none, none.float()))


def test_pairs_of_the_first_window_keep_the_rate_of_their_group():
    """Nothing is known about the model then. Up to e = 0.4 the weight is 1; beyond, it is 1 - 2e in fifths."""
    estimator = NoiseRateEstimator(["a"], pairs=2)
    for rate, weight in ((0.3, 1.0), (0.45, 0.5), (0.5, 0.0)):
        assert at_rate(estimator, [0, 1], rate) == (pytest.approx([rate] * 2), pytest.approx([weight] * 2))


def test_scales_are_divided_by_their_running_mean():
    """Three steps of a group by hand: sums decay by exp(-pairs / 100), and ten pairs of 1 - 2e begin them."""
    estimator, sums = NoiseRateEstimator(["a", "b"]), [0.0, 0.0]
    for scale, pairs in ((1.0, 4), (0.5, 30), (2.0, 6)):
        rate = float(estimator._used_rates[1])
        mean = max(0.2, (sums[0] + 10 * (1 - 2 * rate)) / (sums[1] + 10))
        _, weight = estimator.pair_rates(*NOTHING)
        assert float(weight) == pytest.approx((1 - 2 * rate) / mean, rel=1e-5)
        step(estimator, [1.0] * pairs + [math.nan], torch.zeros(pairs + 1).long(), scale=scale)
        decay = math.exp(-pairs / 100)
        sums = [decay * sums[0] + pairs * scale * mean, decay * sums[1] + pairs]
    estimator._in_first_epoch = False  # later, rates are frozen, but scales go on changing
    before = estimator.pair_rates(*NOTHING)
    step(estimator, [1.0] * 50, torch.zeros(50).long(), scale=0.1)
    assert estimator.pair_rates(*NOTHING)[0] == before[0]
    assert estimator.pair_rates(*NOTHING)[1] > 1.2 * before[1]


def test_a_trusted_label_is_right_and_tells_what_the_witness_is_worth():
    """Slope 1.5, and all labels of this group flipped at random, so that only trusted ones can show it."""
    generator = torch.Generator().manual_seed(3)
    x, groups = 2 * torch.randn(1000, generator=generator), torch.zeros(1000).long()
    right = torch.rand(1000, generator=generator) < torch.sigmoid(1.5 * x)
    for trusted, known in ((torch.zeros(1000).bool(), False), (torch.arange(1000) < 200, True)):
        label = torch.where(right ^ (~trusted & (torch.rand(1000, generator=generator) < 0.5)), 1.0, -1.0)
        estimator = NoiseRateEstimator(["a"])
        estimator.add_evidence(groups, trusted, label * x)
        assert (estimator._slopes[1] > 0.5) == known
    rates, weights = estimator.pair_rates(*NOTHING[:2], torch.tensor([True]), torch.tensor([-5.0]))
    assert float(rates) == 0
    assert float(weights) > 1


def test_the_first_view_of_a_pair_stays():
    """The pairs follow a window at rho = +-2, a third of it negative."""
    estimator = NoiseRateEstimator(["a"], pairs=602)
    step(estimator, [2.0, 2.0, -2.0] * 200, torch.zeros(600).long(), torch.arange(600))
    step(estimator, [1.0, math.nan], torch.zeros(2).long(), torch.tensor([600, 601]))
    before = at_rate(estimator, [600, 601], 0.2)
    step(estimator, [-1.0], torch.zeros(1).long(), torch.tensor([600]))
    assert at_rate(estimator, [600, 601], 0.2)[0] == before[0]
    assert before[0][1] == pytest.approx(0.2)


def with_witness(slopes, rates=0.2, pairs=2_400, spread=None, seed=2, checked=0):
    """An estimator that has seen a witness x with log-odds of slope * x; labels are flipped, the worst checked."""
    generator = torch.Generator().manual_seed(seed)
    groups, x = torch.arange(pairs) % len(slopes), 1.5 * torch.randn(pairs, generator=generator)
    x = x if spread is None else spread(x)
    right = torch.rand(pairs, generator=generator) < torch.sigmoid(torch.tensor(list(slopes.values()))[groups] * x)
    flipped = torch.rand(pairs, generator=generator) < torch.as_tensor(rates).expand(len(slopes))[groups]
    estimator, label = NoiseRateEstimator(list(slopes), pairs), torch.where(right ^ flipped, x, -x)
    trust = torch.where(label.argsort().argsort() < checked, 2 + flipped.long(), 0)
    estimator.add_evidence(groups, trust, torch.where(trust == 3, -label, label))
    return estimator


def languages(count, slope):
    return {f"language {index}": slope for index in range(count)}


@pytest.mark.parametrize(("rates", "most"), [([0.0], 0.01), ([0.2], 0.05), ([0.4], 0.06), ([0.1, 0.4], 0.11)])
@pytest.mark.parametrize("checked", [0, 240])
def test_a_good_witness_tells_the_rates_before_training(rates, most, checked):
    rates = (12 * rates)[:12]
    estimator = with_witness(languages(12, 3.0), rates, checked=checked)
    assert estimator.noise_rates[1:].tolist() == pytest.approx(rates, abs=most)
    assert estimator._slopes.min() > 0.4
    zeros = torch.zeros(12)
    own, weights = estimator.pair_rates(torch.arange(12), None, zeros.bool(), zeros - 3.0)
    assert (own > 0).tolist() == [rate > 0 for rate in rates]
    assert any(rates) or weights.tolist() == [1.0] * 12  # clean labels make CAPO the same as DPO


@pytest.mark.parametrize("spread", [None, torch.zeros_like, lambda x: torch.asinh(100 * x**3)])
def test_a_witness_that_knows_nothing_changes_nothing(spread):
    """Noise, 0 and heavy tails: the estimate is that without a witness."""
    for seed in range(5):
        estimator = with_witness(languages(12, 0.0), 0.2, spread=spread, seed=seed)
        without = NoiseRateEstimator(estimator.group_names, 2_400)
        assert estimator.state() == without.state()


def test_an_inverted_witness_is_used_the_other_way_round():
    estimator = with_witness(languages(12, -3.0))
    assert estimator._slopes.max() < -0.5
    assert (estimator.noise_rates - 0.2).abs().max() < 0.06


@pytest.mark.parametrize("wrong", [0.0, -3.0])
def test_a_witness_that_is_right_in_eleven_languages_and_wrong_in_one_is_not_believed_there(wrong):
    """Its share of right labels stays between those of the others; if it is inverted, its slope is, too."""
    estimator = with_witness(languages(11, 3.0) | {"wrong": wrong})
    assert estimator._slopes[1:12].min() > 0.5
    assert float(estimator._slopes[12]) <= 0
    assert float(estimator.noise_rates[12]) < 0.35
