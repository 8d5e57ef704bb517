"""The plan of a study: which runs it makes, and one clear error for everything in it that cannot be run."""

import json
from pathlib import Path

import pytest
import yaml
from study_data import LORA, NOISE, TRAINING, plan

from trl_capo.study.config import Run, StudyConfig, read_study
from trl_capo.study.rates import choose_learning_rates, validation_accuracies

GRID = {"methods": ["dpo", "capo"], "noise": ["clean", "flip"], "seeds": [0, 1], "epochs": 1}
TUNING = {"noise": ["flip"], "seeds": [0], "epochs": 1}
SHIPPED = sorted((Path(__file__).parent.parent / "configs" / "study").glob("*.yaml"))


@pytest.fixture
def config(tmp_path):
    """Builds a StudyConfig of the small study; keywords win."""
    return lambda **changes: StudyConfig(**plan("model", "data", tmp_path, **changes))


def test_a_grid_is_every_combination_of_its_blocks(config):
    """2 methods x 2 noises x 2 seeds, and 1 x 1 x 3 for three epochs, of which nothing is run twice: 8 + 3."""
    blocks = [GRID, {"methods": ["capo"], "noise": ["flip"], "seeds": [0, 1, 2], "epochs": 3}]
    runs = config(grid=[*blocks, GRID]).grid_runs({("dpo", 1): 1e-3, ("capo", 1): 1e-4, ("capo", 3): 1e-5})
    assert len(runs) == 11
    assert runs[:4] == [
        Run("dpo", "clean", 0, 1, 1e-3),
        Run("capo", "clean", 0, 1, 1e-4),
        Run("dpo", "flip", 0, 1, 1e-3),
        Run("capo", "flip", 0, 1, 1e-4),
    ]
    assert runs[-1] == Run("capo", "flip", 2, 3, 1e-5)
    assert runs[-1].name == "capo-flip-seed2-3ep-lr1.00e-05"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_plans_can_be_run(path):
    """With plain dictionaries: the grid uses all methods and kinds of noise that its file defines, and no others."""
    content, config = yaml.safe_load(path.read_text()), read_study(str(path), {})
    for key in ("methods", "noise"):
        assert {name for block in content["grid"] for name in block[key]} == set(content[key])
    assert {run.method for run in config.possible_runs()} == set(content["methods"])


def test_a_label_with_a_slash_names_no_folder_in_a_folder():
    assert Run("capo", "10 / 40 %", 0, 1, 1e-4).name == "capo-10 _ 40 %-seed0-1ep-lr1.00e-04"


def test_tuning_runs_try_every_learning_rate_of_the_methods_in_the_grid(config):
    """2 seeds x 1 noise x 2 of 3 methods x 3 rates."""
    methods = {"dpo": {}, "capo": {}, "ipo": {}}
    tuning = TUNING | {"seeds": [5, 6]}
    runs = config(methods=methods, learning_rates=[1e-4, 1e-3, 1e-2], tuning=tuning).tuning_runs()
    assert len(runs) == len(set(runs)) == 12
    assert {(run.noise, run.epochs) for run in runs} == {("flip", 1)}
    assert {run.method for run in runs} == {"dpo", "capo"}
    twice = tuning | {"seeds": [5, 6, 5]}
    assert config(methods=methods, learning_rates=[1e-4, 1e-3, 1e-2], tuning=twice).tuning_runs() == runs
    assert config(tuning=TUNING).tuning_runs() == []  # one learning rate: nothing to choose


def test_the_learning_rate_is_the_best_at_the_end_on_the_validation_split(config):
    """Means over the tuning runs' last points: dpo 0.65 and 0.7; capo 0.8 and 0.8, a tie, of which the lower one.

    What a run said earlier, and what it would say on the test split, is the other way round and does not count.
    """
    last = {("dpo", 1e-3, 0): 0.7, ("dpo", 1e-3, 1): 0.6, ("dpo", 1e-2, 0): 0.6, ("dpo", 1e-2, 1): 0.8}
    last |= {("capo", rate, seed): 0.8 for rate in (1e-2, 1e-3) for seed in (0, 1)}
    results = {
        Run(method, "flip", seed, 1, rate): {
            "curve": [{"step": 3, "accuracy": 1 - value}, {"step": 6, "accuracy": value}],
            "test": {"accuracy": 1 - value},
        }
        for (method, rate, seed), value in last.items()
    }
    plan = config(learning_rates=[1e-2, 1e-3], tuning=TUNING)
    tried = validation_accuracies(plan, results)
    assert tried["dpo", 1] == {1e-3: pytest.approx(0.65), 1e-2: pytest.approx(0.7)}
    assert choose_learning_rates(plan, tried) == {("dpo", 1): 1e-2, ("capo", 1): 1e-3}


LONGER = {"methods": ["capo"], "noise": ["flip"], "seeds": [0], "epochs": 3}


