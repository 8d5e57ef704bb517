"""Noise on the command line: the options of `trl-capo train`, and `trl-capo noise`, whose data it trains on."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import CPU_ARGUMENTS, logged, make_pairs
from datasets import Dataset, DatasetDict, load_from_disk

from trl_capo import CAPOTrainer, cli, noise_command, saving, train
from trl_capo.arguments import parse_alone
from trl_capo.noise import inject_noise

TRAINING = CPU_ARGUMENTS | {"learning_rate": 2e-3, "noise_rate": 0.25, "max_steps": 2}
RATES = {"sw": 0.8, "*": 0.1}


@pytest.fixture
def file(tmp_path) -> str:
    make_pairs().to_json(tmp_path / "pairs.jsonl", force_ascii=False)
    return str(tmp_path / "pairs.jsonl")


@pytest.fixture
def run_yaml(tmp_path, model_dir, file):
    """Writes the YAML file of a quick training, with changes, and returns the arguments that name it."""

    def write(**changes) -> list[str]:
        config = {"model_name_or_path": model_dir, "dataset_name": file, "output_dir": str(tmp_path / "output")}
        (tmp_path / "run.yaml").write_text(yaml.dump(config | TRAINING | changes))
        return ["--config", str(tmp_path / "run.yaml")]

    return write


@pytest.fixture
def trained(model_dir, make_args):
    """The losses of a training in Python."""

    def losses(dataset) -> list[float]:
        trainer = CAPOTrainer(model_dir, args=make_args(**TRAINING), train_dataset=dataset)
        trainer.train()
        return logged(trainer, "loss")

    return losses


def losses_of(folder: Path) -> list[float]:
    (state,) = folder.glob("checkpoint-*/trainer_state.json")
    return [entry["loss"] for entry in json.loads(state.read_text())["log_history"] if "loss" in entry]


def output_of(capfd, call, *arguments) -> tuple[int, str, str]:
    capfd.readouterr()
    try:
        code = call([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse
        code = stop.code
    return (code, *capfd.readouterr())


SAVING = ["--save_strategy", "steps", "--save_steps", "2"]


def test_training_with_noise_is_that_of_python_and_says_what_was_changed(run_yaml, trained, tmp_path, caplog):
    noise = ["--inject_noise", "flip", "--inject_rate", "0.4", "--inject_seed", "3"]
    with caplog.at_level(logging.WARNING):
        assert train.main([*run_yaml(), *noise, *SAVING]) == 0
    noisy = inject_noise(make_pairs(), "flip", 0.4, seed=3)
    assert losses_of(tmp_path / "output") == trained(noisy) != trained(make_pairs())
    (message,) = [message for message in caplog.messages if "training pairs were changed" in message]
    counts = dict.fromkeys(("de", "sw", "日本"), 0)
    for row in noisy:
        counts[row["language"]] += row["is_noisy"]
    assert f"{sum(counts.values())} of 24 training pairs" in message
    assert all(f"{language} {count} of 8" in message for language, count in counts.items())
    assert all(text in message for text in ("'flip'", "0.4", "3"))


@pytest.mark.parametrize("way", ["yaml", "json"])
def test_a_rate_per_language_comes_from_yaml_or_as_json(run_yaml, trained, tmp_path, way):
    given = {"inject_noise": "wrong_language"} | ({"inject_rate": RATES} if way == "yaml" else {})
    arguments = [] if way == "yaml" else ["--inject_rate", json.dumps(RATES)]
    assert train.main([*run_yaml(**given), *arguments, *SAVING]) == 0
    noisy = inject_noise(make_pairs(), "wrong_language", RATES)
    assert losses_of(tmp_path / "output") == trained(noisy) != trained(make_pairs())


def test_noise_is_for_the_training_split_alone(run_yaml, tmp_path):
    """The same pairs serve as training and as test split; the tokens of the one are swapped, of the other not."""
    DatasetDict(train=make_pairs(), test=make_pairs()).save_to_disk(tmp_path / "splits")
    arguments = run_yaml(dataset_name=str(tmp_path / "splits"), eval_strategy="steps", inject_rate=0.5)
    trainer = train.build_trainer(*parse_alone([*arguments, "--inject_noise", "flip"], train.make_parser()))
    expected = inject_noise(make_pairs(), "flip", 0.5)["is_noisy"]
    assert 0 < sum(expected) < 24
    for noisy, ours, clean in zip(expected, trainer.train_dataset, trainer.eval_dataset, strict=True):
        one, other = ("rejected_ids", "chosen_ids") if noisy else ("chosen_ids", "rejected_ids")
        assert (ours["chosen_ids"], ours["rejected_ids"]) == (clean[one], clean[other])


BAD_TRAINING = [
    ({"inject_noise": "flip", "inject_rate": 1.5}, ["inject_rate=1.5", "[0, 1)"]),
    ({"inject_noise": "flip"}, ["inject_rate=None"]),
    ({"inject_noise": "flip", "inject_rate": "lots"}, ["inject_rate='lots'", "JSON"]),
    ({"inject_noise": "flip", "inject_rate": {"fr": 0.2}}, ["'fr'", "'de', 'sw', '日本'"]),
    ({"inject_noise": "flip", "inject_rate": {"de": 0.2}, "group_column": "none"}, ["no group column"]),
    ({"inject_noise": "typos", "inject_rate": 0.2}, ["inject_noise='typos'", "'near_tie'"]),
    ({"inject_noise": "flip_ambiguous", "inject_rate": 0.2}, ["score_column=None"]),
    ({"inject_noise": "flip", "inject_rate": 0.2, "dataset_streaming": True}, ["without streaming"]),
    ({"inject_rate": 0.2}, ["inject_rate=0.2", "without inject_noise"]),
    ({"inject_score_column": "x", "inject_seed": 2}, ["inject_score_column='x'", "inject_seed=2"]),
]


@pytest.mark.parametrize(("options", "named"), BAD_TRAINING, ids=[str(options) for options, _ in BAD_TRAINING])
def test_bad_noise_ends_a_training_before_a_model_is_loaded(run_yaml, capfd, tmp_path, options, named):
    code, _, errors = output_of(capfd, train.main, *run_yaml(**options))
    assert code == 2
    assert all(text in errors for text in ["trl-capo train: error: ", *named]), errors
    assert "Traceback" not in errors
    assert "Loading weights" not in errors
    assert not (tmp_path / "output").exists()


def test_data_that_the_installed_command_wrote_train_as_data_with_noise(file, run_yaml, trained, tmp_path):
    command = [Path(sys.executable).with_name("trl-capo"), "noise", "--dataset_name", file, "--kind", "near_tie"]
    command += ["--output_dir", tmp_path / "deep" / "noisy", "--rate", json.dumps(RATES), "--seed", "4"]
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    noisy = inject_noise(make_pairs(), "near_tie", RATES, seed=4)
    written = load_from_disk(tmp_path / "deep" / "noisy")
    assert written.keys() == {"train"}
    assert written["train"].to_list() == noisy.to_list()
    assert os.listdir(tmp_path / "deep") == ["noisy"]
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.strip()}
    for language in ("de", "sw", "日本"):
        count = sum(row["is_noisy"] for row in noisy if row["language"] == language)
        assert lines[language] == [language, "8", str(count), f"{100 * count / 8:.1f}"]
    total = sum(noisy["is_noisy"])
    assert lines["all"] == ["all", "pairs", "24", str(total), f"{100 * total / 24:.1f}"]
    record = json.loads((tmp_path / "deep" / "noisy" / "noise.json").read_text(encoding="utf-8"))
    assert record["rate"] == RATES
    assert (record["kind"], record["seed"], record["dataset_name"]) == ("near_tie", 4, file)
    assert (record["pairs"], record["noisy"], record["groups"]["sw"]["pairs"]) == (24, total, 8)

    assert train.main([*run_yaml(dataset_name=str(tmp_path / "deep" / "noisy")), *SAVING]) == 0
    assert losses_of(tmp_path / "output") == trained(noisy) != trained(make_pairs())


def test_other_splits_are_copied_and_an_empty_folder_is_used(capfd, tmp_path):
    """The noise goes into the split that is named; a column of scores and the groups of another column are read."""
    rows = [row | {"margin": index % 5, "tongue": row["language"]} for index, row in enumerate(make_pairs())]
    splits = DatasetDict(train=make_pairs(9), extra=Dataset.from_list(rows).remove_columns("language"))
    splits.save_to_disk(tmp_path / "splits")
    (tmp_path / "out").mkdir()
    config = {"kind": "flip_ambiguous", "rate": RATES, "score_column": "margin", "group_column": "tongue"}
    (tmp_path / "noise.yaml").write_text(yaml.dump(config | {"dataset_split": "extra", "seed": 9}))
    arguments = ["--config", tmp_path / "noise.yaml", "--dataset_name", tmp_path / "splits", "--seed", "1"]
    code, output, _ = output_of(capfd, cli.main, "noise", *arguments, "--output_dir", tmp_path / "out")
    assert code == 0
    assert output.startswith("tongue ")
    written = load_from_disk(tmp_path / "out")
    assert written["train"].to_list() == splits["train"].to_list()
    expected = inject_noise(splits["extra"], **config, seed=1)
    assert written["extra"].to_list() == expected.to_list()
    assert 0 < sum(expected["is_noisy"]) < 24


def test_without_groups_there_is_one_line(capfd, tmp_path, file):
    options = ["--dataset_name", file, "--output_dir", tmp_path / "out", "--kind", "flip", "--group_column", "none"]
    code, output, _ = output_of(capfd, cli.main, "noise", *options, "--rate", "0")
    assert code == 0
    assert [line.split() for line in output.splitlines()[:2]] == [
        ["group", "pairs", "noisy", "%"],
        ["all", "pairs", "24", "0", "0.0"],
    ]


BAD_COMMANDS = [
    ({"rate": "2"}, ["rate=2", "[0, 1)"]),
    ({"rate": "NaN"}, ["rate=nan"]),
    ({"rate": "0.2.1"}, ["rate='0.2.1'", "JSON"]),
    ({"rate": '{"de": 0.2, "sw": 0.1, "de": 0.4}'}, ["rate=", "'de' comes twice"]),
    ({"rate": "{}"}, ["rate={}: a rate is"]),
    ({"rate": '{"fr": 0.1}'}, ["'fr'", "'de', 'sw', '日本'"]),
    ({"rate": None}, ["rate missing"]),
    ({"kind": None, "output_dir": None}, ["output_dir, kind missing"]),
    ({"kind": "typos"}, ["kind='typos'"]),
    ({"seed": "-1"}, ["seed=-1"]),
    ({"seed": "x"}, ["--seed", "x"]),
    ({"dataset_split": "test"}, ["dataset_split='test'", "'train'"]),
    ({"dataset_name": "./missing.jsonl"}, ["dataset_name='./missing.jsonl'"]),
    ({"group_column": "tongue"}, ["group_column='tongue'"]),
    ({"num_processes": "2"}, ["--num_processes", "trl-capo noise"]),
]


@pytest.mark.parametrize(("options", "named"), BAD_COMMANDS, ids=[str(options) for options, _ in BAD_COMMANDS])
def test_bad_input_writes_nothing(file, capfd, tmp_path, options, named):
    given = {"dataset_name": file, "output_dir": str(tmp_path / "out"), "kind": "flip", "rate": "0.2"} | options
    arguments = [word for name, value in given.items() if value is not None for word in (f"--{name}", value)]
    code, output, errors = output_of(capfd, cli.main, "noise", *arguments)
    assert code == 2
    assert all(text in errors for text in ["trl-capo noise: error: ", *named]), errors
    assert "Traceback" not in errors
    assert output == ""
    assert os.listdir(tmp_path) == ["pairs.jsonl"]


@pytest.mark.parametrize("there", ["folder", "file"])
def test_what_is_there_is_never_overwritten(file, capfd, tmp_path, there):
    taken = tmp_path / "out"
    if there == "folder":
        taken.mkdir()
        (taken / "precious").write_text("mine")
    else:
        taken.write_text("mine")
    arguments = ["--dataset_name", file, "--output_dir", taken, "--kind", "flip", "--rate", "0.2"]
    code, _, errors = output_of(capfd, cli.main, "noise", *arguments)
    assert code == 2
    assert f"output_dir={str(taken)!r}" in errors
    assert (taken / "precious" if there == "folder" else taken).read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["out", "pairs.jsonl"]


def test_an_interrupted_command_leaves_nothing_behind(file, tmp_path, monkeypatch):
    """Stopped after the data were written and before the folder got its name."""

    def stop(*_):
        assert any(name.endswith(".part") for name in os.listdir(tmp_path))
        raise KeyboardInterrupt

    monkeypatch.setattr(saving.os, "replace", stop)
    arguments = ["--dataset_name", file, "--output_dir", str(tmp_path / "out"), "--kind", "flip", "--rate", "0.2"]
    with pytest.raises(KeyboardInterrupt):
        noise_command.main(arguments)
    assert os.listdir(tmp_path) == ["pairs.jsonl"]
