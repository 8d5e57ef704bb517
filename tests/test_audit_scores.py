"""How well a score finds known errors, against counting every pair of pairs."""

import math

import numpy as np
import pytest

from trl_capo.audit.scores import auroc, precision_at


@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_the_share_of_rightly_ordered_pairs(seed):
    generator = np.random.default_rng(seed)
    scores, wrong = generator.integers(0, 6, 40).astype(float), generator.random(40) < 0.3
    won = [(bad > good) + (bad == good) / 2 for bad in scores[wrong] for good in scores[~wrong]]
    assert auroc(scores, wrong) == pytest.approx(np.mean(won))


def test_auroc_needs_both_kinds():
    assert math.isnan(auroc(np.array([1.0, 2.0]), np.array([True, True])))


def test_precision_counts_the_first_ones():
    scores, wrong = np.arange(40.0), np.arange(40) % 2 == 0
    assert precision_at(scores, wrong, 0.05) == 0.5  # 39 and 38
    assert precision_at(scores, wrong, 0.001) == 0.0  # at least one: 39
    assert precision_at(-scores, wrong, 0.075) == pytest.approx(2 / 3)
