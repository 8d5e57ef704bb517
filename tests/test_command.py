"""`trl-capo train`: arguments, YAML files, data files, their errors, and the same training as in Python.

One test each goes through the installed command, `scripts/train_capo.py` and `trl_capo.cli.main`; the rest calls
`trl_capo.train.main`, the process that they start.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import CPU_ARGUMENTS, logged, make_pairs
from datasets import DatasetDict
from peft import LoraConfig
from safetensors.torch import load_file

from trl_capo import CAPOTrainer, cli
from trl_capo.train import main

PROJECT = Path(__file__).parents[1]
OPTIONS = CPU_ARGUMENTS | {"learning_rate": 2e-3, "noise_rate": 0.25, "beta": 0.3}
GOOD = {"prompt": "a", "chosen": "b", "rejected": "c"}
CHAT = {"prompt": [{"role": "user", "content": "a"}]}
CHAT |= {key: [{"role": "assistant", "content": GOOD[key]}] for key in ("chosen", "rejected")}


@pytest.fixture
def write_config(tmp_path, model_dir, pairs):
    """Writes a YAML file for a quick run and returns its path; keywords win, and None leaves a key out."""
    pairs.to_json(tmp_path / "train.jsonl", force_ascii=False)

    def write(**changes) -> str:
        config = {"model_name_or_path": model_dir, "dataset_name": str(tmp_path / "train.jsonl")}
        config |= OPTIONS | {"output_dir": str(tmp_path / "output")} | changes
        (tmp_path / "run.yaml").write_text(yaml.dump({k: v for k, v in config.items() if v is not None}))
        return str(tmp_path / "run.yaml")

    return write


@pytest.fixture
def in_python(make_args, model_dir, pairs):
    """The training of the Python interface with the arguments of the YAML file; keywords win."""

    def train(peft_config=None, **changes) -> CAPOTrainer:
        args = make_args(**OPTIONS | changes)
        trainer = CAPOTrainer(model_dir, args=args, train_dataset=pairs, peft_config=peft_config)
        trainer.train()
        return trainer

    return train


def losses(folder) -> list[float]:
    """The losses of a run that saved a checkpoint at its last step."""
    (state,) = Path(folder).glob("checkpoint-*/trainer_state.json")
    return [entry["loss"] for entry in json.loads(state.read_text())["log_history"] if "loss" in entry]


def assert_saved(folder, trainer, file="model.safetensors"):
    saved, state = load_file(Path(folder) / file), trainer.model.state_dict()
    assert saved
    for name, tensor in saved.items():
        assert torch.equal(tensor, state[name.replace(".weight", ".default.weight") if "lora" in name else name])


def error_of(capfd, tmp_path, call, *arguments) -> str:
    """The one error of a call that must end with exit code 2 before a model is loaded or a folder made."""
    capfd.readouterr()
    try:
        code = call([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse
        code = stop.code
    output = "".join(capfd.readouterr())
    assert code == 2, output
    assert "Traceback" not in output
    assert "Loading weights" not in output
    assert not (tmp_path / "output").exists()
    assert output.count("trl-capo train: error: ") == 1
    return output[output.index("trl-capo train: error: ") :]


def run(*command) -> None:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


def test_installed_command_trains_as_python_does_and_options_win_over_the_file(write_config, in_python, tmp_path):
    """noise_rate comes from the file, max_steps from both, others from the command line, one with dashes."""
    config = write_config(max_steps=1, beta=0.9, save_strategy="steps", save_steps=3)
    command = [Path(sys.executable).with_name("trl-capo"), "train", "--config", config, "--num_processes", "1"]
    run(*command, "--max_steps", "3", "--beta=0.5", "--confidence-temperature", "0.7")
    trainer = in_python(beta=0.5, confidence_temperature=0.7)
    assert losses(tmp_path / "output") == logged(trainer, "loss")
    assert_saved(tmp_path / "output", trainer)


def test_accelerate_launch_of_the_script_trains_as_python_does(write_config, in_python, tmp_path):
    config, script = write_config(save_strategy="steps", save_steps=3), PROJECT / "scripts" / "train_capo.py"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    run(*launch, script, "--config", config)
    trainer = in_python()
    assert losses(tmp_path / "output") == logged(trainer, "loss")
    assert_saved(tmp_path / "output", trainer)


def test_yaml_of_trl_dpo_runs_unchanged_with_the_rate_estimated(write_config, in_python, tmp_path):
    """Its keys are those of TRL alone, with a section of environment variables and options of accelerate."""
    config = write_config(noise_rate=None, num_processes=1, env={"CAPO_TEST_VARIABLE": "set"}, save_steps=3)
    try:
        assert main(["--config", config, "--save_strategy", "steps"]) == 0
        assert os.environ["CAPO_TEST_VARIABLE"] == "set"
    finally:
        os.environ.pop("CAPO_TEST_VARIABLE", None)
    trainer = in_python(noise_rate="auto")
    assert losses(tmp_path / "output") == logged(trainer, "loss")
    assert_saved(tmp_path / "output", trainer)


def test_lora_through_options(write_config, in_python, tmp_path):
    arguments = ["--use_peft", "--lora_r", "3", "--lora_alpha", "6", "--lora_target_modules", "q_proj", "v_proj"]
    assert main(["--config", write_config(save_strategy="steps", save_steps=3), *arguments]) == 0
    lora = {"r": 3, "lora_alpha": 6, "lora_dropout": 0.05, "target_modules": ["q_proj", "v_proj"]}
    trainer = in_python(peft_config=LoraConfig(**lora, task_type="CAUSAL_LM"))
    assert losses(tmp_path / "output") == logged(trainer, "loss")
    assert_saved(tmp_path / "output", trainer, "adapter_model.safetensors")
    assert all(text in (tmp_path / "output" / "README.md").read_text() for text in ("CAPO", "2511.07691"))


@pytest.mark.parametrize("form", ["json", "jsonl", "parquet", "csv", "folder", "save_to_disk"])
def test_every_form_of_the_data_gives_the_same_losses(write_config, in_python, tmp_path, pairs, form):
    data = tmp_path / (f"data.{form}" if form in ("json", "jsonl", "parquet", "csv") else form)
    if form == "folder":
        data.mkdir()
        pairs.to_json(data / "train.jsonl", force_ascii=False)
        make_pairs(4).to_json(data / "test.jsonl", force_ascii=False)
    elif form == "save_to_disk":
        DatasetDict(train=pairs, test=make_pairs(4)).save_to_disk(data)
    elif form == "json":
        data.write_text(json.dumps(pairs.to_list(), ensure_ascii=False), encoding="utf-8")
    else:
        {"jsonl": pairs.to_json, "parquet": pairs.to_parquet, "csv": pairs.to_csv}[form](data)
    evaluation = {"eval_strategy": "steps", "eval_steps": 3} if form in ("folder", "save_to_disk") else {}
    config = write_config(dataset_name=str(data), save_strategy="steps", save_steps=3, **evaluation)
    assert main(["--config", config]) == 0
    assert losses(tmp_path / "output") == logged(in_python(), "loss")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--nosuch_option", "3"], ["nosuch_option"]),
        (["--max_steps", "many"], ["max_steps", "many"]),
        (["--noise_rate", "0.7", "--beta", "-1"], ["noise_rate", "0.7", "beta", "-1"]),
        (["--noise_rate", "some"], ["noise_rate", "some"]),
        (["--loss_type", "hinge"], ["loss_type", "hinge", "noise_rate"]),
        (["--dataset_name", "missing/data.jsonl"], ["dataset_name", "missing/data.jsonl"]),
        (["--dataset_train_split", "nosuch"], ["dataset_train_split", "nosuch", "train"]),
        (["--eval_strategy", "steps"], ["dataset_test_split", "test"]),
        (["--model_name_or_path", str(PROJECT / "tests")], ["model_name_or_path", str(PROJECT / "tests")]),
        (["--model_name_or_path", "./missing"], ["model_name_or_path", "missing"]),
    ],
)
def test_wrong_arguments_are_named(write_config, capfd, tmp_path, arguments, named):
    error = error_of(capfd, tmp_path, main, "--config", write_config(), *arguments)
    assert all(text in error for text in named)


def test_unknown_yaml_key_is_named(write_config, capfd, tmp_path):
    config = write_config(nosuch_key=3)
    assert "nosuch_key" in error_of(capfd, tmp_path, cli.main, "train", "--config", config)
    assert "nosuch_key" in error_of(capfd, tmp_path, main, "--config", config)


@pytest.mark.parametrize("text", [None, "- a\n- b\n", "just text", "a: [1\nb: 2"], ids=repr)
def test_unusable_yaml_file_is_named(capfd, tmp_path, text):
    file = tmp_path / "unusable.yaml"
    if text is not None:
        file.write_text(text)
    for call, arguments in ((main, []), (cli.main, ["train"])):
        assert "unusable.yaml" in error_of(capfd, tmp_path, call, *arguments, "--config", file)


def test_installed_command_ends_with_code_2_and_says_what_is_wrong_alone(write_config, monkeypatch):
    """Transformers has renamed an option that TRL sets, of which it would warn in both processes."""
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)
    config = write_config(gradient_checkpointing=False, nosuch=1)
    command = [Path(sys.executable).with_name("trl-capo"), "train", "--config", config]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2, done.stderr
    assert "nosuch" in done.stderr
    assert all(word not in done.stdout + done.stderr for word in ("Traceback", "FutureWarning"))


BAD_ROWS = {
    "missing column": ([{"prompt": "a", "chosen": "b"}] * 2, ["rejected", "column"]),
    "number": ([GOOD, GOOD, {**GOOD, "chosen": 3}], ["chosen", "int", "row 2"]),
    "only numbers": ([{**GOOD, "rejected": 3.5}] * 2, ["rejected", "float", "row 0, 1"]),
    "null": ([GOOD, {**GOOD, "prompt": None}], ["prompt", "null", "row 1"]),
    "lists": ([{**GOOD, "chosen": ["x"], "rejected": ["y"]}] * 2, ["chosen", "rejected", "list", "row 0, 1"]),
    "columns of two formats": ([{**CHAT, "prompt": "a"}], ["prompt", "chosen", "format", "row 0"]),
    "rows of two formats": ([GOOD, CHAT], ["format", "row"]),
    "broken line": ("{broken\n", ["bad.jsonl, line 2"]),
    "empty file": ([], ["bad.jsonl"]),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_are_one_error_before_a_model_is_loaded(write_config, capfd, tmp_path, name):
    rows, named = BAD_ROWS[name]
    lines = json.dumps(GOOD) + "\n" + rows if isinstance(rows, str) else "".join(json.dumps(r) + "\n" for r in rows)
    (tmp_path / "bad.jsonl").write_text(lines)
    config = write_config(dataset_name=str(tmp_path / "bad.jsonl"))
    error = error_of(capfd, tmp_path, main, "--config", config)
    assert all(text in error for text in named), error


@pytest.mark.parametrize("content", ["cut", "empty"])
def test_unusable_parquet_file_is_named(write_config, capfd, tmp_path, pairs, content):
    file = tmp_path / "bad.parquet"
    (pairs if content == "cut" else pairs.select([])).to_parquet(file)
    if content == "cut":
        file.write_bytes(file.read_bytes()[:500])
    assert "bad.parquet" in error_of(capfd, tmp_path, main, "--config", write_config(dataset_name=str(file)))


def test_empty_and_equal_completions_are_counted_once_and_trained_on(write_config, caplog, tmp_path, pairs):
    """One row without a chosen completion, one without a rejected one, three with equal ones."""
    rows = pairs.to_list()
    rows[3]["chosen"] = rows[9]["rejected"] = ""
    for index in (1, 5, 20):
        rows[index]["chosen"] = rows[index]["rejected"]
    (tmp_path / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = write_config(dataset_name=str(tmp_path / "odd.jsonl"), max_steps=6, save_strategy="steps", save_steps=6)
    assert main(["--config", config]) == 0
    for text, rows in (("chosen is empty", "row 3"), ("rejected is empty", "row 9"), ("equal", "row 1, 5, 20")):
        (message,) = [message for message in caplog.messages if text in message and "of 24 rows" in message]
        assert f"{rows.count(',') + 1} of 24 rows ({rows})" in message
    assert all(torch.isfinite(torch.tensor(losses(tmp_path / "output"))))
