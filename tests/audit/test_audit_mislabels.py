"""Log-odds worked by hand from the fit, and audits of data whose label errors are known."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from audit_logs import make_log, row
from conftest import make_pairs
from datasets import Dataset, DatasetDict
from scipy.special import expit, logit, softmax

from trl_capo.audit.command import AuditArguments, audit
from trl_capo.audit.mislabels import WEAK_SLOPE, Dynamics, auroc, estimate_label_errors, fit
from trl_capo.common.fingerprint import fingerprint
from trl_capo.core.noise_model import NOISE_RATES
from trl_capo.core.noise_rate import NoiseRateEstimator


def annotated(size: int = 600, seed: int = 0) -> tuple[Dataset, np.ndarray]:
    """Pairs with flips at 10, 20 and 40 %, and a probe that agrees with 91 % of the true labels."""
    generator = np.random.default_rng(seed)
    wrong = generator.random(size) < np.resize([0.1, 0.2, 0.4], size)
    margins = np.where(wrong, -1, 1) * generator.normal(2.0, 1.5, size)
    data = make_pairs(size).add_column("is_noisy", wrong.tolist())
    return data.add_column("probe_chosen", margins / 2).add_column("probe_rejected", -margins / 2), wrong


@pytest.mark.parametrize("kinds", [("log",), ("probe",), ("log", "probe")], ids=str)
@pytest.mark.parametrize("names", [["de", "sw"], [""]], ids=str)
def test_log_odds_and_intervals_worked_by_hand(kinds, names):
    """Rates are those of the last kind: the probe's, if there is one. |margin| and |probe| have medians of 2 and 4."""
    generator, index = np.random.default_rng(1), np.arange(300) % len(names)
    signs, trusted = np.where(generator.random(300) < 0.25, -1, 1), generator.random(300) < 0.1
    values = {name: signs * generator.exponential(1, 300) for name in kinds}
    values = {name: {"log": 2, "probe": 4}[name] * x / np.median(np.abs(x)) for name, x in values.items()}
    swapped, pairs = generator.random(300) < 0.5, pd.DataFrame({"group": np.array(names)[index]})
    data = Dataset.from_dict({"trusted": trusted, "trusted_swapped": swapped})
    pairs = pairs.assign(mean_margin=values["log"]) if "log" in kinds else pairs
    if "probe" in kinds:
        data = data.add_column("probe_chosen", values["probe"]).add_column("probe_rejected", np.zeros(300))
    found, rows, evidence = estimate_label_errors(Dynamics(pairs, {}), data), index + (len(names) > 1), 0
    for name in kinds:
        x = np.arcsinh(values[name] / {"log": 2, "probe": 4}[name])
        estimator = NoiseRateEstimator(names if len(names) > 1 else [])
        estimator.add_evidence(*map(torch.tensor, (rows - 1, trusted * (2 + swapped), x.astype(np.float32))))
        assert (estimator._slopes > 0).all()
        evidence = evidence + estimator._slopes.numpy()[rows] * x / len(kinds)
    rates, log_odds = estimator.noise_rates.numpy().astype(float), found.pairs.sort_index()["log_odds"].to_numpy()
    assert log_odds == pytest.approx(np.where(trusted, -20.0, logit(rates[rows]) - evidence), abs=1e-5)
    assert found.pairs["score"].to_numpy() == pytest.approx(expit(-np.sort(-log_odds)))
    places = np.digitize(found.pairs["score"], [0.3, 0.9])
    assert list(found.pairs["suggestion"]) == [("keep", "look", "flip")[place] for place in places]
    for line, group in enumerate(found.groups.itertuples(), start=len(names) > 1):
        below = np.cumsum(softmax(estimator._carried_loglik[line].double().numpy()))
        bounds = [next(e for e, p in zip(NOISE_RATES, below, strict=True) if p >= q) for q in (0.025, 0.975)]
        assert [group.low, group.high] == [min(bounds[0], rates[line]), max(bounds[1], rates[line])]


def test_capos_rates_replace_the_logs_but_not_the_probes():
    data, _ = annotated()
    pairs = pd.DataFrame({"group": data["language"][:], "mean_margin": data["probe_chosen"][:]})
    both, log = Dynamics(pairs, {"sw": 0.45}), estimate_label_errors(Dynamics(pairs, {})).groups
    capo, probe = (estimate_label_errors(both, given).groups for given in (None, data))
    assert capo.loc["sw", ["rate", "high", "training_rate"]].tolist() == [0.45] * 3  # the interval contains it
    assert [capo["rate"]["de"], *probe["rate"]] == pytest.approx([log["rate"]["de"], *log["rate"]])


