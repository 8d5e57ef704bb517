"""Rank preference labels before training, by a linear reward model on the hidden states of a reference: the probe.

A logistic regression of the labels on the difference of the answers' states is a Bradley-Terry model whose reward is
linear in them. Each pair is judged by a fit to pairs with other prompts, so that its own label has no say, as in the
out-of-sample probabilities of confident learning (Northcutt et al. 2021, arXiv 1911.00068).
"""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from trl_capo.data.tokenise import TokenisedPair
from trl_capo.scoring.models import batches

DEPTHS = (1 / 2, 5 / 6, 1)  # of the layers whose output is read; 1 is the last one
COMPONENTS, FOLDS, NEWTON_STEPS = 256, 5, 30  # principal components; parts of the data, judged by the others
RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # penalties to choose from


@torch.no_grad()
def state_differences(
    model: Any, pairs: Sequence[TokenisedPair], batch_size: int, max_length: int | None, name: str
) -> Tensor:
    """Return the chosen answers' mean hidden states less the rejected ones', (N, 3H) float32, on every process."""
    decoder, found = model.get_decoder(), []
    for batch, inputs in batches(pairs, batch_size, max_length, name):
        answers = (inputs.pop("labels") != -100)[:, :, None]
        layers = decoder(**inputs, use_cache=False, output_hidden_states=True).hidden_states
        layers = [layers[round(depth * (len(layers) - 1))].float() for depth in DEPTHS]
        means = torch.cat([(states * answers).sum(dim=1) / answers.sum(dim=1) for states in layers], dim=1)
        chosen, rejected = means.chunk(2)
        found.append((batch, (chosen - rejected).cpu()))
    numbers, states = zip(*gather_object(found), strict=True)
    states = torch.cat(states)[torch.tensor(sum(numbers, [])).argsort()]
    if not states.isfinite().all():
        raise ValueError(f"{name!r}: its hidden states are not finite. Use dtype bfloat16 or float32.")
    return states


def cross_fitted_margins(states: Tensor, prompts: Tensor) -> Tensor:
    """Judge N pairs by linear rewards of (N, D) differences, fitted to pairs of other prompts, (N,) numbers.

    Returns (N,) margins in log-odds, positive for the label. The ridge is the one that judges labels best.
    """
    scaled = states / states.std(dim=0, correction=0).clamp(min=1e-6) / states.shape[1] ** 0.5
    with torch.random.fork_rng():
        torch.manual_seed(0)
        folds = torch.randperm(int(prompts.max()) + 1)[prompts] % FOLDS
        _, _, components = torch.svd_lowrank(scaled, min(COMPONENTS, *scaled.shape), niter=4)
    inputs, margins = (scaled @ components).double(), []
    for ridge in RIDGES:
        margins.append(torch.zeros(len(inputs), dtype=torch.float64))
        for fold in range(FOLDS):
            margins[-1][folds == fold] = inputs[folds == fold] @ _fit(inputs[folds != fold], ridge)
    return min(margins, key=lambda found: -torch.nn.functional.logsigmoid(found).sum()).float()


def _fit(inputs: Tensor, ridge: float) -> Tensor:
    """Return the (D,) weights that minimise -sum log sigmoid(inputs @ w) + ridge/2 |w|^2, by Newton's method."""
    weights = inputs.new_zeros(inputs.shape[1])
    for _ in range(NEWTON_STEPS):
        wrong = torch.sigmoid(-inputs @ weights)
        curvature = (inputs.T * (wrong * (1.0 - wrong))) @ inputs
        curvature.diagonal().add_(ridge)
        step = torch.linalg.solve(curvature, inputs.T @ wrong - ridge * weights)
        weights = weights + step
        if step.abs().max() <= 1e-6 * weights.abs().max():
            break
    return weights
