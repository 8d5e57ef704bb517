"""The scripts that hold audits against known labels, on a study of the tiny model; and their arithmetic."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import load_from_disk
from study_data import NOISE, TRAINING, plan, save_splits

from trl_capo.audit.dynamics import read_dynamics
from trl_capo.audit.judgement import judge
from trl_capo.data import load_preference_data
from trl_capo.noise import inject_noise
from trl_capo.pair_log import read_log
from trl_capo.study.config import Run, StudyConfig
from trl_capo.study.files import read_json, write_json
from trl_capo.study.run import run

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def audited(tmp_path_factory, model_dir) -> list[Path]:
    """Two runs of CAPO with a pair log, of different seeds."""
    folder = tmp_path_factory.mktemp("audited")
    training = TRAINING | {"pair_log": True}
    config = StudyConfig(**plan(model_dir, save_splits(folder / "data", 96), folder / "study", training=training))
    folders = []
    for seed in (0, 1):
        settings = config.settings(Run("capo", "flip", seed, 2, 1e-2))
        made = folder / "study" / "runs" / f"capo-seed{seed}"
        made.mkdir(parents=True)
        write_json(made / "result.json", run(settings, made))
        folders.append(made)
    return folders


def script(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)]
    here = os.environ | {"PYTHONPATH": str(ROOT)}  # an installed package may be another clone's
    return subprocess.run(command, capture_output=True, text=True, env=here)


def test_scores_are_compared(audited):
    done = script("compare_audit_scores.py", *audited)
    assert done.returncode == 0, done.stderr
    assert "### flip of the labels flipped, 2 runs" in done.stdout
    assert "| posterior from mean_margin |" in done.stdout
    assert "The audit's score: AUROC " in done.stdout


def test_a_ranking_of_two_languages(monkeypatch):
    """In de three of four comparisons of a wrong label with a right one are right, in sw none; over all, 9 is above
    8, 4 and 2, and 5 above 4 and 2, which is five of nine. The first 5 % are one label."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from compare_audit_scores import by_language, ranking, rate_errors

    names = np.array(["de", "de", "de", "de", "sw", "sw"])
    wrong = np.array([True, False, True, False, True, False])
    scores = np.array([9.0, 8.0, 5.0, 4.0, 1.0, 2.0])
    assert ranking(scores, wrong, names) == pytest.approx([500 / 9, 0.0, 100.0])
    assert by_language(scores, wrong, names) == {"de": 75.0, "sw": 0.0}
    assert by_language(scores, wrong & (names == "sw"), names) == {"sw": 0.0}, "all of de are right"
    assert ranking(scores[:4], wrong[:4], names[:4]) == pytest.approx([75.0, 75.0, 100.0])
    assert rate_errors(np.array([0.2, 0.5]), np.array([0.3, 0.3])) == pytest.approx([15.0, 20.0, 5.0])


