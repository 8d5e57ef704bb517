"""What `trl-capo study` refuses before any run, by its data, its folder and its files: one clear error each."""

import json
import subprocess
import sys

import pytest
import yaml
from datasets import load_dataset
from study_data import LORA, NOISE, TRAINING, plan, save_splits

from trl_capo.study import command as study_command
from trl_capo.study.config import Run, StudyConfig


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return save_splits(tmp_path_factory.mktemp("splits"))


@pytest.fixture
def refused(tmp_path, model_dir, data, capfd, monkeypatch):
    """Runs the command with a plan, which must end with code 2 and one message before any run; returns the message."""
    monkeypatch.setattr("trl_capo.study.schedule._launch", lambda *_: pytest.fail("a run was started"))

    def call(*arguments, text=None, **changes) -> str:
        path = tmp_path / "plan.yaml"
        path.write_text(
            text or yaml.safe_dump(plan(model_dir, data, tmp_path / "study", **changes), allow_unicode=True)
        )
        capfd.readouterr()
        assert study_command.main(["--config", str(path), *arguments]) == 2
        said = capfd.readouterr().err
        assert "Traceback" not in said
        assert said.count("trl-capo study: error: ") == 1
        return said[said.index("trl-capo study: error: ") :]

    return call


DATA_ERRORS = [
    ({"noise": NOISE | {"flip": {"kind": "flip", "rate": {"xx": 0.1}}}},
     ["noise: flip:", "there is no group 'xx', only 'de', 'sw', '日本'"]),
    ({"group_column": None}, ["noise: flip:", "have no group column"]),
    ({"group_column": "none"}, ["noise: flip:", "have no group column"]),
    ({"group_column": "tongue"}, ["group_column='tongue'", "only"]),
    ({"noise": NOISE | {"flip": {"kind": "flip_ambiguous", "rate": 0.1}}}, ["noise: flip: score_column=None"]),
    ({"validation_split": "dev"}, ["validation_split='dev'", "no such split"]),
    ({"dataset_name": "./nothing"}, ["dataset_name='./nothing': there is no such file or folder"]),
    ({"model_name_or_path": "./nothing"}, ["model_name_or_path='./nothing': there is no such folder"]),
    ({"methods": {"dpo": {}, "capo": {"noise_rate": 0.7}}}, ["methods: capo: CAPOConfig", "noise_rate=0.7"]),
    ({"methods": {"dpo": {}, "capo": {"method": "cdpo", "smoothing": 0.7}}}, ["methods: capo: label_smoothing=0.7"]),
    ({"methods": {"dpo": {}, "capo": {"method": "dr_dpo", "b": "true_rate"}}}, ["methods: capo: b=0.0 must be"]),
    ({"methods": {"dpo": {}, "capo": {"method": "rdpo", "label_smoothing": "true_rate"}},
      "noise": NOISE | {"flip": {"kind": "flip", "rate": 0.9}}}, ["methods: capo: CAPOConfig", "divides by 1 - 2"]),
    ({"lora": LORA | {"rank": 4}}, ["lora:", "rank"]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "said"), DATA_ERRORS, ids=[said[0][:40] for _, said in DATA_ERRORS])
def test_what_data_or_options_do_not_allow_is_refused_before_any_run(changes, said, refused):
    message = refused(**changes)
    for part in said:
        assert part in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("methods: [", "is not valid YAML"),
        ("- a list", "it must be a mapping of options"),
        ("", "it must be a mapping of options"),
        ("modell: x\nnoise: {}", "unknown: modell; missing: model_name_or_path, dataset_name"),
    ],
)
def test_a_file_that_is_no_plan_is_refused(text, said, refused):
    assert said in refused(text=text or "# nothing")


def test_a_missing_file_and_no_jobs_are_refused(tmp_path, refused, capfd):
    assert "--jobs=0: at least one" in refused("--jobs", "0")
    assert study_command.main(["--config", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml': there is no such file." in capfd.readouterr().err


def test_a_group_called_all_and_weights_are_refused(tmp_path, refused, data):
    for split, part in load_dataset(data).items():
        part.map(lambda row: {"language": "all", "weight": 1.0}).to_json(tmp_path / f"{split}.jsonl")
    said = refused(dataset_name=str(tmp_path), noise=NOISE | {"flip": NOISE["clean"]})
    assert all(text in said for text in ("there is a group 'all'", "the data have a column 'weight'"))


@pytest.mark.parametrize(
    ("made_with", "said"),
    [
        ({"curve_points": 3}, "holds runs of another study, with curve_points=3"),
        ({"training": TRAINING | {"beta": 0.7}}, "holds runs of another study, with training="),
        ({"methods": {"dpo": {}, "capo": {"beta": 0.2}}}, "was made with another definition of its method or noise"),
        ({"noise": NOISE | {"flip": NOISE["clean"]}}, "was made with another definition of its method or noise"),
    ],
)
def test_a_folder_of_another_study_is_refused(made_with, said, refused, tmp_path, model_dir, data):
    run = Run("capo", "flip", 1, 1, 1e-2)
    settings = StudyConfig(**plan(model_dir, data, tmp_path / "study", **made_with)).settings(run)
    folder = tmp_path / "study" / "runs" / run.name
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "result.json").write_text(json.dumps({"settings": settings}))
    assert said in refused()


def test_what_is_damaged_is_named(refused, tmp_path):
    """No killed study leaves such a file, since they are written whole; a disk can nevertheless."""
    folder = tmp_path / "study" / "runs" / "dpo-clean-seed0-1ep-lr1.00e-02"
    folder.mkdir(parents=True)
    for text in ("", "[]"):
        (folder / "result.json").write_text(text)
        assert f"{folder / 'result.json'} is damaged" in refused()


def test_the_command_line_says_what_is_wrong_without_a_traceback():
    command = [sys.executable, "-m", "trl_capo.cli", "study", "--config", "no.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "trl-capo study: error: config='no.yaml': there is no such file."
    assert "Traceback" not in done.stderr