def test_every_number_of_epochs_has_a_learning_rate_of_its_own(config):
    """capo learns best fast in one epoch, and slowly in three, where the grid has one of the two kinds of noise."""
    tuning = {"noise": ["clean", "flip"], "seeds": [0]}
    plan = config(grid=[GRID, LONGER], learning_rates=[1e-3, 1e-2], tuning=tuning)
    runs = plan.tuning_runs()
    made = {(run.method, run.noise, run.epochs) for run in runs}
    one = {(method, noise, 1) for method in ("dpo", "capo") for noise in ("clean", "flip")}
    assert made == one | {("capo", "flip", 3)}
    assert len(runs) == 2 * len(made)
    best = {("dpo", 1): 1e-2, ("capo", 1): 1e-2, ("capo", 3): 1e-3}
    results = {
        run: {"curve": [{"accuracy": 0.9 if best[run.method, run.epochs] == run.learning_rate else 0.8}]}
        for run in runs
    }
    assert choose_learning_rates(plan, validation_accuracies(plan, results)) == best


def test_short_tuning_runs_choose_for_all_numbers_of_epochs(config):
    plan = config(grid=[GRID, LONGER], learning_rates=[1e-3, 1e-2], tuning=TUNING | {"epochs": 0.5})
    results = {run: {"curve": [{"accuracy": run.learning_rate}]} for run in plan.tuning_runs()}
    assert {run.epochs for run in results} == {0.5}
    assert choose_learning_rates(plan, validation_accuracies(plan, results)) == dict.fromkeys(plan.trained(), 1e-2)


def test_where_the_grid_has_none_of_the_tuning_noise_all_of_it_is_used(config):
    plan = config(
        grid=[GRID | {"noise": ["clean"]}], learning_rates=[1e-3, 1e-2], tuning={"noise": ["flip"], "seeds": [0]}
    )
    assert {run.noise for run in plan.tuning_runs()} == {"flip"}


def test_settings_hold_all_that_decides_a_run_and_nothing_else(config):
    """The folder, the grid and the other methods do not; a method's options, its noise and the shared ones do."""
    run = Run("capo", "flip", 0, 1, 1e-2)
    settings = config().settings(run)
    assert settings == json.loads(json.dumps(settings))
    assert config(grid=[GRID, GRID | {"epochs": 3}], output_dir="elsewhere", baseline="capo").settings(run) == settings
    for changes in (
        {"methods": {"dpo": {}, "capo": {"beta": 0.2}}},
        {"noise": NOISE | {"flip": {"kind": "near_tie", "rate": 0.1}}},
        {"training": TRAINING | {"beta": 0.2}},
        {"train_pairs": 12},
    ):
        assert config(**changes).settings(run) != settings


def test_yaml_without_points_and_methods_without_options(tmp_path):
    """1e-4 is text in YAML 1.1, and a label with nothing behind it is null."""
    text = yaml.safe_dump(plan("model", "data", tmp_path, learning_rates=["LR"], methods={"dpo": None, "capo": None}))
    (tmp_path / "plan.yaml").write_text(text.replace("LR", "1e-4"))
    config = read_study(str(tmp_path / "plan.yaml"), {"output_dir": "other", "baseline": "capo"})
    assert config.learning_rates == [1e-4]
    assert config.methods == {"dpo": {}, "capo": {}}
    assert (config.output_dir, config.baseline) == ("other", "capo")


