"""The methods of a study: losses worked by hand, closed-form gradients, and TRL as the oracle for what TRL has."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import logged
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

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


def test_cdpo():
    """s = 0.1: 0.9 * 0.126928 + 0.1 * 2.126928 = 0.326928; 0.693147; 0.9 * 1.313262 + 0.1 * 0.313262 = 1.213262.

    The gradient is sigmoid(rho) - 0.9.
    """
    loss, gradient = with_gradient(lambda rho: methods.cdpo_loss(rho, smoothing=0.1))
    assert loss == pytest.approx((0.326928 + 0.693147 + 1.213262) / 3, abs=2e-6)
    assert gradient == pytest.approx([-0.019203, -0.4, -0.631059], abs=2e-6)


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


def test_wpo_weights_are_clamped_at_one_and_have_no_gradient():
    """Ratios p / sum p^2 of pair 1: chosen 2 and 0.5, rejected 0.5: weight 1 * 0.5; of pair 2: 2 and (1.5 * 6) ** 0.5.

    At rho 2 and -1 the loss is (0.5 * 0.126928 + 1 * 1.313262) / 2, its gradients -0.5 * 0.119203 and -0.731059.
    """
    ratios = torch.tensor([[9, 2.0, 0.5], [9, 2.0, 1.0], [9, 0.5, 1.0], [9, 1.5, 6.0]])[:, 1:].log().requires_grad_()
    outputs = SimpleNamespace(log_probs=ratios, log_sum_sq_probs=torch.zeros(4, 2))
    mask = torch.tensor([[1, 1, 1], [0, 1, 0], [0, 1, 0], [1, 1, 1]])
    loss, gradient = with_gradient(
        lambda rho: methods.wpo_loss(rho, outputs=outputs, completion_mask=mask), (2.0, -1.0)
    )
    assert loss == pytest.approx(0.688363, abs=2e-6)
    assert gradient == pytest.approx([-0.059602, -0.731059], abs=2e-6)
    assert ratios.grad is None


ARGUMENTS = {"train_sampling_strategy": "sequential", "beta": 0.3, "learning_rate": 2e-3}


@pytest.fixture
def reference(other_model_dir):
    return AutoModelForCausalLM.from_pretrained(other_model_dir, dtype=torch.float32)


@pytest.fixture
def study_trainer(make_args, model_dir, reference, pairs, tmp_path):
    def make(name: str, cache="none"):
        method = METHODS[name]
        study = {"method": method, "own": method.own, "references": SequenceCache(tmp_path / cache)}
        return StudyTrainer(model_dir, reference, make_args(**ARGUMENTS | method.config), train_dataset=pairs, **study)

    return make


@pytest.mark.parametrize(
    ("name", "options"),
    # WPO's on unlikely answers, so that the clamp has no effect
    [("rdpo", {"loss_type": ["robust"], "label_smoothing": 0.1}), ("wpo", {"use_weighting": True})],
)
def test_methods_of_trl_train_as_in_trl(name, options, study_trainer, make_args, model_dir, reference, pairs):
    trainer = study_trainer(name)
    theirs = DPOTrainer(model_dir, reference, make_args(DPOConfig, **ARGUMENTS | options), train_dataset=pairs)
    for one in (trainer, theirs):
        one.train()
    for key in ("loss", "grad_norm"):
        assert logged(trainer, key) == pytest.approx(logged(theirs, key), rel=1e-5 if name == "wpo" else 0, abs=0)


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