def test_intervals_of_a_ranking(monkeypatch):
    """A run of uniform scores, of which a wrong label has the larger of two: AUROC 2/3, with the error of Hanley and
    McNeil (1982, Radiology 143, 29-36), whose Q1 and Q2 are exact here: 1/2 and 8/15. Ranked right, it is certain."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from compare_audit_scores import ranking_estimates

    generator, wrong = np.random.default_rng(0), np.arange(2000) < 400
    names = np.where(np.arange(2000) % 2 == 0, "de", "sw")
    scores = generator.random(2000)
    scores[wrong] = np.maximum(scores[wrong], generator.random(400))
    found = ranking_estimates([(scores, wrong, names)])
    error = 100 * np.sqrt((2 / 9 + 399 * (8 / 15 - 4 / 9) + 1599 * (1 / 2 - 4 / 9)) / (400 * 1600))
    assert found["AUROC"].value == pytest.approx(200 / 3, abs=3 * error)
    assert found["AUROC"].high - found["AUROC"].low == pytest.approx(2 * 1.96 * error, rel=0.15)
    certain = ranking_estimates([(wrong.astype(float), wrong, names)] * 2)
    assert {(e.value, e.low, e.high) for e in certain.values()} == {(100.0, 100.0, 100.0)}
    thrice = ranking_estimates([(scores, wrong, names)] * 3)["AUROC"]
    width = found["AUROC"].high - found["AUROC"].low
    assert thrice.high - thrice.low == pytest.approx(width, rel=0.15), "the same again tells nothing more"
    spread = ranking_estimates([(scores, wrong, names), (wrong.astype(float), wrong, names)])["AUROC"]
    assert spread.value == pytest.approx((found["AUROC"].value + 100) / 2)
    other = generator.random(2000)
    assert ranking_estimates([(scores, wrong, names), (other, wrong, names)])["AUROC"].high < found["AUROC"].high
    assert (spread.low < 70, spread.high) == (True, 100.0), "runs are drawn, too"


def answers(rows) -> list[tuple]:
    return [(row["chosen"], row["rejected"]) for row in rows]


def test_recovery_is_measured_once_on_the_labels_that_it_says(audited):
    done = script("measure_recovery.py", *audited, "--learning_rate", "1e-2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("| flip | 2 | ")
    made = audited[0].parent.parent / "recovery" / "runs"
    kinds = ("right-seed{}", "noisy-flip-seed{}", "flip_above=0.5-capo-seed{}")
    right_1, noisy_1, cleaned_1 = names = [f"{kind.format(1)}-1ep-lr1.00e-02" for kind in kinds]
    assert {path.name for path in made.iterdir()} == {*names, *(name.replace("seed1", "seed0") for name in names)}

    data = audited[0].parents[2] / "data"
    right = load_preference_data(str(data))["train"]
    noisy = inject_noise(right, "flip", NOISE["flip"]["rate"], seed=1, group_column="language")
    pairs = read_dynamics(read_log(audited[1] / "pair_log"))
    suspected = set(pairs.pair[judge(pairs).scores > 0.5].tolist())
    assert 0 < len(suspected) < len(right)
    cleaned = [pair[::-1] if row in suspected else pair for row, pair in enumerate(answers(noisy))]
    expected = {right_1: answers(right), noisy_1: answers(noisy), cleaned_1: cleaned}
    for name, labels in expected.items():
        assert answers(load_from_disk(str(made / name / "data"))["train"]) == labels, name

    times = {path: path.stat().st_mtime_ns for path in made.glob("*/result.json")}
    assert script("measure_recovery.py", *audited, "--learning_rate", "1e-2").stdout == done.stdout
    assert {path: path.stat().st_mtime_ns for path in made.glob("*/result.json")} == times
    done_before = read_json(made / noisy_1 / "result.json")
    write_json(made / noisy_1 / "result.json", done_before | {"told": done_before["told"] | {"labels": "others"}})
    script("measure_recovery.py", audited[1], "--learning_rate", "1e-2")  # other labels: trained anew
    assert read_json(made / noisy_1 / "result.json")["told"] == done_before["told"]
    assert (made / noisy_1 / "result.json").stat().st_mtime_ns > max(times.values())


def test_labels_are_cleaned_by_the_rules_that_are_given(audited):
    pairs = read_dynamics(read_log(audited[0] / "pair_log"))
    scores = judge(pairs).scores
    drop, flip = (float(bound) for bound in np.quantile(scores, [0.7, 0.9]))
    rules = ("--flip_above", str(flip), "--drop_above", str(drop), "--weight")
    done = script("measure_recovery.py", audited[0], *rules, "--epochs", "0.5", "--learning_rate", "2e-2")
    assert done.returncode == 0, done.stderr
    name = f"drop_above={drop} flip_above={flip} weight=True-capo-seed0-0.5ep-lr2.00e-02"
    made = load_from_disk(str(audited[0].parent.parent / "recovery" / "runs" / name / "data"))["train"]
    data = load_preference_data(str(audited[0].parents[2] / "data"))["train"]
    labels = answers(inject_noise(data, "flip", NOISE["flip"]["rate"], seed=0, group_column="language"))
    score = dict(zip(pairs.pair.tolist(), scores.tolist(), strict=True))
    kept = [row for row in range(len(labels)) if not drop < score[row] <= flip]
    assert 0 < len(kept) < len(labels)
    assert answers(made) == [labels[row][::-1] if score[row] > flip else labels[row] for row in kept]
    expected = [2 * score[row] - 1 if score[row] > flip else 1 - 2 * score[row] for row in kept]
    assert made["weight"][:] == pytest.approx([max(0.0, weight) for weight in expected])
    refused = script("measure_recovery.py", audited[0], "--flip_above", "0.3", "--drop_above", "0.6")
    assert "all that would be dropped are flipped" in refused.stderr


def test_runs_that_are_no_seeds_of_one_study_are_refused(audited, tmp_path):
    assert "differ in noise or seed" in script("measure_recovery.py", audited[0], audited[0]).stderr
    unfinished = tmp_path / "runs" / "capo-seed0"
    shutil.copytree(audited[0], unfinished)
    (unfinished / "result.json").unlink()
    assert "result.json" in script("measure_recovery.py", unfinished).stderr


def test_the_share_that_came_back(monkeypatch):
    """Of 200 pairs 180 are ranked as labelled, 100 with noise, 150 cleaned: 25 points, 5/8 of the loss, came back.

    Without noise, and 90 cleaned: 5 points less, give or take 1.96 sqrt(0.05 * 0.95 / 200) = 3, and there is no loss.
    """
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from measure_recovery import Trained, line

    def trained(*counts: int) -> list[list]:
        return [[Trained(np.arange(200) < count, np.full(200, "de")) for count in counts]] * 3

    cells = line("20 %", trained(180, 100, 150)).strip("| ").split(" | ")
    assert [cell.split()[0] for cell in cells] == ["20", "3", "90.0", "50.0", "75.0", "+25.0", "0.62"]
    low, high = (float(bound.strip("[],")) for bound in cells[-1].split()[1:])
    assert 0.5 < low < 0.62 < high < 0.75
    *_, added, share = line("none", trained(100, 100, 90)).strip("| ").split(" | ")
    low, high = (float(bound.strip("[],")) for bound in added.split()[1:])
    assert (added.split()[0], low, high, share) == ("-5.0", pytest.approx(-8, abs=1), pytest.approx(-2, abs=1), "-")
