"""The running estimate: simulated preferences, the memory of each pair, the reference's margin, and checkpoints."""

import json
import math

import pytest
import torch
from accelerate import Accelerator
from transformers import TrainerState

from trl_capo.core.noise_rate import WINDOW_PAIRS, NoiseRateEstimator

NOTHING = torch.tensor([0]), None, torch.tensor([False]), torch.tensor([0.0])  # is known about a pair of group 0


def step(estimator, rho, groups, pairs=None, witness=None, trusted=None, scale=1.0):
    """One optimiser step with these pairs."""
    rho = torch.as_tensor(rho, dtype=torch.float32)
    trusted = torch.zeros(len(rho), dtype=torch.bool) if trusted is None else trusted
    witness = torch.zeros_like(rho) if witness is None else witness
    estimator.add(rho, torch.full_like(rho, scale), groups, pairs, trusted, witness)
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
    assert rates[2] == rates[3] == float(estimator.noise_rates[0])
    assert rates[0] < rates[2] < rates[1]


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
    saved = json.loads(json.dumps(TrainerState(stateful_callbacks=[estimator]).stateful_callbacks))
    restored = NoiseRateEstimator(["en", "sw"])
    restored.on_train_begin(None, TrainerState(stateful_callbacks=saved), None)
    assert restored.state() == estimator.state()
    for one in (estimator, restored):
        step(one, [2.0, -2.0, 1.0], torch.tensor([0, 1, -1]), witness=torch.tensor([1.0, 0.5, -1.0]))
    assert restored.state() == estimator.state()
    with pytest.raises(ValueError, match="an earlier trl-capo"):
        NoiseRateEstimator.from_state(restored.state() | {"args": restored.state()["args"] | {"saved": {}}})
    for other in (NoiseRateEstimator(["en"]), NoiseRateEstimator(["en", "sw"], pairs=7)):
        with pytest.raises(ValueError, match=r"resume_from_checkpoint.*'sw'"):
            other.on_train_begin(None, TrainerState(stateful_callbacks=saved), None)


def test_relative_rewards_that_are_not_finite_carry_no_information():
    estimator = with_reference({"a": 1.0}, pairs=600)
    rates, before = estimator.noise_rates.tolist(), added_log_odds(estimator, 0, 1.0)
    estimator.noise_rates = torch.tensor(rates)
    step(estimator, [math.nan, math.inf, -math.inf], torch.zeros(3).long(), witness=torch.full((3,), -3.0))
    assert estimator.noise_rates.tolist() == pytest.approx(rates, rel=1e-4)
    assert added_log_odds(estimator, 0, 1.0) == pytest.approx(before, rel=1e-3)


def test_rates_are_fitted_in_the_first_epoch_and_frozen_afterwards():
    estimator = NoiseRateEstimator(["a"])
    rates = []
    for epoch in (0.0, 0.99, 1.0, 2.5):
        estimator.on_step_begin(None, TrainerState(epoch=epoch), None)
        step(estimator, [-2.0, 1.0, 3.0], torch.zeros(3).long())
        rates.append(estimator.noise_rates.tolist())
    assert rates[0] != rates[1]
    assert rates[1] == rates[2] == rates[3]


def at_rate(estimator, pairs, rate):
    """Rates and label weights of these pairs of a group with this noise rate."""
    estimator.noise_rates[1] = rate
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
        rate = float(estimator.noise_rates[1])
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
    """At rate 0.25 and slope 1.5; with all labels flipped at random, only trusted ones can show it."""
    estimator, generator = NoiseRateEstimator(["a"]), torch.Generator().manual_seed(3)
    estimator.noise_rates[:] = 0.5
    x = 2 * torch.randn(60, generator=generator)
    label = torch.where(torch.rand(60, generator=generator) < torch.sigmoid(1.5 * x), 1.0, -1.0)
    for trusted, known in ((False, False), (True, True)):
        step(estimator, [0.0] * 60, torch.zeros(60).long(), witness=label * x, trusted=torch.full((60,), trusted))
        estimator.noise_rates[:] = 0.5
        assert (estimator._fit_slopes()[1] > 0.5) == known
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


def with_reference(slopes, rate=0.25, pairs=6_000, estimator=None, seed=2):
    """Pairs about which the model knows nothing, while the reference has log-odds of slope * margin of being right.

    The rate is the one that an estimator starts with, which such a model leaves as it is.
    """
    estimator, generator = estimator or NoiseRateEstimator(list(slopes)), torch.Generator().manual_seed(seed)
    groups, margin = torch.arange(pairs) % len(slopes), 1.5 * torch.randn(pairs, generator=generator)
    chance = torch.sigmoid(torch.tensor(list(slopes.values()))[groups] * margin)
    agrees = torch.rand(pairs, generator=generator) < rate + (1 - 2 * rate) * chance
    margin = torch.where(agrees, margin, -margin)
    for some_groups, some_margin in zip(groups.split(40), margin.split(40), strict=True):
        step(estimator, torch.zeros(len(some_margin)), some_groups, witness=some_margin)
    return estimator


def added_log_odds(estimator, group, margin):
    """What the reference's margin adds to the log-odds that the label of a new pair is right, at a rate of 0.4."""
    estimator.noise_rates = torch.full_like(estimator.noise_rates, 0.4)
    rates, _ = estimator.pair_rates(torch.tensor([group]), None, torch.tensor([False]), torch.tensor([margin]))
    return math.log((1 - float(rates)) / float(rates)) - math.log(1.5) if float(rates) < 0.5 else -math.inf


def test_the_worth_of_the_reference_is_learned_group_by_group():
    """It knows one language, prefers wrong answers in the second, and guesses in the third."""
    estimator = with_reference({"knows": 1.5, "wrong": -1.5, "guesses": 0.0})
    assert added_log_odds(estimator, 0, 1.0) == pytest.approx(1.5, abs=0.3)
    assert added_log_odds(estimator, 1, -1.0) == pytest.approx(1.5, abs=0.3)
    assert added_log_odds(estimator, 1, 1.0) == -math.inf  # more likely wrong than right
    assert added_log_odds(estimator, 2, 1.0) == pytest.approx(0.0, abs=0.3)
    assert added_log_odds(NoiseRateEstimator([]), -1, 5.0) == pytest.approx(0.0, abs=1e-2)


def test_the_witness_does_not_count_in_a_group_of_few_pairs():
    """The reference knows nine languages well, and prefers wrong answers in the tenth: nothing is concluded from 4."""
    slopes = {f"knows {index}": 1.5 for index in range(9)} | {"wrong": -1.5}
    estimator = with_reference({name: 1.5 for name in slopes if name != "wrong"}, estimator=NoiseRateEstimator(slopes))
    with_reference(slopes, pairs=40, estimator=estimator)
    assert added_log_odds(estimator, 9, 1.0) == pytest.approx(0.0, abs=1e-6)
    with_reference(slopes, pairs=12_000, estimator=estimator)
    assert added_log_odds(estimator, 9, 1.0) == -math.inf
    assert added_log_odds(estimator, 0, 1.0) == pytest.approx(1.5, abs=0.3)
