"""The CAPO loss and what it is made of, as pure functions of tensors.

Notation: (B,) is one value per preference pair; a log-ratio is log pi(y|x) - log pi_ref(y|x) in nats, summed over the
completion's tokens. Everything is computed in float32 whatever the dtype of the arguments. Nothing here reduces over
the batch, knows the config, or talks to other processes: that is the trainer's.

Method: Confidence-Aware Preference Optimization (Pokharel, Tao & Agrawal, Findings of IJCNLP-AACL 2025,
arXiv 2511.07691) scales DPO's pair loss by a confidence that the pair's relative reward gives. The form of the
confidence is this project's own, defined in full in docs/method.md; the equation numbers cited here are that page's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

F_DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
"""The values of DPO's `f_divergence_type`, for each of which `relative_reward` has a score."""

LARGEST_EVIDENCE = 1e30
"""Bound of rho / temperature, far beyond where a sigmoid saturates in float32."""


def _check_same_shape(**tensors: Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        got = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"expected one value per pair, shape (B,), in every argument, got {got}")


def _check_hyperparameters(noise_rate: float | Tensor, temperature: float, pairs: int) -> None:
    if not 0.0 < temperature < float("inf"):
        raise ValueError(f"temperature={temperature} must be a positive, finite number (in units of reward)")
    if isinstance(noise_rate, Tensor):
        # The values of a tensor are the caller's to check: looking at them here would make a GPU wait.
        if noise_rate.shape not in (torch.Size([]), torch.Size([pairs])):
            raise ValueError(f"noise_rate must be a number or of shape ({pairs},), got {tuple(noise_rate.shape)}")
    elif not 0.0 <= noise_rate <= 0.5:
        raise ValueError(f"noise_rate={noise_rate} must lie in [0, 0.5]: it is the share of flipped labels")


def sequence_log_probs(token_log_probs: Tensor, completion_mask: Tensor, *, ld_alpha: float | None = None) -> Tensor:
    """Log-probability of each completion.

    Args:
        token_log_probs: (2B, T) log-probabilities of the tokens, zero outside the completion; rows are
            `[chosen; rejected]`, as in TRL's batches.
        completion_mask: (2B, T), 1 on the completion's tokens.
        ld_alpha: weight in [0, 1] of the tokens beyond the shorter completion of the pair (LD-DPO, arXiv 2409.06411);
            None and 1 weigh all tokens equally, 0 leaves the longer completion's tail out.

    Returns:
        (2B,) sums over the tokens.
    """
    if ld_alpha is None:
        return token_log_probs.sum(dim=1)
    lengths = completion_mask.sum(dim=1)
    shared = torch.minimum(*lengths.chunk(2)).repeat(2).unsqueeze(1)
    position = completion_mask.cumsum(dim=1)
    weight = torch.where(position <= shared, 1.0, ld_alpha) * (position > 0)
    return (token_log_probs * weight).sum(dim=1)


def relative_reward(
    chosen_logratios: Tensor,
    rejected_logratios: Tensor,
    *,
    beta: float,
    f_divergence_type: str = "reverse_kl",
    f_alpha_divergence_coef: float = 0.5,
) -> Tensor:
    """The pair's relative reward rho = r(chosen) - r(rejected): beta times the difference of TRL's scores (eq. 1).

    For `reverse_kl` (DPO) the score is the log-ratio. For the others it is f'(pi / pi_ref) of f-DPO (arXiv 2309.16240,
    table 1), with the constants and the limits of the exponent that TRL uses, so that -logsigmoid(rho) is TRL's loss.

    Args:
        chosen_logratios, rejected_logratios: (B,) log-ratios in nats.
        beta: positive; how many units of reward a nat is.
        f_divergence_type: "reverse_kl", "forward_kl", "js_divergence" or "alpha_divergence".
        f_alpha_divergence_coef: alpha of "alpha_divergence"; 1 is the limit "reverse_kl".

    Returns:
        (B,) relative rewards, float32.
    """
    _check_same_shape(chosen_logratios=chosen_logratios, rejected_logratios=rejected_logratios)
    chosen, rejected = chosen_logratios.float(), rejected_logratios.float()
    power = f_alpha_divergence_coef - 1.0
    if f_divergence_type == "forward_kl":
        difference = torch.exp(-rejected) - torch.exp(-chosen)
    elif f_divergence_type == "js_divergence":
        difference = F.logsigmoid(chosen) - F.logsigmoid(rejected)
    elif f_divergence_type == "alpha_divergence" and abs(power) >= 1e-6:
        limit = 11.0 if chosen_logratios.dtype == torch.float16 else 80.0
        grown = [torch.expm1((power * logratios).clamp(max=limit)) for logratios in (chosen, rejected)]
        difference = (grown[0] - grown[1]) / power
    elif f_divergence_type in ("reverse_kl", "alpha_divergence"):
        difference = chosen - rejected
    else:
        raise ValueError(f"f_divergence_type={f_divergence_type!r} is not one that DPO defines a score for")
    return beta * difference


