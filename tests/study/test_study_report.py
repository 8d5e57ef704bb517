"""The report and the plots of runs whose margins are written by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest
from study_data import plan_options

from trl_capo.study.plan import StudyPlan
from trl_capo.study.report import write_report


@pytest.fixture
def plan(tmp_path):
    """A plan with finished runs: with flips dpo has 4 of 8 pairs right and capo 5; 0.001 is dpo's best rate."""
    grid = [
        {"methods": ["dpo", "capo"], "noise": ["clean", "flip"], "seeds": [0, 1], "epochs": 1},
        {"methods": ["rd|$x$"], "noise": ["flip"], "seeds": [0], "epochs": 1},
    ]
    methods = {"dpo": {}, "capo": {}, "rd|$x$": {"method": "rdpo", "label_smoothing": "true_rate"}}
    options = {"methods": methods, "grid": grid, "learning_rates": [1e-3, 1e-2]}
    options |= {"tuning": {"noise": ["flip"], "seeds": [0]}}
    plan = StudyPlan(**plan_options("a/model", "data", tmp_path, **options))
    labels = np.array(["de", "de", "de", "sw", "sw", "sw", "sw", "de"])
    for run in plan.possible_runs():
        plan.folder(run).mkdir(parents=True)
        better, clean = 2 * (run.method == "capo"), 2 * (run.noise == "clean")
        margins = np.array([1, 1, clean - 1, clean - 1, 1, 1, better - 1, -1], dtype=np.float32)
        np.savez(plan.folder(run) / "margins.npz", margins=margins, labels=labels)
        result = {"settings": plan.settings(run), "noise_shares": {"all": 0.25, "de": 0.5, "sw": 0.0}, "steps": 6}
        result |= {"noise_rates": {"all": 0.21, "de": 0.31, "sw": 0.11} if better else None}
        result |= {"seconds": 12.34, "versions": {"trl": "4.5"}}
        last = 0.625 if better and run.learning_rate == 1e-2 else 0.61 if run.learning_rate == 1e-3 else 0.6
        (plan.folder(run) / "result.json").write_text(json.dumps(result | {"validation_accuracy": last}))
    return plan


def tables_of(folder) -> dict[str, dict[str, list[str]]]:
    """Title of a section -> name of a row -> the values of its cells, without intervals."""
    tables = {}
    for section in (folder / "report.md").read_text(encoding="utf-8").split("## ")[1:]:
        rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
        tables[section.splitlines()[0]] = {name: [cell.split(" [")[0] for cell in cells] for name, *cells in rows[2:]}
    return tables


def test_the_tables_have_the_numbers_of_the_margins(plan, tmp_path):
    rows, tables = {name: cells for name, *cells in write_report(plan)}, tables_of(tmp_path)
    third = "rd\\|$x$"
    accuracy = {"dpo": ["75.0", "50.0"], "capo": ["87.5", "62.5"], third: ["-", "50.0"]}
    assert tables["Reward accuracy, % (number of seeds)"] == accuracy
    assert tables["Reward accuracy minus dpo's, points"] == {"capo": ["+12.5", "+12.5"], third: ["-", "+0.0"]}
    assert tables["Reward accuracy as a multiple of dpo's"] == {"capo": ["1.17", "1.25"], third: ["-", "1.00"]}
    assert tables["Reward gap: the mean margin"]["capo"] == ["0.75", "0.25"]
    assert tables["Noise rate estimated (true), %"]["capo, flip"] == ["21 (25)", "31 (50)", "11 (0)"]
    assert tables["Learning rates"]["capo"] == ["1", "61.0", "62.5 (chosen)"]
    assert [cell.split(" [")[0] for cell in rows["capo, flip, 1 epoch"]] == ["62.5", "+12.5", "", "50.0"]
    plots = ["accuracy_1ep.png", "groups_clean_1ep.png", "groups_flip_1ep.png"]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == plots
    write_report(replace(plan, baseline="capo"))
    assert tables_of(tmp_path)["Reward accuracy minus capo's, points"]["dpo"] == ["-12.5", "-12.5"]
