"""A study of 2 methods x 2 noises x 2 seeds on the tiny model through the command: killed, resumed, reported."""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from conftest import save_tiny_model
from datasets import Dataset, load_dataset
from PIL import Image
from study_data import NOISE, plan, save_splits

from trl_capo.noise import inject_noise
from trl_capo.study.config import read_study
from trl_capo.study.run import RESULT

LANGUAGES = ("de", "sw", "日本")


def command(path: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "trl_capo.cli", "study", "--config", str(path), *arguments]


def done_runs(folder: Path) -> dict[str, int]:
    """The runs that are done, each with the time of its result."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob(f"runs/*/{RESULT}")}


def kill_when(count: int, folder: Path, process: subprocess.Popen) -> None:
    """Kill the study alone, as soon as so many runs are done and another one is going on, which must end with it."""
    deadline, started = time.monotonic() + 300, []
    while len(done_runs(folder)) < count or len(started) < 2:  # `accelerate launch` and the run
        assert process.poll() is None, "the study ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
        started = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert not psutil.wait_procs(started, timeout=60)[1], "a run goes on without its study"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study that was killed in its middle and resumed with two jobs; what was done before, and what was said."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "data").mkdir()
    model, data = save_tiny_model(folder / "model", seed=0), save_splits(folder / "data")
    path, output = folder / "plan.yaml", folder / "output"
    path.write_text(yaml.safe_dump(plan(model, data, output)))
    with (folder / "first.txt").open("w") as log:
        process = subprocess.Popen(command(path), stdout=log, stderr=log)
        kill_when(3, output, process)  # the preparation and two runs
    before = done_runs(output)
    second = subprocess.run(command(path, "--jobs", "2"), capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    return path, output, before, second


def rows_of(folder: Path) -> list[dict]:
    return Dataset.from_parquet(str(folder / "results.parquet"), cache_dir=str(folder / "cache")).to_list()


def test_what_was_done_is_not_run_again(finished):
    path, output, before, second = finished
    after = done_runs(output)
    assert 3 <= len(before) < 9
    assert len(after) == 9  # 2 x 2 x 2, and the preparation
    assert {name: after[name] for name in before} == before
    assert "Preparing" not in second.stderr
    assert "9/8" not in second.stderr
    assert "8/8" in second.stderr
    assert f"Report: {output / 'report.md'}" in second.stdout


def test_nothing_is_left_unfinished_but_what_was_killed(finished):
    _, output, _, _ = finished
    assert not list(output.glob("runs/*/unfinished*"))


def test_a_finished_study_runs_nothing(finished):
    path, output, _, _ = finished
    before, report = done_runs(output), (output / "report.md").read_text()
    again = subprocess.run(command(path), capture_output=True, text=True, check=False)
    assert again.returncode == 0
    assert done_runs(output) == before
    assert (output / "report.md").read_text() == report
    assert "runs" not in again.stderr


def test_the_table_has_a_row_for_every_run_and_language(finished):
    _, output, _, _ = finished
    rows = rows_of(output)
    keys = {(row["method"], row["noise"], row["seed"], row["group"]) for row in rows}
    assert len(rows) == len(keys) == 8 * (1 + len(LANGUAGES))
    groups = ("all", *LANGUAGES)
    assert keys == {(m, n, s, g) for m in ("dpo", "capo") for n in ("clean", "flip") for s in (0, 1) for g in groups}
    for row in rows:
        assert row["pairs"] == (12 if row["group"] == "all" else 4)
        assert (row["epochs"], row["steps"], row["learning_rate"]) == (1, 6, 1e-2)
        assert 0 <= row["accuracy"] <= 1
        assert row["seconds"] > 0
        assert row["peak_memory_mb"] > 50
        assert row["version_trl-capo"]
    with (output / "results.csv").open(encoding="utf-8", newline="") as file:
        texts = list(csv.DictReader(file))
    assert [{key: "" if value is None else str(value) for key, value in row.items()} for row in rows] == texts


def test_all_is_the_mean_of_the_languages_which_have_as_many_pairs(finished):
    _, output, _, _ = finished
    table = {(r["method"], r["noise"], r["seed"], r["group"]): (r["accuracy"], r["margin"]) for r in rows_of(output)}
    for (method, noise, seed, group), found in table.items():
        if group == "all":
            parts = [table[method, noise, seed, language] for language in LANGUAGES]
            assert found == pytest.approx(np.mean(parts, axis=0), rel=1e-5, abs=1e-6)


def test_true_rates_are_those_of_the_injected_noise_and_estimates_capos_alone(finished):
    path, output, _, _ = finished
    train = load_dataset(read_study(str(path), {}).dataset_name, cache_dir=str(output / "cache"))["train"]
    for seed in (0, 1):
        noisy = inject_noise(train, "flip", NOISE["flip"]["rate"], seed=seed).to_pandas()
        shares = {"all": noisy["is_noisy"].mean(), **noisy.groupby("language")["is_noisy"].mean()}
        assert 0 < shares["all"] < 1
        for row in rows_of(output):
            if row["seed"] == seed:
                expected = shares[row["group"]] if row["noise"] == "flip" else 0.0
                assert row["noise_rate_true"] == pytest.approx(expected)
                assert (row["noise_rate_estimate"] is None) == (row["method"] == "dpo")
                assert row["noise_rate_estimate"] is None or 0 < row["noise_rate_estimate"] <= 0.5


def test_methods_see_the_same_data_and_noise_changes_what_is_learned(finished):
    """Noise and seeds change the margins; a method alone changes them far less in so few steps, but it does."""
    _, output, _, _ = finished
    margins = {(r["method"], r["noise"], r["seed"]): r["margin"] for r in rows_of(output) if r["group"] == "all"}
    assert len(set(margins.values())) == 8
    assert margins["dpo", "clean", 0] > margins["dpo", "flip", 0]


def test_the_curve_ends_with_the_training_and_is_on_the_validation_split(finished):
    _, output, _, _ = finished
    for path in output.glob(f"runs/capo-*/{RESULT}"):
        result = json.loads(path.read_text())
        assert [point["step"] for point in result["curve"]] == [3, 6]
        assert result["steps"] == 6


def test_the_plots_open_and_are_not_empty(finished):
    _, output, _, _ = finished
    report = (output / "report.md").read_text()
    plots = sorted(path.name for path in output.glob("*.png"))
    assert plots == ["accuracy_1ep.png", "gain_1ep.png", "reward_gap_1ep.png", "steps_1ep.png"]
    for name in plots:
        assert f"]({name})" in report
        with Image.open(output / name) as image:
            shades = np.asarray(image.convert("L"))
        assert shades.min() < 80
        assert (shades < 200).mean() > 0.005


def test_a_run_that_fails_says_why(finished, tmp_path):
    """What from_pretrained does not take shows in the first run, and there is told without a traceback."""
    path, _, _, _ = finished
    options = yaml.safe_load(path.read_text()) | {"output_dir": str(tmp_path / "out"), "model": {"dtype": "float31"}}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(options))
    failed = subprocess.run(command(tmp_path / "plan.yaml"), capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    last = failed.stderr.splitlines()[-1]
    assert last.startswith("trl-capo study: error: the run dpo-none-")
    assert "float31" in last
    assert "Traceback" not in failed.stderr
    assert not done_runs(tmp_path / "out")
