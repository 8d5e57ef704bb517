"""The command `trl-capo study` and its options."""

import yaml
from conftest import run_main
from study_data import plan_options, save_splits

from trl_capo.study import command


def test_options_override_the_plan_and_an_interrupt_says_how_to_continue(tmp_path, model_dir, monkeypatch):
    # YAML 1.1 reads 1e-4 as text
    options = plan_options(model_dir, save_splits(tmp_path), tmp_path / "out", learning_rates=["1e-4"])
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(options))
    start, made = (command.main, "--config", tmp_path / "plan.yaml"), []
    assert "has no finished run" in run_main(*start, "--report_only")[2]

    def interrupted(plan, jobs):
        made.append((plan.baseline, plan.output_dir, jobs, plan.learning_rates))
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "study", interrupted)
    code, _, err = run_main(*start, "--baseline", "capo", "--output_dir", "elsewhere", "--jobs", "2")
    assert code == 130
    assert "continues" in err
    assert made == [("capo", "elsewhere", 2, [1e-4])]
