"""The running estimate: simulated preferences, what is remembered of a pair, and checkpoints."""

import json
import math

import pytest
import torch
from accelerate import Accelerator
from transformers import TrainerState

from trl_capo.agreement import TEMPERATURES
from trl_capo.noise_rate import BLOCK_PAIRS, NoiseRateEstimate


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
    assert restored.state() == estimate.state()
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


def meet(estimate, rho, pairs):
    """One optimiser step with these pairs, all of one group."""
    estimate.make_room(max(pairs) + 1, torch.device("cpu"))
    estimate.add(torch.tensor(rho), torch.zeros(len(rho), dtype=torch.long), ["a"], torch.tensor(pairs))
    estimate.end_step(Accelerator(cpu=True))


def own(estimate, pairs, rate, margin=0.0):
    """Rates and weights of these pairs of a group with this noise rate, to which the reference gives this margin."""
    estimate.make_room(max(pairs) + 1, torch.device("cpu"))
    estimate.noise_rates[1] = rate
    groups, margins = torch.zeros(len(pairs), dtype=torch.long), torch.full((len(pairs),), margin)
    rates, weights = estimate.own_rates(groups, ["a"], torch.tensor(pairs), margins)
    return rates.tolist(), weights.tolist()


def test_a_pair_has_its_own_rate_once_it_was_met():
    """A block at rho = +-2, a third of it negative, then pairs at rho = 2 and -1, in Bayes' words by a plain sum."""
    estimate = NoiseRateEstimate()
    meet(estimate, [2.0, 2.0, -2.0] * 200, list(range(600)))
    shares = estimate.state()["args"]["saved"]["shares"]
    assert sum(shares) == pytest.approx(1)
    meet(estimate, [2.0, -1.0], [700, 701])
    rates, weights = own(estimate, [700, 701, 702], 0.2)
    wrong = []
    for rho in (2.0, -1.0):
        belief = sum(share / (1 + math.exp(-rho / t)) for share, t in zip(shares, TEMPERATURES, strict=True))
        wrong.append(0.2 * (1 - belief) / (0.2 * (1 - belief) + 0.8 * belief))
    assert wrong[0] < 0.2 < wrong[1]
    assert rates == pytest.approx([wrong[0], min(wrong[1], 0.5), 0.2], rel=2e-3)  # kept in 16 bits
    assert weights == pytest.approx([(1 - 2 * rates[0]) / 0.6, (1 - 2 * rates[1]) / 0.6, 1.0])  # the last is not known


def test_pairs_of_the_first_block_keep_the_rate_of_their_group():
    """Nothing is known of the model then: its rho says nothing of the label. Half the labels wrong: weight 0.

    Up to e = 0.4 a pair like the mean of its group has weight 1; beyond, 1 - 2e in fifths.
    """
    estimate = NoiseRateEstimate()
    meet(estimate, [3.0, -3.0], [0, 1])
    assert own(estimate, [0, 1], 0.3) == (pytest.approx([0.3, 0.3]), pytest.approx([1.0, 1.0]))
    assert own(estimate, [0, 1], 0.45) == (pytest.approx([0.45, 0.45]), pytest.approx([0.5, 0.5]))
    assert own(estimate, [0, 1], 0.5) == (pytest.approx([0.5, 0.5]), pytest.approx([0.0, 0.0]))


def test_what_was_thought_first_stays():
    """A second training of the trainer meets pairs again; so do two processes that share a last batch."""
    estimate = NoiseRateEstimate()
    meet(estimate, [2.0, 2.0, -2.0] * 200, list(range(600)))
    meet(estimate, [1.0, float("nan")], [600, 601])
    before = own(estimate, [600, 601], 0.2)
    meet(estimate, [-1.0, -1.0], [600, 601])
    assert own(estimate, [600, 601], 0.2) == before
    assert before[0][1] == pytest.approx(0.2)  # what is not finite says nothing
