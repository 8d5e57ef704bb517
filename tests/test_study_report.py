"""The report, the table and the plots of a frozen set of runs, against frozen text and values by hand."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image
from study_data import plan

from trl_capo.study.config import StudyConfig
from trl_capo.study.rates import choose_learning_rates
from trl_capo.study.report import write_report

REPORT = Path(__file__).with_name("frozen_study_report.md").read_text(encoding="utf-8")


@pytest.fixture
def study(tmp_path):
    """The plan of a small study, and the folders of its runs as they would be: margins are (seed, pair) by hand."""
    methods = {"dpo": {}, "capo": {}, "rd": {"method": "rdpo", "label_smoothing": "true_rate"}}
    grid = [
        {"methods": ["dpo", "capo"], "noise": ["clean", "flip"], "seeds": [0, 1], "epochs": 1},
        {"methods": ["rd"], "noise": ["flip"], "seeds": [0], "epochs": 1},
        {"methods": ["dpo", "capo"], "noise": ["flip"], "seeds": [0], "epochs": 3},
    ]
    tuning = {"noise": ["flip"], "seeds": [0]}
    options = {"methods": methods, "grid": grid, "learning_rates": [1e-3, 1e-2], "tuning": tuning}
    config = StudyConfig(**plan("a/model", "data/pairs", tmp_path, **options))
    tried = {trained: {1e-3: 0.7, 1e-2: 0.65} for trained in config.trained()}
    tried["capo", 1] = {1e-3: 0.61, 1e-2: 0.625}
    rates = choose_learning_rates(config, tried)
    runs = {run: tmp_path / "runs" / run.name for run in config.grid_runs(rates)}
    for run, folder in runs.items():
        folder.mkdir(parents=True)
        better = {"dpo": 0, "rd": 1, "capo": 2}[run.method]
        margins = np.array([1, 1, 1, 1, 1, 1, -1, -1]) + [0, 0, -2, -2 + run.seed, 0, 0, better, 0]
        if run.noise == "clean":
            margins = margins + [0, 0, 2, 2, 0, 0, 0, 0]
        labels = np.array(["de", "de", "de", "sw", "sw", "sw", "sw", "de"])
        np.savez(folder / "margins.npz", margins=margins.astype(np.float32), labels=labels)
        rates = {"all": 0.21, "de": 0.31, "sw": 0.11} if run.method == "capo" else None
        result = {
            "settings": config.settings(run),
            "noise_shares": {"all": 0.0 if run.noise == "clean" else 0.25, "de": 0.5, "sw": 0.0},
            "steps": 6,
            "seconds": 12.34 + run.seed,
            "peak_memory_bytes": 2**30,
            "curve": [
                {"step": 3, "accuracy": 0.5 + 0.1 * better, "margin": 0.1},
                {"step": 6, "accuracy": 0.6, "margin": 1},
            ],
            "noise_rates": rates,
            "versions": {"trl-capo": "1.2.3", "trl": "4.5"},
        }
        (folder / "result.json").write_text(json.dumps(result))
    return config, tried, runs, tmp_path


def test_the_report_of_frozen_runs_is_the_frozen_text(study):
    write_report(*study)
    assert (study[-1] / "report.md").read_text(encoding="utf-8") == REPORT
    write_report(*study)
    assert (study[-1] / "report.md").read_text(encoding="utf-8") == REPORT


def test_another_baseline_turns_the_differences_around(study):
    """With flips dpo and rd have 4 of 8 pairs right, capo 5; on clean labels dpo has 6, capo 7."""
    config, *others, folder = study
    write_report(replace(config, baseline="capo"), *others, folder)
    text = (folder / "report.md").read_text(encoding="utf-8")
    shown = text.split("### Reward accuracy less capo's, points")[1].split("###")[0]
    found = {row[0]: [cell.split(" ")[0] for cell in row[1:]] for row in map(cells_of, shown.strip().splitlines()[2:])}
    assert found == {"dpo": ["-12.5", "-12.5"], "rd": ["-", "-12.5"]}


def cells_of(line: str) -> list[str]:
    return line.strip("| ").split(" | ")


def test_the_table_has_a_row_for_every_run_and_group(study):
    config, _, runs, folder = study
    write_report(*study)
    rows = Dataset.from_parquet(str(folder / "results.parquet"), cache_dir=str(folder / "cache")).to_list()
    assert len(rows) == len(runs) * 3
    keys = [(row["method"], row["noise"], row["epochs"], row["seed"], row["group"]) for row in rows]
    groups = ("all", "de", "sw")
    assert sorted(keys) == sorted((r.method, r.noise, r.epochs, r.seed, group) for r in runs for group in groups)
    row = rows[keys.index(("capo", "flip", 1, 1, "sw"))]
    expected = {"learning_rate": 1e-2, "pairs": 4, "accuracy": 0.75, "margin": 0.75, "noise_rate_estimate": 0.11}
    expected |= {"noise_rate_true": 0.0, "steps": 6, "seconds": 13.3, "peak_memory_mb": 1024, "version_trl": "4.5"}
    assert {name: row[name] for name in expected} == pytest.approx(expected)
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        texts = list(csv.DictReader(file))
    assert [{name: "" if value is None else str(value) for name, value in row.items()} for row in rows] == texts


def test_every_plot_opens_and_is_not_empty(study):
    write_report(*study)
    plots = sorted(path.name for path in study[-1].glob("*.png"))
    kinds = ("accuracy", "gain", "reward_gap", "steps")
    assert plots == sorted(f"{kind}_{epochs}ep.png" for kind in kinds for epochs in (1, 3))
    for name in plots:
        assert f"]({name})" in REPORT
        with Image.open(study[-1] / name) as image:
            shades = np.asarray(image.convert("L"))
        assert min(shades.shape) > 300
        assert shades.min() < 80  # something dark is drawn
        assert (shades < 200).mean() > 0.005


def test_a_group_that_no_font_can_draw_gets_a_number(study, monkeypatch):
    monkeypatch.setattr("trl_capo.study.plots.choose_fonts", lambda names: (["DejaVu Sans"], {"w"}))
    write_report(*study)
    assert "in every group, 1 epoch; #2 is sw](gain_1ep.png)" in (study[-1] / "report.md").read_text(encoding="utf-8")


def test_runs_on_other_pairs_are_refused(study):
    config, tried, runs, folder = study
    last = list(runs.values())[-1]
    np.savez(last / "margins.npz", margins=np.ones(7, np.float32), labels=np.array(["de"] * 7))
    with pytest.raises(ValueError, match="runs of capo under flip were measured on other test pairs"):
        write_report(*study)


def test_runs_without_readable_margins_are_named(study):
    for content in (b"", b"PK damaged"):
        path = list(study[2].values())[-1] / "margins.npz"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"margins\.npz cannot be read"):
            write_report(*study)


def test_all_versions_are_told(study):
    path = list(study[2].values())[-1] / "result.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps(result | {"versions": {"trl-capo": "1.2.4", "trl": "4.5"}}))
    write_report(*study)
    report = (study[-1] / "report.md").read_text(encoding="utf-8")
    assert report.endswith("\nVersions: trl-capo 1.2.3, trl 4.5.\nVersions: trl-capo 1.2.4, trl 4.5.\n")


def test_without_groups_there_is_one_row_a_run_and_no_map(study):
    config, tried, runs, folder = study
    for path in runs.values():
        np.savez(path / "margins.npz", margins=np.array([1, -1], np.float32), labels=np.array(["", ""]))
    write_report(*study)
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        assert [row["group"] for row in csv.DictReader(file)] == ["all"] * len(runs)
    assert not list(folder.glob("gain*.png"))
    assert "worst group" not in (folder / "report.md").read_text()