def test_pairs_are_ordered_where_the_fit_finds_no_slope():
    """In "sw", 20 signs say nothing. If no sign says anything, margins still count, and a probe does not."""
    signs = np.where(np.random.default_rng(0).random(400) < 0.2, -1.0, 1.0)
    x, nothing = np.append(signs, np.resize([1.0, -1.0], 20)), np.resize([1.0, -1.0], 420)
    others = np.array(["de", "sw"], dtype=object), np.repeat([0, 1], [400, 20]), np.zeros(420, dtype=bool)
    assert fit(x, *others)[3][400:] == pytest.approx(WEAK_SLOPE * x[400:])
    rates, low, high, evidence = fit(nothing, *others)
    assert (evidence.any(), low.max() < 0.05, high.min() > 0.45) == (False, True, True)
    assert rates == pytest.approx([0.25, 0.25], abs=1e-3)
    assert fit(nothing, *others, [np.nan, np.nan])[3] == pytest.approx(WEAK_SLOPE * nothing)


@pytest.mark.parametrize("margins", [[0.0] * 7, [3.0] * 7, [2.0], [-1.0, -2.0, -3.0]], ids=str)
def test_margins_of_one_kind_give_finite_numbers(margins):
    found = estimate_label_errors(Dynamics(pd.DataFrame({"group": "", "mean_margin": margins}), {}))
    assert np.isfinite(found.pairs["log_odds"]).all()
    assert 0 < found.groups["low"].item() <= found.groups["rate"].item() <= found.groups["high"].item() <= 0.5


def test_annotated_data_are_audited_with_and_without_a_log(tmp_path):
    """The log is of the data before they were annotated; the first pair has no probe."""
    data, wrong = annotated(1500)
    data = data.map(lambda row, place: {} if place else {"probe_chosen": None}, with_indices=True)
    DatasetDict(train=data).save_to_disk(tmp_path / "annotated")
    margins = np.where(wrong, -1.0, 1.0) + np.random.default_rng(3).normal(size=1500)
    rows = [row(pair, 0, margin, group=data["language"][pair]) for pair, margin in enumerate(margins)]
    plain = data.remove_columns(["probe_chosen", "probe_rejected"])
    make_log(tmp_path / "run" / "pair_log", rows, 1500, shard=1500, fingerprint=fingerprint(plain))
    run, name = str(tmp_path / "run"), str(tmp_path / "annotated")
    log, probe, both = audit(AuditArguments(run), plain), *(audit(AuditArguments(run, name)) for run in (None, run))
    areas = [auroc(found.errors.pairs.sort_index()["score"], wrong) for found in (log, probe, both)]
    assert areas[2] >= min(areas[:2])
    assert areas[1] > 0.9
    true = probe.errors.pairs.groupby("group")["wrong"].mean()
    assert (probe.errors.groups["rate"] - true).abs().max() < 0.06
    suspects = pd.read_parquet(tmp_path / "annotated-audit" / "suspects.parquet")
    assert suspects[["pair", "epochs", "mean_confidence"]].notna().sum().tolist() == [1500, 0, 0]
    assert set(suspects["fingerprint"]) == {fingerprint(data)}
    assert suspects["reasons"][0][0] == "the probe, fitted to other pairs, prefers the rejected answer"
    texts = [(found.folder / "report.md").read_text(encoding="utf-8") for found in (probe, both)]
    assert ["Evidence: the probe" in texts[0], "run and the probe" in texts[1]] == [True, True]


@pytest.mark.parametrize("checked", [0, 20])
def test_a_probe_that_knows_nothing_is_reported_also_beside_trusted_labels(checked, tmp_path):
    margins = np.random.default_rng(0).normal(size=300)
    data = make_pairs(300).add_column("probe_chosen", margins).add_column("probe_rejected", np.zeros(300))
    data = data.add_column("trusted", np.arange(300) < checked)
    assert "The probe knows nothing" in audit(AuditArguments(output_dir=str(tmp_path)), data).warnings[0]


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    """Wrong labels with scores of 3 and 2 beside right ones with 2 and 1: three comparisons and a half of four."""
    scores = np.array([3.0, 2.0, 2.0, 1.0])
    assert auroc(scores, np.array([True, True, False, False])) == 3.5 / 4
    assert math.isnan(auroc(scores, np.ones(4, dtype=bool)))
