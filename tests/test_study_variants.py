"""The variants of CAPO that a study can measure: hand-worked numbers, and CAPO itself where they are off."""

import math

import pytest
import torch
from conftest import logged
from test_baselines import study_trainer  # noqa: F401

from trl_capo.study.methods import METHODS, Batch
from trl_capo.study.variants import OWN, mean_so_far, per_token


def loss_of(batch: Batch, **options: float) -> float:
    return METHODS["capo_variant"].loss(batch, **OWN | options).item()


def sigmoid(value: float) -> float:
    return 1.0 / (1.0 + math.exp(-value))


def test_the_floor_holds_up_pairs_that_the_model_contradicts():
    """At e = 1/2 and tau = 1 the scale is 2 sigmoid(rho): 1.761594 at rho 2; 0.035972 at rho -4, below the floor."""
    batch = Batch(torch.tensor([2.0, -4.0]), 0.1, None, torch.ones(4, 1), {}, rates=(0.5, 1.0))
    losses = [-math.log(sigmoid(2.0)), -math.log(sigmoid(-4.0))]
    assert loss_of(batch) == pytest.approx((1.761594 * losses[0] + 0.035972 * losses[1]) / 2, rel=1e-5)
    assert loss_of(batch, scale_floor=0.3) == pytest.approx((1.761594 * losses[0] + 0.3 * losses[1]) / 2, rel=1e-5)


def test_rewards_per_token():
    """Rewards 6 of 2 tokens and 4 of 4: (3 - 1) times the mean length 3 is 6; of equal length it is the difference."""
    rewards = torch.tensor([6.0, 5.0]), torch.tensor([4.0, 7.0])
    assert per_token(*rewards, torch.tensor([2, 3, 4, 3])).tolist() == pytest.approx([6.0, -2.0])


def test_confidence_by_the_rewards_per_token():
    """The scale is 2 sigmoid(6) for a pair whose rho is 2."""
    rewards = torch.tensor([6.0]), torch.tensor([4.0])
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    batch = Batch(torch.tensor([2.0]), 0.1, None, mask, {}, rates=(0.5, 1.0), rewards=rewards)
    expected = 2 * sigmoid(6.0) * -math.log(sigmoid(2.0))
    assert loss_of(batch, length_normalised=1) == pytest.approx(expected, rel=1e-5)


def test_a_pairs_mean_so_far():
    """Pair 3: 1, then 1 and -4, mean -1.5. Pair 0 comes in between, and pair 7 later makes the table larger."""
    state: dict[str, torch.Tensor] = {}
    assert mean_so_far(torch.tensor([1.0, 5.0]), torch.tensor([3, 0]), state).tolist() == [1.0, 5.0]
    assert mean_so_far(torch.tensor([2.0, -4.0]), torch.tensor([7, 3]), state).tolist() == [2.0, -1.5]


def test_confidence_by_the_mean_so_far():
    state: dict[str, torch.Tensor] = {}
    for rho, belief in ((3.0, 3.0), (-1.0, 1.0)):
        batch = Batch(torch.tensor([rho]), 0.1, None, None, state, rates=(0.5, 1.0), pairs=torch.tensor([2]))
        expected = 2 * sigmoid(belief) * -math.log(sigmoid(rho))
        assert loss_of(batch, running_mean=1) == pytest.approx(expected, rel=1e-5)


def test_confidence_by_a_calibrated_belief():
    """Temperatures 1 and 4, a quarter and a half likely, the rest nothing: p = 1/2 + 0.25 (sigmoid(4) - 1/2) + ...

    At e = 1/2 the scale is 2 p. Before a block is finished nothing is likely, p = 1/2, and the scale 1.
    """
    batch = Batch(torch.tensor([4.0]), 0.1, None, None, {}, temperature=0.5, rates=(0.5, 1.0))
    batch.calibration = torch.tensor([0.25, 0.5]), torch.tensor([1.0, 4.0])
    belief = 0.5 + 0.25 * (sigmoid(4.0) - 0.5) + 0.5 * (sigmoid(1.0) - 0.5)
    loss = -math.log(sigmoid(4.0))
    assert loss_of(batch, calibrated=1) == pytest.approx(2 * belief * loss, rel=1e-5)
    batch.calibration = torch.zeros(2), torch.tensor([1.0, 4.0])
    assert loss_of(batch, calibrated=1) == pytest.approx(loss, rel=1e-5)


def test_with_all_off_it_is_capo(study_trainer):  # noqa: F811
    """Two epochs, losses of every step: the second has rates of pairs met before."""
    found = {}
    for method in ("capo", "capo_variant"):
        trainer = study_trainer(method, max_steps=12)
        trainer.train()
        found[method] = logged(trainer, "loss")
    assert found["capo_variant"] == pytest.approx(found["capo"], rel=1e-4)


@pytest.mark.parametrize(
    ("option", "asked", "one", "alike"),
    [
        ({}, True, False, False),
        ({"first_sight": 0}, True, False, False),
        ({}, False, False, False),
        ({"first_sight": 0}, False, False, True),
        ({"one_rate": 1, "first_sight": 0}, False, True, True),
    ],
)
def test_rates(option, asked, one, alike, study_trainer, monkeypatch):  # noqa: F811
    """One rate: every pair's is the overall one. Where neither first sight nor reference tells, all labels weigh 1."""
    monkeypatch.setattr("trl_capo.noise_rate.BLOCK_PAIRS", 8.0)
    settings = {"max_steps": 12, "learning_rate": 1e-2, "use_reference_margin": asked}
    trainer = study_trainer("capo_variant", option, **settings)
    used, told = set(), set()
    take = trainer._capo_rates

    def looked_at(groups, pairs, margin):
        rates = take(groups, pairs, margin)
        overall = trainer._capo_estimate.noise_rates[0].item()
        used.update((rates[0] - overall).abs().tolist())
        told.update(torch.as_tensor(rates[1]).flatten().tolist())
        return rates

    monkeypatch.setattr(trainer, "_capo_rates", looked_at)
    trainer.train()
    assert (max(used) < 1e-5) == one
    assert (max(abs(weight - 1) for weight in told) < 1e-4) == alike
