"""The losses of other methods: numbers worked by hand, closed-form gradients, TRL where TRL has the method, limits."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import logged
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

from trl_capo.study.baselines import beta_dpo_losses, cdpo_losses, dr_dpo_loss, wpo_weights
from trl_capo.study.frozen import SequenceMemory
from trl_capo.study.methods import METHODS, Batch
from trl_capo.study.trainer import StudyTrainer

RHO = (2.0, 0.0, -1.0)
"""-log sigmoid: 0.126928, 0.693147, 1.313262; sigmoid: 0.880797, 0.5, 0.268941; of -rho: 0.119203, 0.5, 0.731059."""


def with_gradient(loss, rho=RHO):
    """The loss of the pairs, a tensor of any shape, and the gradient of its sum for rho."""
    rho = torch.tensor(rho, dtype=torch.float64, requires_grad=True)
    value = loss(rho)
    value.sum().backward()
    return value.detach(), rho.grad


def dpo(rho):
    return -F.logsigmoid(rho)


def test_cdpo():
    """Smoothing 0.1: 0.9 * 0.126928 + 0.1 * 2.126928 = 0.326928; 0.693147; 0.9 * 1.313262 + 0.1 * 0.313262 = 1.213262.

    The gradient is sigmoid(rho) - 0.9: -0.019203, -0.4, -0.631059. It vanishes at rho = log 9, where the model is as
    sure as the labels are right.
    """
    losses, gradient = with_gradient(lambda rho: cdpo_losses(rho, label_smoothing=0.1))
    assert losses.tolist() == pytest.approx([0.326928, 0.693147, 1.213262], abs=2e-6)
    assert gradient.tolist() == pytest.approx([-0.019203, -0.4, -0.631059], abs=2e-6)
    _, at_rest = with_gradient(lambda rho: cdpo_losses(rho, label_smoothing=0.1), (math.log(9),))
    assert at_rest.item() == pytest.approx(0.0, abs=1e-12)


def test_dr_dpo():
    """b = 1: exp(-l) is sigmoid(rho), so the loss is -log((0.880797 + 0.5 + 0.268941) / 3) = 0.597996.

    The gradient is DPO's, -sigmoid(-rho), weighed by exp(-l) / sum exp(-l) = 0.533901, 0.303078, 0.163020:
    -0.063643, -0.151539, -0.119177. The pair that contradicts its label counts less than a third of the first.
    """
    loss, gradient = with_gradient(lambda rho: dr_dpo_loss(rho, b=1.0))
    assert loss.shape == ()
    assert loss.item() == pytest.approx(0.597996, abs=2e-6)
    assert gradient.tolist() == pytest.approx([-0.063643, -0.151539, -0.119177], abs=2e-6)


def test_dr_dpo_of_another_b():
    """b = 0.5: exp(-2 l) is sigmoid^2: 0.775803, 0.25, 0.072329; the loss is -0.5 log(1.098132 / 3) = 0.502500.

    Weights 0.706475, 0.227660, 0.065866: gradients -0.084214, -0.113830, -0.048152.
    """
    loss, gradient = with_gradient(lambda rho: dr_dpo_loss(rho, b=0.5))
    assert loss.item() == pytest.approx(0.502500, abs=2e-6)
    assert gradient.tolist() == pytest.approx([-0.084214, -0.113830, -0.048152], abs=2e-6)


def test_beta_dpo():
    """beta 0.5: margins 4, 0, -2 nats, mean 2/3. A running margin of 0 becomes 1/15, one of 5 4.5 + 1/15 = 137/30.

    alpha 0.6: the factor is 1 + 0.6 (2/3 - 1/15) = 1.36, and rho 2.72, 0, -1.36: losses 0.063796, 0.693147, 1.588458;
    gradients -1.36 sigmoid(-1.36 rho): -1.36 * 0.061803 = -0.084053, -0.68, -1.36 * 0.795760 = -1.082233.
    """
    zero = torch.tensor(0.0)
    losses, gradient = with_gradient(lambda rho: beta_dpo_losses(rho, beta=0.5, alpha=0.6, running_margin=zero)[0])
    assert losses.tolist() == pytest.approx([0.063796, 0.693147, 1.588458], abs=2e-6)
    assert gradient.tolist() == pytest.approx([-0.084053, -0.68, -1.082233], abs=2e-6)
    _, first = beta_dpo_losses(torch.tensor(RHO), beta=0.5, alpha=0.6, running_margin=zero)
    _, second = beta_dpo_losses(torch.tensor(RHO), beta=0.5, alpha=0.6, running_margin=torch.tensor(5.0))
    assert first.item() == pytest.approx(1 / 15, rel=1e-6)
    assert second.item() == pytest.approx(137 / 30, rel=1e-6)


def test_beta_dpo_keeps_beta_positive():
    """A running margin of 100 makes the factor 1 + 0.6 (2/3 - 90.0667) < 0; beta is 0.001 then, 0.002 times 0.5."""
    losses, gradient = with_gradient(
        lambda rho: beta_dpo_losses(rho, beta=0.5, alpha=0.6, running_margin=torch.tensor(100.0))[0]
    )
    assert losses.tolist() == pytest.approx(dpo(0.002 * torch.tensor(RHO)).tolist(), rel=1e-6)
    assert gradient.tolist() == pytest.approx([-0.002 * 0.499, -0.001, -0.002 * 0.5005], abs=1e-7)


def test_wpo_weights():
    """Two pairs; p(token) / sum_v p(v)^2, geometric means over the completion's tokens, product of both completions.

    Pair 1: chosen (0.5 / 0.25) and (0.25 / 0.5): mean 1; rejected 0.3 / 0.6 in one token: 0.5. Weight 0.5.
    Pair 2: chosen 0.9 / 0.45 = 2; rejected sqrt(1.5 * 6) = 3. Weight 6, which the clamp makes 1.
    """
    ratio = torch.tensor([[2.0, 0.5], [2.0, 1.0], [0.5, 1.0], [1.5, 6.0]]).log()
    mask = torch.tensor([[1, 1], [1, 0], [1, 0], [1, 1]])
    norms = torch.tensor([[0.25, 0.5], [0.45, 0.0], [0.6, 0.0], [0.2, 0.1]])
    log_norms = torch.where(mask.bool(), norms.log(), 0.0)
    weights = wpo_weights((ratio + log_norms) * mask, log_norms, mask)
    assert weights.tolist() == pytest.approx([0.5, 6.0], rel=1e-6)


def test_wpo_loss_is_clamped_at_one_and_the_weights_have_no_gradient():
    """The pairs of `test_wpo_weights` at rho 2 and -1: (0.5 * 0.126928 + 1 * 1.313262) / 2 = 0.688363.

    The gradient is -weight sigmoid(-rho) / 2: -0.25 * 0.119203 and -0.5 * 0.731059.
    """

    class Outputs:
        log_probs = torch.tensor([[2.0, 0.5], [2.0, 1.0], [0.5, 1.0], [1.5, 6.0]]).log().requires_grad_()
        log_sum_sq_probs = torch.zeros(4, 2)

    mask = torch.tensor([[1, 1], [1, 0], [1, 0], [1, 1]])
    loss, gradient = with_gradient(lambda rho: METHODS["wpo"].loss(Batch(rho, 0.1, Outputs, mask, {})), (2.0, -1.0))
    assert loss.item() == pytest.approx(0.688363, abs=2e-6)
    assert gradient.tolist() == pytest.approx([-0.029801, -0.365529], abs=2e-6)
    assert Outputs.log_probs.grad is None


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(lambda rho: cdpo_losses(rho, label_smoothing=0.0).mean(), id="cdpo without smoothing"),
        pytest.param(lambda rho: dr_dpo_loss(rho, b=1e6), id="Dr. DPO with a large b"),
        pytest.param(
            lambda rho: beta_dpo_losses(rho, beta=0.1, alpha=0.0, running_margin=torch.tensor(3.0))[0].mean(),
            id="beta-DPO with alpha 0",
        ),
    ],
)
def test_the_limit_is_dpo(loss):
    found, expected = with_gradient(loss), with_gradient(lambda rho: dpo(rho).mean())
    for one, other in zip(found, expected, strict=True):
        assert one.tolist() == pytest.approx(other.tolist(), rel=1e-5, abs=1e-5)


def test_dr_dpo_with_a_small_b_is_the_least_loss():
    loss, _ = with_gradient(lambda rho: dr_dpo_loss(rho, b=1e-3))
    assert loss.item() == pytest.approx(0.126928, abs=2e-3)  # b log 3 above it


@pytest.mark.parametrize(
    ("loss", "named"),
    [
        (lambda rho: cdpo_losses(rho, label_smoothing=0.6), "label_smoothing=0.6"),
        (lambda rho: cdpo_losses(rho, label_smoothing=-0.1), "label_smoothing=-0.1"),
        (lambda rho: dr_dpo_loss(rho, b=0.0), "b=0.0"),
        (lambda rho: dr_dpo_loss(rho, b=float("inf")), "b=inf"),
        (lambda rho: beta_dpo_losses(rho, beta=0.1, alpha=-1.0, running_margin=torch.tensor(0.0)), "alpha=-1.0"),
        (lambda rho: beta_dpo_losses(rho, beta=0.0, alpha=0.6, running_margin=torch.tensor(0.0)), "beta=0.0"),
    ],
)
def test_a_value_out_of_its_range_is_refused(loss, named):
    with pytest.raises(ValueError, match=named):
        loss(torch.tensor(RHO))


ARGUMENTS = {"train_sampling_strategy": "sequential", "beta": 0.3, "learning_rate": 2e-3}


def reference(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture
def trl_trainer(make_args, model_dir, other_model_dir, pairs):
    def make(**options):
        args = make_args(DPOConfig, **ARGUMENTS | options)
        return DPOTrainer(model_dir, reference(other_model_dir), args, train_dataset=pairs)

    return make


@pytest.fixture
def study_trainer(make_args, model_dir, other_model_dir, pairs, tmp_path):
    """A StudyTrainer of a method on the tiny model, with another one as reference; pairs in their order."""

    def make(method: str, own=None, **options):
        args = make_args(**ARGUMENTS | METHODS[method].config | options)
        return StudyTrainer(
            model_dir,
            reference(other_model_dir),
            args,
            train_dataset=pairs,
            method=method,
            own=METHODS[method].own | (own or {}),
            references=SequenceMemory(tmp_path / "none.safetensors"),
        )

    return make


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("dpo", {}),
        ("ipo", {"loss_type": ["ipo"]}),
        ("hinge", {"loss_type": ["hinge"]}),
        ("rdpo", {"loss_type": ["robust"], "label_smoothing": 0.1}),
    ],
)
def test_what_trl_has_is_trls(method, options, study_trainer, trl_trainer):
    """Losses and gradient norms of every step, to the bit."""
    trainer, theirs = study_trainer(method), trl_trainer(**options)
    trainer.train()
    theirs.train()
    assert logged(trainer, "loss") == logged(theirs, "loss")
    assert logged(trainer, "grad_norm") == logged(theirs, "grad_norm")


def test_wpo_is_trls_where_the_clamp_does_nothing(study_trainer, trl_trainer):
    """The answers are unlikely under the untrained model, so all weights are below 1."""
    trainer, theirs = study_trainer("wpo"), trl_trainer(use_weighting=True)
    trainer.train()
    theirs.train()
    assert logged(trainer, "loss") == pytest.approx(logged(theirs, "loss"), rel=1e-5)
    assert logged(trainer, "grad_norm") == pytest.approx(logged(theirs, "grad_norm"), rel=1e-5)


@pytest.mark.parametrize("method", ["cdpo", "dr_dpo", "beta_dpo"])
def test_a_methods_loss_takes_the_place_of_dpos_in_training_alone(method, study_trainer, pairs):
    """At the limit of its own option a method trains as DPO, with its default not; evaluation is always DPO's."""
    limit = {"cdpo": {"smoothing": 0.0}, "dr_dpo": {"b": 1e3}, "beta_dpo": {"alpha": 0.0}}[method]
    found = {}
    for name, own in (("dpo", {}), ("limit", limit), ("default", {})):
        trainer = study_trainer("dpo" if name == "dpo" else method, own)
        evaluated = trainer.evaluate(pairs)["eval_loss"]
        trainer.train()
        found[name] = (evaluated, logged(trainer, "loss"), logged(trainer, "grad_norm"))
    assert found["limit"][0] == found["default"][0] == found["dpo"][0]
    for limit_values, dpo_values in zip(found["limit"][1:], found["dpo"][1:], strict=True):
        assert limit_values == pytest.approx(dpo_values, rel=2e-2, abs=2e-3)
    assert found["default"][1] != pytest.approx(found["dpo"][1], rel=1e-2)


def test_the_running_margin_of_beta_dpo_goes_from_step_to_step(study_trainer):
    trainer = study_trainer("beta_dpo")
    trainer.train()
    margins = [value / 0.3 for value in logged(trainer, "rewards/margins")]  # each step's mean margin, in nats
    expected = 0.1 * (0.81 * margins[0] + 0.9 * margins[1] + margins[2])
    assert trainer._study_state["margin"].item() == pytest.approx(expected, rel=1e-4)
