"""The plan of a study: the runs it makes, the learning rates it selects, and the mistakes it names."""

from pathlib import Path

import pytest
import yaml
from study_data import GRID, NOISE, plan_options

from trl_capo.study.plan import Run, StudyPlan

TUNING = {"noise": ["flip"], "seeds": [0]}
LONGER = {"methods": ["capo"], "noise": ["flip"], "seeds": [0], "epochs": 3}
SHIPPED = sorted((Path(__file__).parents[2] / "configs" / "study").glob("*.yaml"))


@pytest.fixture
def make_plan(tmp_path):
    return lambda **changes: StudyPlan(**plan_options("model", "data", tmp_path, **changes))


def test_a_grid_is_every_combination_of_its_blocks_without_repeats(make_plan):
    """2 methods x 2 noises x 2 seeds, and 1 x 1 x 3 for three epochs: 8 + 3 runs."""
    blocks = [GRID, LONGER | {"seeds": [0, 1, 2]}, GRID]
    runs = make_plan(grid=blocks).grid_runs({("dpo", 1): 1e-3, ("capo", 1): 1e-4, ("capo", 3): 1e-5})
    assert len(runs) == 11
    assert runs[:2] == [Run("dpo", "clean", 0, 1, 1e-3), Run("capo", "clean", 0, 1, 1e-4)]
    assert runs[-1].name == "capo-flip-seed2-3ep-lr1.00e-05"
    assert Run("capo", "10 / 40 %", 0, 1, 1e-4).name == "capo-10 _ 40 %-seed0-1ep-lr1.00e-04"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_plans_run_everything_that_they_define(path):
    content = yaml.safe_load(path.read_text())
    found = {(run.method, run.noise) for run in StudyPlan(**content).possible_runs()}
    assert [set(names) for names in zip(*found, strict=True)] == [set(content["methods"]), set(content["noise"])]


def test_methods_are_tuned_on_the_noise_that_the_grid_has_for_them(make_plan):
    """2 methods x 2 noises x 2 rates for one epoch; for three epochs capo has only "flip" in the grid."""
    tuning = {"noise": ["clean", "flip"], "seeds": [0]}
    runs = make_plan(grid=[GRID, LONGER], learning_rates=[1e-3, 1e-2], tuning=tuning).tuning_runs()
    assert len(runs) == len(set(runs)) == 2 * (2 * 2 + 1)
    assert {(run.method, run.noise) for run in runs if run.epochs == 3} == {("capo", "flip")}
    clean = make_plan(grid=[GRID | {"noise": ["clean"]}], learning_rates=[1e-3, 1e-2], tuning=TUNING)
    assert {run.noise for run in clean.tuning_runs()} == {"flip"}  # none of its own: all of them
    assert make_plan(tuning=TUNING).tuning_runs() == []  # a single learning rate


MISTAKES = [
    ({"methods": {"dpo": {}, "capo": {"max_length": 20}}}, "max_length cannot be set"),
    ({"training": {"gradient_accumulation_steps": 2}, "methods": {"dpo": {}, "capo": {"method": "dr_dpo"}}},
     "gradient_accumulation_steps must be 1"),
    ({"methods": {"capo": {}}, "grid": [GRID | {"methods": ["capo"]}]}, "baseline='dpo' is not one of the methods"),
    ({"noise": {"clean": NOISE["clean"]}}, "misplaced: 'flip'"),
    ({"learning_rates": [1e-3, 1e-2]}, "needs tuning runs"),
    ({"methods": {"dpo": {}, "capo": {"clean": {"weight": True}}}}, "clean: weight is none of drop_top"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_a_plan_that_cannot_be_run_is_refused(changes, message, make_plan):
    with pytest.raises(ValueError, match=message):
        make_plan(**changes)
