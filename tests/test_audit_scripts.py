"""The scripts that hold audits against known labels, on a study of the tiny model; and their arithmetic."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import load_from_disk
from study_data import TRAINING, plan, save_splits

from trl_capo.study.config import Run, StudyConfig
from trl_capo.study.run import run

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture(scope="module")
def audited(tmp_path_factory, model_dir) -> list[str]:
    """Two runs of CAPO with a pair log, of different seeds."""
    folder = tmp_path_factory.mktemp("audited")
    training = TRAINING | {"pair_log": True}
    config = StudyConfig(**plan(model_dir, save_splits(folder / "data", 96), folder / "study", training=training))
    folders = []
    for seed in (0, 1):
        settings = config.settings(Run("capo", "flip", seed, 2, 1e-2))
        made = folder / "study" / "runs" / f"capo-seed{seed}"
        made.mkdir(parents=True)
        (made / "settings.json").write_text(json.dumps(settings))
        run(settings, made)
        folders.append(str(made))
    return folders


def script(name: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, str(SCRIPTS / name), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_scores_are_compared(audited):
    said = script("compare_audit_scores.py", *audited)
    assert "### flip of the labels flipped, 2 runs" in said
    assert "| posterior from mean_margin |" in said


def test_recovery_is_measured_once(audited, tmp_path):
    """Both noise and cleaning change training labels; the second time nothing is trained."""
    command = ("measure_recovery.py", *audited, "--output_dir", str(tmp_path), "--learning_rate", "1e-2")
    said = script(*command)
    assert "| flip | 2 | " in said.splitlines()[-1]
    results = {path.parent.name: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/result.json")}
    arms = {
        "right-seed0",
        "right-seed1",
        *(f"{arm}-capo-seed{seed}" for arm in ("noisy", "cleaned") for seed in (0, 1)),
    }
    assert results.keys() == arms
    shared = json.loads(Path(audited[0], "settings.json").read_text())["shared"]
    lines = Path(shared["dataset_name"], "train.jsonl").read_text().splitlines()
    cleaned = load_from_disk(str(tmp_path / "data" / "capo-seed0"))["train"]["chosen"][:]
    assert cleaned != [json.loads(line)["chosen"] for line in lines]
    shares = json.loads((tmp_path / "runs" / "cleaned-capo-seed0" / "result.json").read_text())["noise_shares"]
    assert shares["all"] == 0
    assert script(*command) == said
    assert said.count("\n") == 3
    assert {path.parent.name: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/result.json")} == results


def test_the_share_that_came_back(monkeypatch, capsys):
    """Of 200 pairs 180 are ranked as labelled, 100 with noise, 150 cleaned: 50 of 80 came back, 0.62."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from measure_recovery import print_row

    ranked = {arm: np.tile(np.arange(200) < count, (3, 1)).astype(float) for arm, count in
              {"right": 180, "noisy": 100, "cleaned": 150}.items()}  # fmt: skip
    print_row("20 %", [0, 1, 2], ranked, np.full(200, "de"))
    cells = capsys.readouterr().out.strip(" |\n").split(" | ")
    assert [cell.split()[0] for cell in cells] == ["20", "3", "90.0", "50.0", "75.0", "0.62"]
    low, high = (float(bound.strip("[],")) for bound in cells[-1].split()[1:])
    assert 0.5 < low < 0.62 < high < 0.75
