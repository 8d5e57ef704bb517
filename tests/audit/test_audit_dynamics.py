"""Dynamics from a log equal those of a loop over its rows."""

import math

import numpy as np
import pytest
from audit_logs import make_log, row

from trl_capo.audit.mislabels import read_dynamics


@pytest.mark.parametrize("seed", range(5))
def test_dynamics_are_those_of_a_loop_over_the_rows(tmp_path, seed):
    """Pairs come in any order, some of them twice in an epoch, and some with a reward that is not finite."""
    generator, rows = np.random.default_rng(seed), []
    for index in range(120):
        margin = generator.choice([float(np.float32(generator.normal() * 3)), 0.0, math.nan], p=[0.85, 0.1, 0.05])
        pair, rate = int(generator.integers(20)), float(np.float32(generator.random()))
        values = {"group": ("de", "sw", None)[pair % 3], "group_noise_rate": rate, "reference_margin": float(pair)}
        rows.append(row(pair, index // 30, margin, **values))
    pairs = read_dynamics(make_log(tmp_path / "log", rows, 20, shard=int(generator.integers(1, 40)))).pairs
    passes = {}
    for line in rows:
        if math.isfinite(line["relative_reward"]):
            passes.setdefault(line["pair"], {}).setdefault(line["epoch"], line)
    assert pairs.index.tolist() == sorted(passes)
    for found in pairs.itertuples():
        seen = list(passes[found.Index].values())
        margins = np.array([line["relative_reward"] for line in seen])
        confidences = np.float32([line["confidence"] for line in seen]).astype(float)
        for name, values in {"margin": margins, "confidence": confidences}.items():
            three = [getattr(found, f"{place}_{name}") for place in ("first", "final", "mean")]
            assert three == pytest.approx([values[0], values[-1], values.mean()])
        assert found.variability == pytest.approx(confidences.std(), abs=1e-7)
        assert (found.epochs, found.group) == (len(seen), seen[0]["group"] or "")
        assert (found.agreements, found.disagreements) == ((margins > 0).sum(), (margins < 0).sum())
        assert found.forgetting == ((margins[:-1] > 0) & (margins[1:] <= 0)).sum()
        assert found.reference_margin == found.Index


def test_the_trainings_rates_are_the_last_in_the_log_for_every_group(tmp_path):
    rows = [row(0, 0, 1, group="de", group_noise_rate=0.25), row(1, 0, 1, group="sw", group_noise_rate=0.25)]
    rows += [row(2, 0, 1, group="de", group_noise_rate=0.125), row(3, 0, 1, group_noise_rate=0.5)]
    rows += [row(0, 1, 1, group="de", group_noise_rate=0.375)]
    found = read_dynamics(make_log(tmp_path / "log", rows, 4, shard=2))
    assert found.training_rates == {"de": 0.375, "sw": 0.25, "": 0.5}


def test_with_noise_rate_0_the_confidence_is_the_models_probability(tmp_path):
    """sigmoid(ln 3) = 3/4 and sigmoid(-ln 3) = 1/4; with another noise rate, the logged confidence counts."""
    margins = {0: math.log(3), 1: -math.log(3)}
    rows = [row(0, epoch, margin, confidence=1.0, group_noise_rate=0.0) for epoch, margin in margins.items()]
    names = ["first_confidence", "final_confidence", "mean_confidence", "variability"]
    dpo = read_dynamics(make_log(tmp_path / "0", rows, 1)).pairs
    assert dpo.loc[0, names].tolist() == pytest.approx([0.75, 0.25, 0.5, 0.25])
    capo = read_dynamics(make_log(tmp_path / "1", [line | {"group_noise_rate": 0.1} for line in rows], 1))
    assert capo.training_rates == {}  # a fixed rate is no estimate
    assert capo.pairs.loc[0, names].tolist() == [1.0, 1.0, 1.0, 0.0]
