"""The methods of a study: losses worked by hand, closed-form gradients, and TRL as the oracle for what TRL has."""

import pytest
import torch
import torch.nn.functional as F
from conftest import logged
from oracles import load
from trl import DPOConfig, DPOTrainer

from trl_capo.core.losses import capo_loss
from trl_capo.study import methods
from trl_capo.study.methods import METHODS, EvaluatedPairs, StudyTrainer
from trl_capo.study.speed import SequenceCache

RHO = (2.0, 0.0, -1.0)
"""-log sigmoid: 0.126928, 0.693147, 1.313262; sigmoid: 0.880797, 0.5, 0.268941; of -rho: 0.119203, 0.5, 0.731059."""


def with_gradient(loss, rho=RHO):
    """The loss, and the gradient of the sum over pairs."""
    rho = torch.tensor(rho, dtype=torch.float64, requires_grad=True)
    value = loss(rho)
    value.backward()
    return value.item(), (len(rho) * rho.grad).tolist()


@pytest.mark.parametrize(
    ("b", "expected", "gradient"),
    [(1.0, 0.597996, [-0.063643, -0.151539, -0.119177]), (0.5, 0.502500, [-0.084214, -0.113830, -0.048152])],
)
def test_dr_dpo(b, expected, gradient):
    """b = 1: exp(-l) is sigmoid(rho), so the loss is -log((0.880797 + 0.5 + 0.268941) / 3); b = 0.5: sigmoid^2.

    The gradient is DPO's, weighted by exp(-l / b) / sum exp(-l / b): 0.533901, 0.303078 and 0.163020 for b = 1.
    """
    loss, found = with_gradient(lambda rho: methods.dr_dpo_loss(rho, b=b))
    assert loss == pytest.approx(expected, abs=2e-6)
    assert [value / 3 for value in found] == pytest.approx(gradient, abs=2e-6)


def test_beta_dpo():
    """beta 0.5: margins 4, 0, -2 nats, mean 2/3; the running margin becomes 1/15.

    alpha 0.6: the factor is 1 + 0.6 (2/3 - 1/15) = 1.36, and rho 2.72, 0, -1.36: losses 0.063796, 0.693147, 1.588458;
    gradients -1.36 sigmoid(-1.36 rho). A running margin of 100 would make beta negative; then it is 0.001.
    """
    state = {}
    loss, gradient = with_gradient(lambda rho: methods.beta_dpo_loss(rho, beta=0.5, alpha=0.6, state=state))
    assert loss == pytest.approx((0.063796 + 0.693147 + 1.588458) / 3, abs=2e-6)
    assert gradient == pytest.approx([-0.084053, -0.68, -1.082233], abs=2e-6)
    assert state["margin"].item() == pytest.approx(1 / 15)
    state = {"margin": torch.tensor(100.0)}
    loss = methods.beta_dpo_loss(torch.tensor(RHO), beta=0.5, alpha=0.6, state=state)
    assert loss.item() == pytest.approx(-F.logsigmoid(0.002 * torch.tensor(RHO)).mean().item())


P = torch.sigmoid(torch.tensor(RHO, dtype=torch.float64))
DPO_GRADIENT = -(1 - P)


@pytest.mark.parametrize("gamma", [1.0, 2.0, 4.0])
def test_holder_dpo(gamma):
    """By hand at rho = 0 and gamma 2: -3 / 4 + 2 / 8 = -0.5; DPO's gradient is multiplied by g (1 + g) p^g (1 - p)."""
    loss, gradient = with_gradient(lambda rho: methods.holder_dpo_loss(rho, gamma=gamma))
    expected = gamma * (1 + gamma) * P**gamma * (1 - P) * DPO_GRADIENT
    assert gradient == pytest.approx(expected.tolist())
    assert methods.holder_dpo_loss(torch.zeros(2), gamma=2.0).item() == pytest.approx(-0.5)


@pytest.mark.parametrize("alpha", [2.0, 14.0])
def test_ropo(alpha):
    """At rho = 0: 4a / (1 + a)^2 (log 2 + a / 2); DPO's gradient is multiplied by k1 + k2 p."""
    _, gradient = with_gradient(lambda rho: methods.ropo_loss(rho, alpha=alpha))
    k1, k2 = 4 * alpha / (1 + alpha) ** 2, 4 * alpha**2 / (1 + alpha) ** 2
    assert gradient == pytest.approx(((k1 + k2 * P) * DPO_GRADIENT).tolist())
    loss = methods.ropo_loss(torch.zeros(1), alpha=alpha)
    assert loss.item() == pytest.approx(k1 * (0.693147 + alpha / 2), abs=1e-5)


