"""The running estimate of what the reference's margins tell of the labels, on simulated preferences."""

import json
import math

import pytest
import torch
from accelerate import Accelerator

from trl_capo.noise_rate import NoiseRateEstimate
from trl_capo.reference import SLOPES


def with_reference(estimate, slopes, rate=0.25, pairs=6_000, seed=2, batch=60):
    """Pairs of which the model knows nothing, and the reference has log-odds of slope * margin of being right.

    The rate is the one that an estimate starts with, and such a model leaves as it is.
    """
    generator = torch.Generator().manual_seed(seed)
    groups = torch.arange(pairs) % len(slopes)
    margin = 1.5 * torch.randn(pairs, generator=generator)
    chance = torch.sigmoid(torch.tensor(list(slopes.values()))[groups] * margin)
    agrees = torch.rand(pairs, generator=generator) < rate + (1 - 2 * rate) * chance
    margin = torch.where(agrees, margin, -margin)
    for some_groups, some_margin in zip(groups.split(batch), margin.split(batch), strict=True):
        estimate.add(torch.zeros(len(some_margin)), some_groups, list(slopes), margin=some_margin)
        estimate.end_step(Accelerator(cpu=True))
    return estimate


def said(estimate, group, margin):
    """What the reference's margin adds to the log-odds that the label is right, of a pair that has not been met."""
    estimate.noise_rates = torch.full_like(estimate.noise_rates, 0.4)
    rates, _ = estimate.own_rates(torch.tensor([group]), estimate.labels, None, torch.tensor([margin]))
    return math.log((1 - float(rates)) / float(rates)) - math.log(1.5) if float(rates) < 0.5 else -math.inf


def test_what_the_reference_says_is_learned_language_by_language():
    """It knows one language, prefers wrong answers in the second, and guesses in the third."""
    estimate = with_reference(NoiseRateEstimate(), {"knows": 1.5, "wrong": -1.5, "guesses": 0.0})
    assert said(estimate, 0, 1.0) == pytest.approx(1.5, abs=0.3)
    assert said(estimate, 1, -1.0) == pytest.approx(1.5, abs=0.3)
    assert said(estimate, 1, 1.0) == -math.inf  # more likely wrong than right: left out
    assert said(estimate, 2, 1.0) == pytest.approx(0.0, abs=0.3)


def test_a_reference_of_which_nothing_is_known_says_nothing():
    estimate = NoiseRateEstimate()
    rates, weights = estimate.own_rates(torch.tensor([-1]), [], None, torch.tensor([5.0]))
    assert rates.tolist() == pytest.approx([0.25], rel=1e-3)
    assert weights.tolist() == pytest.approx([1.0], rel=1e-3)


def test_without_groups_all_pairs_are_the_only_one():
    """The slopes are as likely as those of a single group of the same pairs, at the same rate."""
    one, none = NoiseRateEstimate(), NoiseRateEstimate()
    with_reference(one, {"all of them": 1.5}, pairs=200)
    sums = one._reference[:1]
    none._reference, none.noise_rates = sums.clone(), one.noise_rates[1:].clone()
    none._fit_slopes()
    assert none._of_slope.shape == (2, len(SLOPES))
    assert none._of_slope[0].tolist() == pytest.approx(one._of_slope[1].tolist(), abs=1e-6)
    assert none._of_slope[1].tolist() == pytest.approx(one._of_slope[2].tolist(), abs=1e-6)


def test_what_is_known_of_the_reference_is_saved_and_follows_its_group():
    estimate = with_reference(NoiseRateEstimate(), {"knows": 1.5, "wrong": -1.5}, pairs=1_200)
    restored = NoiseRateEstimate(**json.loads(json.dumps(estimate.state()))["args"])
    for one, labels, groups in ((estimate, ["knows", "wrong"], [0, 1]), (restored, ["wrong", "knows"], [1, 0])):
        one.add(torch.zeros(2), torch.tensor(groups), labels, margin=torch.tensor([1.0, -1.0]))
        one.end_step(Accelerator(cpu=True))
    for group in (0, 1):
        assert said(restored, 1 - group, 1.0) == pytest.approx(said(estimate, group, 1.0), rel=1e-4)


