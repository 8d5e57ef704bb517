"""How a study makes its runs: with simulated runs, and once with two tiny runs in their own processes."""

import json
import os
import threading
import time
from collections import Counter

import numpy as np
import pytest
from conftest import make_pairs
from study_data import GRID, TRAINING, plan_options, save_splits

from trl_capo.study import command
from trl_capo.study.command import slot_environment, study
from trl_capo.study.plan import Run, StudyPlan
from trl_capo.study.run import _end_with_study, add_noise, clean_labels, run

TUNING = {"learning_rates": [1e-2, 1e-3], "tuning": {"noise": ["flip"], "seeds": [0]}}
CAPO_RUN = Run("capo", "flip", 0, 1, 1e-2)
OPEN = "dpo-flip-seed0-1ep-lr1.00e-02"


class Simulated:
    """Write results instead of training: 0.01 is dpo's best rate and 0.001 capo's, but not on the test split."""

    def __init__(self):
        self.started, self.slots, self.fails = [], set(), set()

    def __call__(self, plan, run, environment, pipe, bar):
        self.started.append(run.name)
        self.slots.add(threading.get_ident())
        if run.name in self.fails:
            time.sleep(0.2)  # the other slot has started its run
            raise ChildProcessError(f"{run.name} failed")
        time.sleep(0.6 if self.fails else 0)
        best = run.learning_rate == {"dpo": 1e-2, "capo": 1e-3}[run.method]
        result = {"settings": plan.settings(run), "noise_shares": {"all": 0.0}, "noise_rates": None, "versions": {}}
        result |= {"validation_accuracy": 0.9 if best else 0.6, "steps": 3, "seconds": 1.0}
        folder = plan.folder(run)
        folder.mkdir(parents=True)
        labels, margins = np.array(list("abcabc")), np.ones(6, np.float32) * (-1 if best else 1)
        np.savez(folder / "margins.npz", margins=margins, labels=labels)
        (folder / "result.json").write_text(json.dumps(result))


@pytest.fixture
def make_plan(tmp_path, model_dir):
    (tmp_path / "data").mkdir()
    data = save_splits(tmp_path / "data")
    return lambda **changes: StudyPlan(**plan_options(model_dir, data, tmp_path / "out", **TUNING | changes))


def test_learning_rates_come_from_the_validation_split_and_finished_runs_are_not_repeated(make_plan, tmp_path):
    """The cache, 2 x 2 tuning runs, and the 6 of the grid's 8 runs that are not among these."""
    start = Simulated()
    study(make_plan(), start=start)
    assert start.started[0] == "dpo-none-seed0-0ep-lr0.00e+00"
    assert len(start.started) == len(set(start.started)) == 1 + 4 + 6
    assert all(name.endswith("2" if name.startswith("dpo-") else "3") for name in start.started[5:])
    report = (tmp_path / "out" / "report.md").read_text()
    assert "| dpo | 1 | 60.0 | 90.0 (chosen) |" in report
    assert "| capo | 1 | 90.0 (chosen) | 60.0 |" in report
    study(make_plan(grid=[GRID, GRID | {"seeds": [0, 2]}]), start=start)
    assert len(start.started) == 11 + 4
    with pytest.raises(ValueError, match="was made with options="):
        study(make_plan(methods={"dpo": {}, "capo": {"beta": 0.2}}), start=start)


def test_after_a_failure_the_other_slots_finish_their_runs_and_no_run_starts(make_plan):
    """The first of four tuning runs fails while the second is running."""
    start = Simulated()
    start.fails = {OPEN}
    with pytest.raises(OSError, match=OPEN):
        study(make_plan(), jobs=2, start=start)
    assert len(start.started) == 3  # with the caches
    done, start.started, start.fails = {*start.started} - {OPEN}, [], set()
    study(make_plan(), jobs=3, start=start)
    assert len(start.started) == 11 - 2
    assert not done & {*start.started}
    assert len(start.slots) > 1


