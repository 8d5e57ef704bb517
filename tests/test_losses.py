"""The loss against numbers worked by hand, closed forms, fractions and simulated preferences."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trl_capo import capo_loss, confidence_scale
from trl_capo.losses import relative_reward, sequence_log_probs

RATES = (0.0, 0.005, 0.1, 0.3, 0.5)


def scale_of(rho, noise_rate, temperature=1.0, dtype=torch.float32):
    return confidence_scale(torch.tensor(rho, dtype=dtype), noise_rate=noise_rate, temperature=temperature)


def test_worked_numbers():
    """beta 0.5, tau 2, noise rate 0.2; log-ratios (4, 0) and (-2, 2): rho = 2 and -2.

    With E = exp(1), exp(-rho / tau) = 1 / E and E. s = 1 / (0.8 + 0.2 exp(-rho / tau)):
    1 / (0.8 + 0.2 / E) = 1.144720 and 1 / (0.8 + 0.2 E) = 0.744238.
    -log sigmoid(2) = 0.126928, -log sigmoid(-2) = 2.126928.
    """
    losses, scale = capo_loss(
        torch.tensor([4.0, -2.0]), torch.tensor([0.0, 2.0]), beta=0.5, noise_rate=0.2, temperature=2.0
    )
    assert scale.tolist() == pytest.approx([1.144720, 0.744238], abs=2e-6)
    assert losses.tolist() == pytest.approx([1.144720 * 0.126928, 0.744238 * 2.126928], abs=5e-6)


@pytest.mark.parametrize("noise_rate", [Fraction(1, 10), Fraction(1, 4), Fraction(1, 2)])
@pytest.mark.parametrize("odds", [Fraction(1, 9), Fraction(1), Fraction(3), Fraction(50)])
def test_confidence_is_the_posterior_of_bayes_rule(noise_rate, odds):
    """In exact fractions: P(label right | label) with belief p = odds / (1 + odds): rho = log odds at tau 1."""
    p = odds / (1 + odds)
    right, flipped = (1 - noise_rate) * p, noise_rate * (1 - p)
    posterior = right / (right + flipped)
    scale = scale_of([math.log(odds)], float(noise_rate)).item()
    assert scale * (1 - float(noise_rate)) == pytest.approx(float(posterior), rel=1e-6)


@given(
    rho=st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=20),
    noise_rate=st.floats(0, 0.5),
    temperature=st.floats(0.05, 100),
)
def test_scale_is_bounded_and_grows_with_the_relative_reward(rho, noise_rate, temperature):
    scale = scale_of(sorted(rho), noise_rate, temperature)
    assert (scale >= 0).all()
    assert (scale <= (1 + 1e-6) / (1 - noise_rate)).all()
    assert (scale.diff() >= 0).all()


@given(noise_rate=st.floats(0, 0.5), temperature=st.floats(1e-3, 1e3))
def test_scale_is_one_at_zero(noise_rate, temperature):
    assert scale_of([0.0], noise_rate, temperature).item() == pytest.approx(1.0, abs=1e-6)


def test_noise_rate_zero_is_dpo_to_the_bit():
    rho = [-1e4, -50.0, -1.0, 0.0, 1.0, 50.0, 1e4]
    assert scale_of(rho, 0.0).tolist() == [1.0] * len(rho)


@pytest.mark.parametrize("noise_rate", RATES)
def test_large_temperature_is_dpo(noise_rate):
    assert scale_of([-30.0, 30.0], noise_rate, temperature=1e6).tolist() == pytest.approx([1, 1], abs=1e-4)


@pytest.mark.parametrize("noise_rate", RATES[1:])
def test_limits_of_certainty(noise_rate):
    scale = scale_of([-1e4, 1e4], noise_rate)
    assert scale.tolist() == pytest.approx([0, 1 / (1 - noise_rate)], abs=1e-6)


def test_gradient_at_half_is_twice_that_of_the_symmetric_loss():
    """At e = 0.5, tau = 1: d/drho of s * -log sigmoid(rho), s detached, against autograd of 2 (1 - sigmoid(rho))."""
    chosen = torch.linspace(-12, 12, 49).requires_grad_()
    losses, _ = capo_loss(chosen, torch.zeros(49), beta=0.7, noise_rate=0.5, temperature=1.0)
    (ours,) = torch.autograd.grad(losses.sum(), chosen)
    (symmetric,) = torch.autograd.grad(2 * (1 - torch.sigmoid(0.7 * chosen.double())).sum(), chosen)
    torch.testing.assert_close(ours, symmetric.float(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("noise_rate", [0.05, 0.2, 0.45])
def test_gradient_is_that_of_the_noise_aware_likelihood(noise_rate):
    """At tau = 1, (1 - 2e) times ours is the gradient of -log((1-e) sigmoid(rho) + e sigmoid(-rho))."""
    rho = torch.linspace(-8, 8, 33, dtype=torch.float64).requires_grad_()
    likelihood = (1 - noise_rate) * torch.sigmoid(rho) + noise_rate * torch.sigmoid(-rho)
    (expected,) = torch.autograd.grad(-likelihood.log().sum(), rho)
    losses, _ = capo_loss(rho, torch.zeros_like(rho), beta=1.0, noise_rate=noise_rate, temperature=1.0)
    (ours,) = torch.autograd.grad(losses.sum(), rho)
    torch.testing.assert_close((1 - 2 * noise_rate) * ours, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("noise_rate", RATES)
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_stays_finite_at_extreme_relative_rewards(dtype, noise_rate, temperature):
    chosen = torch.tensor([-1e4, -88.0, -1e-4, 0.0, 1e-4, 88.0, 1e4], dtype=dtype).requires_grad_()
    losses, scale = capo_loss(
        chosen, torch.zeros_like(chosen), beta=1.0, noise_rate=noise_rate, temperature=temperature
    )
    (gradient,) = torch.autograd.grad(losses.sum(), chosen)
    for values in (losses, scale, gradient):
        assert torch.isfinite(values).all()
    assert losses.dtype == scale.dtype == torch.float32


def test_scale_carries_no_gradient():
    rho = torch.tensor([0.5], requires_grad=True)
    assert not confidence_scale(rho, noise_rate=0.2, temperature=1.0).requires_grad


def test_each_pair_may_have_its_own_noise_rate():
    rho, rates = torch.tensor([-1.0, 0.3, 2.0]), torch.tensor([0.0, 0.2, 0.5])
    together = confidence_scale(rho, noise_rate=rates, temperature=0.5)
    alone = [scale_of([r.item()], e.item(), 0.5).item() for r, e in zip(rho, rates, strict=True)]
    assert together.tolist() == pytest.approx(alone)


@pytest.mark.parametrize(("chosen", "rejected"), [((3,), (3, 1)), ((3,), (2,)), ((), ()), ((2, 2), (2, 2))])
def test_shapes_that_are_not_one_value_per_pair_are_refused(chosen, rejected):
    with pytest.raises(ValueError, match=r"shape \(B,\)"):
        capo_loss(torch.zeros(chosen), torch.zeros(rejected), beta=0.1, noise_rate=0.1, temperature=1.0)


@pytest.mark.parametrize(
    ("noise_rate", "temperature", "named"),
    [
        (-0.1, 1.0, "noise_rate=-0.1"),
        (0.51, 1.0, "noise_rate=0.51"),
        (math.nan, 1.0, "noise_rate=nan"),
        (torch.zeros(2), 1.0, r"noise_rate must be a number or of shape \(3,\)"),
        (0.1, 0.0, "temperature=0.0"),
        (0.1, -1.0, "temperature=-1.0"),
        (0.1, math.inf, "temperature=inf"),
        (0.1, math.nan, "temperature=nan"),
    ],
)
def test_hyperparameters_out_of_range_are_refused_by_name(noise_rate, temperature, named):
    with pytest.raises(ValueError, match=named):
        confidence_scale(torch.zeros(3), noise_rate=noise_rate, temperature=temperature)


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
    rho = relative_reward(
        torch.tensor([0.9]),
        torch.tensor([-1.4]),
        beta=0.3,
        f_divergence_type=divergence,
        f_alpha_divergence_coef=coefficient,
    )
    assert rho.item() == pytest.approx(expected, rel=1e-5)


def test_unknown_divergence_is_refused():
    with pytest.raises(ValueError, match="f_divergence_type='hellinger'"):
        relative_reward(torch.zeros(1), torch.zeros(1), beta=0.1, f_divergence_type="hellinger")


def test_length_desensitised_log_probs():
    """Chosen has 3 tokens of -1, -2, -4 after one prompt token, rejected 1 of -8: beyond the first, alpha counts.

    alpha 0.25: chosen -1 + 0.25 (-2 - 4) = -2.5; alpha 0: -1; alpha 1 and None: -7; the rejected stays -8.
    """
    log_probs = torch.tensor([[0.0, -1.0, -2.0, -4.0], [0.0, -8.0, 0.0, 0.0]])
    mask = torch.tensor([[0, 1, 1, 1], [0, 1, 0, 0]])
    for alpha, chosen in ((0.25, -2.5), (0.0, -1.0), (1.0, -7.0), (None, -7.0)):
        assert sequence_log_probs(log_probs, mask, ld_alpha=alpha).tolist() == [chosen, -8.0]
