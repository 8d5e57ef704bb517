"""The loss against numbers worked by hand, closed forms and bounds."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trl_capo.core.losses import capo_loss, confidence_scale, relative_reward
from trl_capo.core.trainer import sequence_log_probs


def test_worked_numbers():
    """rho = 2 and -2, tau 2, noise rate 0.2.

    With E = exp(1), exp(-rho / tau) = 1 / E and E. s = 1 / (0.8 + 0.2 exp(-rho / tau)):
    1 / (0.8 + 0.2 / E) = 1.144720 and 1 / (0.8 + 0.2 E) = 0.744238.
    -log sigmoid(2) = 0.126928, -log sigmoid(-2) = 2.126928. The label weights 0.5 and 3 multiply the scales.
    """
    rho, weight = torch.tensor([2.0, -2.0]).requires_grad_(), torch.tensor([0.5, 3.0])
    losses, scale = capo_loss(rho, noise_rate=0.2, temperature=2.0)
    assert not scale.requires_grad
    assert scale.tolist() == pytest.approx([1.144720, 0.744238], abs=2e-6)
    assert losses.tolist() == pytest.approx([1.144720 * 0.126928, 0.744238 * 2.126928], abs=5e-6)
    weighted_losses, weighted_scale = capo_loss(rho, noise_rate=0.2, temperature=2.0, label_weight=weight)
    torch.testing.assert_close(weighted_scale, weight * scale)
    torch.testing.assert_close(weighted_losses, weight * losses)


@given(
    rho=st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=20),
    noise_rate=st.floats(0, 0.5),
    temperature=st.floats(0.05, 100),
)
def test_scale_is_bounded_and_grows_with_the_relative_reward(rho, noise_rate, temperature):
    scale = confidence_scale(torch.tensor(sorted(rho)), noise_rate=noise_rate, temperature=temperature)
    assert (scale >= 0).all()
    assert (scale <= (1 + 1e-6) / (1 - noise_rate)).all()
    assert (scale.diff() >= 0).all()


@pytest.mark.parametrize("noise_rate", [0.05, 0.2, 0.45])
def test_gradient_is_that_of_the_noise_aware_likelihood(noise_rate):
    """At tau = 1, (1 - 2e) times ours is the gradient of -log((1-e) sigmoid(rho) + e sigmoid(-rho))."""
    rho = torch.linspace(-8, 8, 33, dtype=torch.float64).requires_grad_()
    likelihood = (1 - noise_rate) * torch.sigmoid(rho) + noise_rate * torch.sigmoid(-rho)
    (expected,) = torch.autograd.grad(-likelihood.log().sum(), rho)
    losses, _ = capo_loss(rho, noise_rate=noise_rate)
    (ours,) = torch.autograd.grad(losses.sum(), rho)
    torch.testing.assert_close((1 - 2 * noise_rate) * ours, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("noise_rate", [0.0, 0.005, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_stays_finite_at_extreme_relative_rewards(dtype, noise_rate, temperature):
    rho = torch.tensor([-1e4, -88.0, -1e-4, 0.0, 1e-4, 88.0, 1e4], dtype=dtype).requires_grad_()
    losses, scale = capo_loss(rho, noise_rate=noise_rate, temperature=temperature)
    (gradient,) = torch.autograd.grad(losses.sum(), rho)
    for values in (losses, scale, gradient):
        assert torch.isfinite(values).all()
    assert losses.dtype == scale.dtype == torch.float32


@pytest.mark.parametrize(
    ("option", "value"),
    [("noise_rate", -0.1), ("noise_rate", 0.51), ("noise_rate", math.nan), ("noise_rate", torch.zeros(2))]
    + [("temperature", value) for value in (0.0, -1.0, math.inf, math.nan)],
)
def test_hyperparameters_out_of_range_are_refused_by_name(option, value):
    named = r"shape \(B,\)" if isinstance(value, torch.Tensor) else f"{option}={value}"
    with pytest.raises(ValueError, match=named):
        capo_loss(torch.zeros(3), **{"noise_rate": 0.1, "temperature": 1.0, option: value})


@pytest.mark.parametrize(
    ("divergence", "coefficient", "score"),
    [
        ("reverse_kl", 0.5, lambda t: math.log(t)),
        ("forward_kl", 0.5, lambda t: 1 - 1 / t),
        ("js_divergence", 0.5, lambda t: math.log(2 * t / (t + 1))),
        ("alpha_divergence", 0.5, lambda t: (t**-0.5 - 1) / -0.5),
        ("alpha_divergence", 1.0, lambda t: math.log(t)),
    ],
)
def test_relative_reward_is_beta_times_the_difference_of_f_prime(divergence, coefficient, score):
    """f'(t) of each divergence as f-DPO defines it, t = pi / pi_ref, written here in powers of t."""
    expected = 0.3 * (score(math.exp(0.9)) - score(math.exp(-1.4)))
    options = {"f_divergence_type": divergence, "f_alpha_divergence_coef": coefficient}
    rho = relative_reward(torch.tensor([0.9]), torch.tensor([-1.4]), beta=0.3, **options)
    assert rho.item() == pytest.approx(expected, rel=1e-5)


def test_length_desensitised_log_probs():
    """Chosen has 3 tokens of -1, -2, -4 after one prompt token, rejected 1 of -8: beyond the first, alpha counts.

    alpha 0.25: chosen -1 + 0.25 (-2 - 4) = -2.5; alpha 0: -1; alpha 1 and None: -7; the rejected stays -8.
    """
    log_probs = torch.tensor([[0.0, -1.0, -2.0, -4.0], [0.0, -8.0, 0.0, 0.0]])
    mask = torch.tensor([[0, 1, 1, 1], [0, 1, 0, 0]])
    for alpha, chosen in ((0.25, -2.5), (0.0, -1.0), (1.0, -7.0), (None, -7.0)):
        assert sequence_log_probs(log_probs, mask, ld_alpha=alpha).tolist() == [chosen, -8.0]