def test_gated_dpo():
    """The second pair is left out: the mean of 0.126928 and 1.313262."""
    margin = torch.tensor([0.1, -0.1, 3.0])
    loss, gradient = with_gradient(lambda rho: methods.gated_loss(rho, threshold=0.0, reference_margin=margin))
    assert loss == pytest.approx((0.126928 + 1.313262) / 2, abs=2e-6)
    assert gradient == pytest.approx([-1.5 * 0.119203, 0, -1.5 * 0.731059], abs=2e-6)


def test_re_dpo():
    """w = 0.9 p / (0.9 p + 0.1 (1 - p)): 0.985186, 0.9 and 0.768030; r is 0.9 * 0.9 + 0.1 * their mean, 0.884405.

    By groups, 0 with the first pair and 1 with the others: 0.908519 and 0.893402.
    """
    for by_group, expected in ((0, {0: 0.898441}), (1, {0: 0.908519, 1: 0.893402})):
        state, groups = {}, torch.tensor([0, 1, 1])
        options = {"eta": 0.9, "momentum": 0.1, "by_group": by_group, "state": state, "groups": groups}
        weight, p = torch.tensor([0.985186, 0.9, 0.768030], dtype=torch.float64), P
        loss, gradient = with_gradient(lambda rho, options=options: methods.re_dpo_loss(rho, **options))
        assert loss == pytest.approx(-(weight * p.log() + (1 - weight) * (1 - p).log()).mean().item(), abs=1e-5)
        assert gradient == pytest.approx((p - weight).tolist(), abs=1e-5)
        assert state == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_the_gradient_of_re_dpo_is_that_of_capo_times_1_minus_2e(rate):
    """At temperature 1 and with r = 1 - e (docs/method.md)."""
    groups = torch.zeros(3, dtype=torch.long)
    options = {"eta": 1 - rate, "momentum": 0.0, "by_group": 0, "state": {}, "groups": groups}
    _, theirs = with_gradient(lambda rho: methods.re_dpo_loss(rho, **options))
    _, ours = with_gradient(lambda rho: capo_loss(rho, noise_rate=rate)[0].mean())
    assert theirs == pytest.approx([(1 - 2 * rate) * value for value in ours], rel=1e-6)


ARGUMENTS = {"train_sampling_strategy": "sequential", "beta": 0.3, "learning_rate": 2e-3}


@pytest.fixture
def study_trainer(make_args, model_dir, other_model_dir, pairs, tmp_path):
    def make(name: str, cache="none"):
        method = METHODS[name]
        study = {"method": method, "own": method.own, "references": SequenceCache(tmp_path / cache)}
        args = make_args(**ARGUMENTS | method.config)
        return StudyTrainer(model_dir, load(other_model_dir), args, train_dataset=pairs, **study)

    return make


def test_robust_dpo_trains_as_in_trl(study_trainer, make_args, model_dir, other_model_dir, pairs):
    args = make_args(DPOConfig, **ARGUMENTS, loss_type=["robust"], label_smoothing=0.1)
    trainer = study_trainer("rdpo")
    theirs = DPOTrainer(model_dir, load(other_model_dir), args, train_dataset=pairs)
    for one in (trainer, theirs):
        one.train()
    for key in ("loss", "grad_norm"):
        assert logged(trainer, key) == logged(theirs, key)


def test_cached_references_change_no_loss_and_the_evaluated_margins_are_those_of_the_metrics(
    study_trainer, pairs, tmp_path, capsys
):
    losses = []
    for cache in ("plain", "references", "references"):
        trainer = study_trainer("dr_dpo", cache)
        trainer.train()
        losses.append(logged(trainer, "loss"))
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert losses[2] == pytest.approx(losses[0], rel=1e-6)
    evaluated = EvaluatedPairs(total=48)
    trainer.add_callback(evaluated)
    metrics = trainer.evaluate(pairs)
    margins, groups = zip(*(evaluated.margins[pair] for pair in range(len(pairs))), strict=True)
    assert sum(margins) / len(margins) == pytest.approx(metrics["eval_rewards/margins"], rel=1e-5)
    assert list(groups) == pairs["language"][:]
    assert "\nprogress 48/48\n" in capsys.readouterr().out