PLAN_ERRORS = [
    ({"methods": {"dpo": {}, "kto": {}}}, ["methods: kto: there is no method 'kto'", "Choose one of capo, dpo"]),
    ({"methods": {"dpo": {}, "capo": {"betta": 1}}}, ["methods: capo: there is no option 'betta'"]),
    ({"training": TRAINING | {"pair_log": "logs"}}, ["training: pair_log='logs': give true or false"]),
    ({"methods": {"dpo": {}, "capo": {"b": 1}}}, ["methods: capo: there is no option 'b'"]),
    ({"methods": {"dpo": {}, "capo": {"learning_rate": 1}}}, ["methods: capo: learning_rate cannot stand there"]),
    ({"methods": {"dpo": {}, "capo": 3}}, ["methods: capo: 3 must map options to values"]),
    ({"methods": ["dpo"]}, ["methods=['dpo'] must map labels to options"]),
    ({"methods": {"dpo": {}, "capo": {}, "": {"method": "capo"}}}, ["the label '' must be text on one line"]),
    ({"noise": NOISE | {"a/b": NOISE["flip"], "a_b": NOISE["flip"]}, "grid": [GRID | {"noise": ["a/b", "a_b"]}]},
     ["two runs would be called dpo-a_b-seed0"]),
    ({"methods": {"capo": {}}, "grid": [GRID | {"methods": ["capo"]}]}, ["baseline='dpo' is not one of the methods"]),
    ({"noise": {"clean": {"kind": "flip", "rate": 1.0}, "flip": {"kind": "flip", "rate": -0.1}}},
     ["noise: clean: rate=1.0", "noise: flip: rate=-0.1", "in [0, 1)"]),
    ({"noise": NOISE | {"flip": {"kind": "flip", "rate": {"de": 1.5}}}}, ["noise: flip: rate['de']=1.5"]),
    ({"noise": NOISE | {"flip": {"kind": "flip", "rate": {}}}}, ["noise: flip: rate={}: a rate is"]),
    ({"noise": NOISE | {"flip": {"kind": "flop", "rate": 0.1}}}, ["noise: flip:", "'flop'", "flip_ambiguous"]),
    ({"noise": NOISE | {"flip": {"kind": "flip"}}}, ["noise: flip:", "needs a `rate`"]),
    ({"noise": NOISE | {"flip": {"kind": "flip", "rate": 0.1, "seed": 1}}}, ["more than kind, rate and score_column"]),
    ({"noise": NOISE | {False: {"kind": "flip", "rate": 0.1}}}, ["noise: the label False must be text"]),
    ({"grid": [GRID | {"methods": ["dpo", "ipo"], "noise": ["flap"]}]},
     ["grid: methods: 'ipo' is not defined", "grid: noise: 'flap' is not defined"]),
    ({"grid": [{"methods": ["dpo"]}]}, ["grid:", "needs methods, noise, seeds and epochs"]),
    ({"noise": NOISE | {"20": NOISE["flip"]}, "grid": [GRID | {"noise": [20]}]},
     ["grid: noise: 20 must be text. In YAML, put it in quotes"]),
    ({"methods": {"dpo": {}, "capo": {"max_length": 20}}}, ["capo: max_length cannot stand", "all runs are measured"]),
    ({"methods": {"dpo": {}, "capo": {"method": "cdpo", "loss_type": ["sigmoid", "sft"]}}},
     ["methods: capo: loss_type cannot stand there: it belongs to a method without a loss of its own"]),
    ({"training": TRAINING | {"loss_type": ["ipo"], "eval_delay": 9}},
     ["training: loss_type cannot stand there", "training: eval_delay cannot stand there"]),
    ({"training": TRAINING | {"gradient_accumulation_steps": 2}, "methods": {"dpo": {}, "capo": {"method": "dr_dpo"}}},
     ["methods: capo: gradient_accumulation_steps=2: dr_dpo's loss is one of a whole batch"]),
    ({"noise": NOISE | {"ノ" * 80: NOISE["flip"]}, "grid": [GRID | {"noise": ["ノ" * 80]}]},
     ["which no folder can be: shorten a label"]),
    ({"grid": []}, ["grid=[] must be a list of blocks"]),
    ({"grid": [GRID | {"methods": "dpo"}]}, ["grid: methods='dpo' must be a list"]),
    ({"grid": [GRID | {"seeds": 3}]}, ["grid: seeds=3 must be a list"]),
    ({"grid": [GRID | {"seeds": [-1, True]}]}, ["grid: seeds=[-1, True] must be whole numbers"]),
    ({"grid": [GRID | {"epochs": 0}]}, ["grid: epochs=0 must be a positive number"]),
    ({"learning_rates": []}, ["learning_rates=[] must be a list of positive numbers"]),
    ({"learning_rates": [1e-3, 0]}, ["learning_rates=[0.001, 0] must be a list of positive numbers"]),
    ({"learning_rates": [1e-3, 1e-2]}, ["learning_rates: there are several, and no `tuning`"]),
    ({"learning_rates": [1.001e-3, 1.002e-3], "tuning": TUNING}, ["two runs would be called"]),
    ({"tuning": TUNING | {"methods": ["dpo"]}}, ["tuning:", "needs noise, seeds and epochs, and nothing else"]),
    ({"tuning": TUNING | {"noise": ["flap"]}}, ["tuning: noise: 'flap' is not defined"]),
    ({"training": {}}, ["training: it needs per_device_train_batch_size"]),
    ({"training": TRAINING | {"max_steps": 3, "lr": 1}}, ["max_steps cannot stand there", "no option 'lr'"]),
    ({"lora": {key: value for key, value in LORA.items() if key != "layers_to_transform"}},
     ["remember_frozen_layers=True", "layers_to_transform"]),
    ({"lora": None}, ["remember_frozen_layers=True", "layers_to_transform"]),
    ({"test_split": "validation"}, ["must be three different splits"]),
    ({"train_pairs": 0, "curve_points": 0}, ["train_pairs=0", "curve_points=0"]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "said"), PLAN_ERRORS, ids=[said[0][:40] for _, said in PLAN_ERRORS])
def test_a_plan_that_cannot_be_run_is_one_error(changes, said, config):
    with pytest.raises(ValueError, match="the study cannot be run as it is") as error:
        config(**changes)
    for part in said:
        assert part in str(error.value)