def confidence_scale(relative_reward: Tensor, *, noise_rate: float | Tensor, temperature: float) -> Tensor:
    """The CAPO scale of each pair's loss: how much the model believes the pair's label (eq. 4).

    With p = sigmoid(rho / temperature) the model's belief that the chosen completion is the better one, and a share
    `noise_rate` = e of all labels flipped, Bayes' rule gives the confidence that this label is right,
    c = (1-e) p / ((1-e) p + e (1-p)), and the scale is s = c / (1-e). Limits: s = 1 at rho = 0; s -> 1 / (1-e) as the
    model agrees with the label and s -> 0 as it contradicts it; e = 0 gives s = 1 for every pair, which is DPO;
    e = 0.5 gives s = 2p, whose gradient at temperature 1 is twice that of the noise-tolerant loss 1 - sigmoid(rho)
    (arXiv 1712.09482); a large temperature gives s = 1.

    Args:
        relative_reward: (B,) rho in units of reward; any sign, finite.
        noise_rate: e in [0, 0.5], one number for all pairs or (B,), one for each.
        temperature: tau > 0, in units of reward; 1 is the Bradley-Terry model that DPO assumes, less is sharper.

    Returns:
        (B,) scales in [0, 1 / (1-e)], float32, detached: a pair must not lower its loss by losing confidence.

    Raises:
        ValueError: a shape that is not (B,), or a hyper-parameter out of its range.
    """
    _check_same_shape(relative_reward=relative_reward)
    _check_hyperparameters(noise_rate, temperature, len(relative_reward))
    rho = relative_reward.detach().float()
    e = torch.as_tensor(noise_rate, dtype=torch.float32, device=rho.device)
    # Bayes' rule in log-odds: those of the label are the prior's plus the evidence's. The prior's are infinite at
    # e = 0, which makes c exactly 1 there as long as the evidence is finite.
    evidence = (rho / temperature).clamp(-LARGEST_EVIDENCE, LARGEST_EVIDENCE)
    confidence = torch.sigmoid(torch.log1p(-e) - torch.log(e) + evidence)
    return confidence / (1.0 - e)


def capo_loss(
    chosen_logratios: Tensor,
    rejected_logratios: Tensor,
    *,
    beta: float,
    noise_rate: float | Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """The CAPO loss of each pair: its DPO loss times its confidence scale (eq. 5).

    Args:
        chosen_logratios, rejected_logratios: (B,) log pi(y|x) - log pi_ref(y|x) in nats.
        beta: positive; DPO's beta, in units of reward per nat.
        noise_rate: share of flipped labels in [0, 0.5], a number or (B,); 0 is DPO.
        temperature: tau > 0 of the confidence, in units of reward.

    Returns:
        The losses s * -log sigmoid(rho), and the detached scales s, (B,) each, float32. Not reduced: the objective is
        the mean over the pairs, which stays the same however they are cut into batches.

    Raises:
        ValueError: shapes that differ or are not (B,), or a hyper-parameter out of its range.
    """
    if not 0.0 < beta < float("inf"):
        raise ValueError(f"beta={beta} must be a positive, finite number (units of reward per nat)")
    rho = relative_reward(chosen_logratios, rejected_logratios, beta=beta)
    scale = confidence_scale(rho, noise_rate=noise_rate, temperature=temperature)
    return scale * -F.logsigmoid(rho), scale
