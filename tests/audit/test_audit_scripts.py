"""The research scripts on two runs of the tiny model and their arithmetic."""

import json
import sys
from pathlib import Path

import pytest
from conftest import CPU_ARGUMENTS, make_pairs
from datasets import DatasetDict

from trl_capo.study.plan import Run, StudyPlan
from trl_capo.study.run import run

SCRIPTS = str(Path(__file__).parents[2] / "scripts" / "research")


@pytest.mark.slow
def test_scores_are_compared_and_recovery_is_measured_once(tmp_path, model_dir, monkeypatch, capsys):
    monkeypatch.syspath_prepend(SCRIPTS)
    import compare_audit_scores
    import measure_recovery

    rows = {"train": range(48), "validation": range(48, 54), "test": range(54, 72)}
    DatasetDict({name: make_pairs(72).select(part) for name, part in rows.items()}).save_to_disk(tmp_path / "data")
    training = {name: CPU_ARGUMENTS[name] for name in ("bf16", "use_cpu", "per_device_train_batch_size")}
    plan = {"methods": {"capo": {}}, "baseline": "capo", "noise": {"flip": {"kind": "flip", "rate": 0.3}}}
    plan |= {"grid": [{"methods": ["capo"], "noise": ["flip"], "seeds": [0], "epochs": 2}], "curve_points": 1}
    plan |= {"training": training | {"pair_log": True}, "learning_rates": [1e-2], "output_dir": "unused"}
    plan = StudyPlan(model_name_or_path=model_dir, dataset_name=str(tmp_path / "data"), **plan)
    folder = tmp_path / "study" / "runs" / "capo-seed0"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(run(plan.settings(Run("capo", "flip", 0, 2, 1e-2)), folder)))
    monkeypatch.setattr(sys, "argv", ["compare", str(folder)])
    compare_audit_scores.main()
    assert "\n| posterior from mean_margin | " in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["measure", str(folder), "--learning_rate", "1e-2"])
    measure_recovery.main()
    output = capsys.readouterr().out
    assert output.splitlines()[-1].startswith("| flip | 1 | ")
    assert len(list((tmp_path / "study" / "recovery" / "runs").iterdir())) == 3
    monkeypatch.setattr(measure_recovery, "run", None)
    measure_recovery.main()
    assert capsys.readouterr().out == output