def test_pairs_that_say_nothing_of_the_rate_say_nothing_of_the_reference():
    estimate = with_reference(NoiseRateEstimate(), {"a": 1.0}, pairs=600)
    before = said(estimate, 0, 1.0)
    estimate.add(
        torch.full((60,), torch.nan), torch.zeros(60, dtype=torch.long), ["a"], margin=torch.full((60,), -3.0)
    )
    estimate.end_step(Accelerator(cpu=True))
    assert said(estimate, 0, 1.0) == pytest.approx(before, rel=1e-3)


def test_a_reference_that_repeats_the_model_adds_nothing():
    """Its margin is the rho of a calibrated model, whose evidence has said it: the slope is what it knows beyond."""
    generator, estimate = torch.Generator().manual_seed(4), NoiseRateEstimate()
    rho = 1.5 * torch.randn(12_000, generator=generator)
    agrees = torch.rand(len(rho), generator=generator) < 0.2 + 0.6 * torch.sigmoid(rho)
    rho = torch.where(agrees, rho, -rho)
    for some in rho.split(100):
        estimate.add(some, torch.zeros(len(some), dtype=torch.long), ["a"], margin=some)
        estimate.end_step(Accelerator(cpu=True))
    assert abs(said(estimate, 0, 1.0)) < 0.25


def test_a_group_that_appears_late_is_presumed_to_be_like_the_others_and_less_surely():
    """The two others' slopes are near 1.5. With normal priors of variance 1 about a mean, and about 0 for that, two
    known slopes a make the mean normal about 2/3 a; the late group's slope has the variance 1 + 1/3."""
    estimate = with_reference(NoiseRateEstimate(), {"a": 1.5, "b": 1.5}, pairs=12_000)
    labels, rate = ["a", "b", "late"], float(estimate.noise_rates[0])
    rates, _ = estimate.own_rates(torch.tensor([2, 0]), labels, None, torch.tensor([1.0, 1.0]))
    slopes = torch.linspace(-3, 3, 601, dtype=torch.float64)
    likely = torch.softmax(-0.5 * (slopes - 1.0) ** 2 / (4 / 3), dim=0)
    belief = float((likely * torch.sigmoid(slopes)).sum())
    wrong = rate * (1 - belief)
    assert float(rates[0]) == pytest.approx(wrong / (wrong + (1 - rate) * belief), abs=0.01)
    assert rates[1] < rates[0] - 0.02


def test_a_group_of_few_pairs_looks_to_the_others_and_one_of_many_does_not():
    """The reference knows nine languages well, and prefers wrong answers in the tenth."""
    known = {f"knows {index}": 1.5 for index in range(9)}
    estimate = with_reference(NoiseRateEstimate(), known, pairs=12_000)
    with_reference(estimate, known | {"wrong": -1.5}, pairs=40, batch=10)
    assert said(estimate, 9, 1.0) > 0.1
    with_reference(estimate, known | {"wrong": -1.5}, pairs=12_000)
    assert said(estimate, 9, 1.0) == -math.inf
    assert said(estimate, 9, -1.0) == pytest.approx(1.5, abs=0.3)
    assert said(estimate, 0, 1.0) == pytest.approx(1.5, abs=0.3)


@pytest.mark.parametrize(("rate", "slope"), [(0.1, 1.0), (0.3, 2.0), (0.4, 6.0)])
def test_the_mean_weight_lies_between_1_and_what_perfect_knowledge_gives(rate, slope):
    """Calibrated pairs: at least 1, and at most (1 - e) / (1 - 2e), where every flipped label is known."""
    generator, estimate = torch.Generator().manual_seed(6), NoiseRateEstimate()
    estimate.noise_rates = torch.tensor([rate])
    steepest = min(slope, max(SLOPES))  # beyond it, wider margins stand for steeper slopes
    estimate._of_slope = (torch.tensor(SLOPES) == steepest).float().expand(2, -1)
    margin = 1.5 * torch.randn(100_000, generator=generator) * slope / steepest
    chance = rate + (1 - 2 * rate) * torch.sigmoid(steepest * margin)
    agrees = torch.rand(len(margin), generator=generator) < chance
    margin = torch.where(agrees, margin, -margin)
    _, weights = estimate.own_rates(torch.full((len(margin),), -1), [], None, margin)
    assert 1.0 - 0.02 < float(weights.mean()) < (1 - rate) / (1 - 2 * rate) + 0.02
