"""The CAPO loss as pure functions of tensors.

Confidence-Aware Preference Optimization (Pokharel, Tao & Agrawal, Findings of IJCNLP-AACL 2025, arXiv 2511.07691)
scales DPO's pair loss by a confidence derived from the pair's relative reward. The form of the confidence is this
project's own; docs/method.md defines it and numbers the equations that are cited below. (B,) is one value per pair,
a log-ratio is log pi(y|x) - log pi_ref(y|x) in nats, and everything is computed in float32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def _check_shapes(*tensors: Tensor) -> None:
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1:
        raise ValueError(f"expected one value per pair, shape (B,), in every argument, got {shapes}")


def relative_reward(
    chosen_logratios: Tensor,
    rejected_logratios: Tensor,
    *,
    beta: float,
    f_divergence_type: str = "reverse_kl",
    f_alpha_divergence_coef: float = 0.5,
) -> Tensor:
    """Compute the relative reward rho, (B,), which is beta times the difference of TRL's scores (eq. 1).

    For "reverse_kl" (DPO) the score is the log-ratio. For "forward_kl", "js_divergence" and "alpha_divergence" it is
    f'(pi / pi_ref) of f-DPO (arXiv 2309.16240, table 1), with the constants and exponent limits that TRL uses, so that
    -logsigmoid(rho) is TRL's loss.

    Args:
        chosen_logratios, rejected_logratios: (B,) log-ratios in nats.
        beta: units of reward per nat, positive and finite.
        f_alpha_divergence_coef: alpha of "alpha_divergence"; 1 is the limit "reverse_kl".

    Raises:
        ValueError: if the shapes differ or are not (B,), beta is out of range, or the divergence is unknown.
    """
    _check_shapes(chosen_logratios, rejected_logratios)
    if not 0.0 < beta < float("inf"):
        raise ValueError(f"beta={beta} must be a positive, finite number (units of reward per nat)")
    chosen, rejected = chosen_logratios.float(), rejected_logratios.float()
    power = f_alpha_divergence_coef - 1.0
    if f_divergence_type == "forward_kl":
        difference = torch.exp(-rejected) - torch.exp(-chosen)
    elif f_divergence_type == "js_divergence":
        difference = F.logsigmoid(chosen) - F.logsigmoid(rejected)
    elif f_divergence_type == "alpha_divergence" and abs(power) >= 1e-6:
        limit = 11.0 if chosen_logratios.dtype == torch.float16 else 80.0
        powers = [torch.expm1((power * logratios).clamp(max=limit)) for logratios in (chosen, rejected)]
        difference = (powers[0] - powers[1]) / power
    elif f_divergence_type in ("reverse_kl", "alpha_divergence"):
        difference = chosen - rejected
    else:
        raise ValueError(f"f_divergence_type={f_divergence_type!r} is not a divergence that DPO has a score for")
    return beta * difference


def confidence_scale(relative_reward: Tensor, *, noise_rate: float | Tensor, temperature: float) -> Tensor:
    """Compute the CAPO scale of each pair's loss, which says how much the model trusts the pair's label (eq. 4).

    The model believes with probability p = sigmoid(rho / temperature) that the chosen completion is better. If a share
    `noise_rate` = e of all labels is flipped, Bayes' rule gives the confidence that this label is right,
    c = (1-e) p / ((1-e) p + e (1-p)), and the scale is s = c / (1-e).

    Limits: s = 1 at rho = 0; s -> 1 / (1-e) as the model agrees with the label, and s -> 0 as it contradicts it.
    e = 0 or a large temperature gives s = 1 for every pair, which is DPO. e = 0.5 gives s = 2p, whose gradient at
    temperature 1 is twice that of the noise-tolerant loss 1 - sigmoid(rho) (arXiv 1712.09482).

    Args:
        relative_reward: (B,) rho in units of reward, of any sign.
        noise_rate: e in [0, 0.5], one number for all pairs or (B,).
        temperature: tau > 0, in units of reward; 1 is the Bradley-Terry model of DPO, and smaller values are sharper.

    Returns:
        (B,) scales in [0, 1 / (1-e)], float32, detached so that a pair cannot lower its loss by losing confidence.

    Raises:
        ValueError: if a shape is not (B,), or a number is out of its range. A tensor's values are not checked.
    """
    _check_shapes(relative_reward)
    if not 0.0 < temperature < float("inf"):
        raise ValueError(f"temperature={temperature} must be a positive, finite number (in units of reward)")
    if isinstance(noise_rate, Tensor):
        _check_shapes(relative_reward, noise_rate.expand_as(relative_reward) if noise_rate.ndim == 0 else noise_rate)
    elif not 0.0 <= noise_rate <= 0.5:
        raise ValueError(f"noise_rate={noise_rate} must lie in [0, 0.5]: it is the share of flipped labels")
    rho = relative_reward.detach().float()
    e = torch.as_tensor(noise_rate, dtype=torch.float32, device=rho.device)
    # Bayes' rule in log-odds: those of c are the sum of the prior's and the model's. At e = 0 the prior's log-odds are
    # infinite, which makes c exactly 1 as long as the model's are finite.
    log_odds = (rho / temperature).clamp(-1e30, 1e30)
    confidence = torch.sigmoid(torch.log1p(-e) - torch.log(e) + log_odds)
    return confidence / (1.0 - e)


def capo_loss(
    relative_reward: Tensor, *, noise_rate: float | Tensor, temperature: float = 1.0, label_weight: float | Tensor = 1
) -> tuple[Tensor, Tensor]:
    """Compute the CAPO loss of each pair: its DPO loss times its confidence scale (eq. 5, and eq. 7 with weights).

    Args:
        relative_reward, noise_rate, temperature: as in `confidence_scale`; noise_rate 0 with label_weight 1 is DPO.
        label_weight: how informative each label is (eq. 7), a non-negative number or (B,).

    Returns:
        The losses s * -log sigmoid(rho) with gradient, and the detached scales s including the label weight; (B,)
        each, float32. The objective is the mean of the losses over all pairs.
    """
    scale = label_weight * confidence_scale(relative_reward, noise_rate=noise_rate, temperature=temperature)
    return scale * -F.logsigmoid(relative_reward.float()), scale