@pytest.mark.parametrize(("visible", "expected"), [("0,1", ["0", "1", "0"]), ("2,GPU-a", ["2", "GPU-a", "2"])])
def test_a_slot_has_one_of_the_gpus_that_the_user_left_visible(visible, expected, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(command.torch.cuda, "device_count", lambda: 2)
    assert [slot_environment(slot, 2)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == expected


def check_result(folder, result):
    with np.load(folder / "margins.npz") as arrays:
        assert arrays["labels"].tolist() == ["de", "sw", "日本"] * 4
        assert len(set(arrays["margins"].tolist())) == 12
    assert (folder / "pair_log" / "log.json").is_file()
    assert 12 * result["validation_accuracy"] == pytest.approx(round(12 * result["validation_accuracy"]))
    assert 0.25 < result["noise_shares"]["de"] < 0.75
    caches = sorted(path.name for path in (folder.parents[1] / "memory").iterdir())
    assert caches == ["hidden.safetensors", "references.safetensors"]


REAL = {"learning_rates": [1e-2], "tuning": None, "training": TRAINING | {"pair_log": True}}


def test_a_run_has_the_injected_noise_and_the_accuracy_on_the_validation_split(make_plan):
    plan = make_plan(**REAL)
    folder = plan.folder(CAPO_RUN)
    folder.mkdir(parents=True)
    result = run(plan.settings(CAPO_RUN), folder)
    check_result(folder, result)
    assert set(result["noise_rates"]) == {"all", "de", "sw", "日本"}


def test_trusted_pairs_have_their_labels_back():
    data, settings = make_pairs(60), {"seed": 3, "shared": {"group_column": "language"}}
    noisy, _ = add_noise(data, settings | {"inject": {"kind": "flip", "rate": 0.5}})
    inject = {"kind": "flip", "rate": 0.5, "trusted": 4}
    train, shares = add_noise(data, settings | {"inject": inject})
    trusted = np.array(train["trusted"])
    assert Counter(np.array(data["language"])[trusted].tolist()) == {"de": 4, "sw": 4, "日本": 4}
    for old, new, row, mark in zip(data, noisy, train, trusted.tolist(), strict=True):
        assert row["chosen"] == (old if mark else new)["chosen"]
        assert row["is_noisy"] == (new["is_noisy"] and not mark)
    assert shares["de"] == pytest.approx(np.mean([row["is_noisy"] for row in train if row["language"] == "de"]))
    with pytest.raises(ValueError, match="trusted=4 needs"):
        add_noise(data, settings | {"inject": inject | {"kind": "wrong_language"}})


@pytest.mark.parametrize("rule", ["flip_above", "drop_above"])
def test_labels_that_a_sure_and_right_probe_contradicts_are_cleaned_and_no_others(rule):
    data, shared = make_pairs(60), {"seed": 3, "shared": {"group_column": "language"}}
    noisy, _ = add_noise(data, shared | {"inject": {"kind": "flip", "rate": 0.3}})
    wrong, strength = np.array(noisy["is_noisy"]), np.random.default_rng(0).permutation(np.geomspace(0.1, 10, 60))
    noisy = noisy.add_column("probe_chosen", np.where(wrong, -1, 1) * strength).add_column("probe_rejected", [0] * 60)
    cleaned, shares = clean_labels(noisy, shared | {"options": {"clean": {rule: 0.5}}})
    found = dict(zip(cleaned["id"], cleaned["chosen"], strict=True))
    changed = np.array([found.get(row["id"]) != row["chosen"] for row in noisy])
    assert changed[wrong & (strength > 1)].all()
    assert not changed[~wrong].any()
    assert len(found) == (60 if rule == "flip_above" else 60 - changed.sum())
    assert shares["all"] == pytest.approx((wrong & ~changed).sum() / len(found))


@pytest.mark.slow
def test_a_study_of_two_processes_finishes_both_runs(make_plan, tmp_path):
    plan = make_plan(grid=[GRID | {"noise": ["flip"], "seeds": [0]}], **REAL)
    study(plan, jobs=2)
    for one in plan.possible_runs():
        check_result(plan.folder(one), plan.result(one))
    assert (tmp_path / "out" / "report.md").is_file()


def test_a_run_ends_when_the_study_is_killed():
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        os.dup2(reading, 0)
        _end_with_study()
    os.close(reading)
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
    os.close(writing)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
