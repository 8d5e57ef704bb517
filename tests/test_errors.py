"""Mistakes of normal work end with exit code 2 and one message that names them; what is given never runs as code."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from conftest import CPU_ARGUMENTS, forked, make_pairs, run_main

from trl_capo.audit import command as audit
from trl_capo.data import clean, noise
from trl_capo.evaluate import command as evaluate
from trl_capo.study import command as study
from trl_capo.train import command as train
from trl_capo.train import dry_run

COMMANDS = {"train": train, "evaluate": evaluate, "noise": noise, "clean": clean, "audit": audit, "study": study}
COMMANDS |= {"train --dry_run": dry_run}
PLAN = {"methods": {"dpo": {}}, "noise": {"n": {"kind": "flip", "rate": 0.1}}, "learning_rates": [1e-4]}
PLAN |= {"grid": [{"methods": ["dpo"], "noise": ["n"], "seeds": [0], "epochs": 1}]}

SIDES, CALLS = ("prompt", "chosen", "rejected"), [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]


def turn(role: str, content=None, calls=None) -> dict:
    return {"role": role, "content": content, "tool_calls": calls}


# What is wrong with the data set: a change of every row.
DATA = {
    "good": lambda row: {},
    "trained": lambda row: {"chosen": row["chosen"] + "!"},
    "no_rejected": lambda row: {"rejected": None, "refused": "no"},
    "weight_text": lambda row: {"weight": "much"},
    "parts": lambda row: {side: [turn("user", [{"type": "text", "text": row[side]}])] for side in SIDES},
    "text_turns": lambda row: {side: str([turn("user", row[side])]) for side in SIDES},
    "one_turn": lambda row: {"prompt": [turn("user", "q")]} | {side: turn("user", "a") for side in SIDES[1:]},
    "calls": lambda row: {side: [turn("user", "q")] for side in SIDES} | {"chosen": [turn("assistant", calls=CALLS)]},
}
SIZE = {"per_device_train_batch_size": 25}
# The command, the options that differ from those that work, and what the message must name.
MISTAKES = {
    "train_missing_file": ("train", {"dataset_name": "nothing.jsonl"}, "nothing.jsonl"),
    "train_no_data": ("train", {"dataset_name": None}, "dataset_name"),
    "train_missing_column": ("train", {"dataset_name": "no_rejected.jsonl"}, "no column rejected"),
    "train_missing_model": ("train", {"model_name_or_path": "./no"}, "model_name_or_path='./no': there is no such"),
    "train_missing_groups": ("train", {"group_column": "tongue"}, "group_column='tongue'"),
    "train_unknown_option": ("train", {"learning_rat": 1}, "learning_rate"),
    "train_no_number": ("train", {"max_steps": "many"}, "max_steps"),
    "train_no_sigmoid": ("train", {"loss_type": "ipo"}, "loss_type"),
    "train_missing_split": ("train", {"eval_strategy": "steps"}, "dataset_test_split"),
    "train_log_of_a_stream": ("train", {"pair_log": True, "dataset_streaming": True}, "stream"),
    "train_dry_run_in_file": ("train", {"dry_run": True}, "command line"),
    "train_weight_text": ("train", {"dataset_name": "weight_text.jsonl"}, "'weight'"),
    "train_adapter": ("train", {"model_name_or_path": "adapter"}, "it is an adapter; merge it"),
    "train_parts": ("train", {"dataset_name": "parts.jsonl"}, "row 0 of train_dataset: its chat template writes"),
    "train_calls": ("train", {"dataset_name": "calls.jsonl"}, "row 0 of train_dataset: its chat template leaves out"),
    "train_text_turns": ("train", {"dataset_name": "text_turns.jsonl"}, "is a list of messages written as text"),
    "train_one_turn": ("train", {"dataset_name": "one_turn.jsonl"}, "or lists of messages"),
    "train_missing_checkpoint": ("train", {"resume_from_checkpoint": "nothing"}, "resume_from_checkpoint='nothing'"),
    "train_noise_without_kind": ("train", {"inject_rate": "0.2"}, "inject_rate"),
    "train_log_of_other_data": ("train", {"pair_log": "trained/pair_log"}, "pair_log"),
    "dry_run_missing_model": ("train --dry_run", {"model_name_or_path": "./no"}, "model_name_or_path='./no'"),
    "dry_run_unknown_option": ("train --dry_run", {"beat": 0.3}, "--beat. Did you mean --beta?"),
    "dry_run_endless": ("train --dry_run", {"dataset_streaming": True, "max_steps": -1}, "max_steps: a stream has no"),
    "dry_run_no_batch": ("train --dry_run", {"max_steps": -1, "dataloader_drop_last": True} | SIZE, "few for a batch"),
    "evaluate_missing_model": ("evaluate", {"model_name_or_path": "/no/such"}, "model_name_or_path='/no/such'"),
    "evaluate_missing_column": ("evaluate", {"also_by": ["topic"]}, "also_by='topic'"),
    "evaluate_no_beta": ("evaluate", {"beta": 0}, "beta"),
    "evaluate_one_or_several": ("evaluate", {"compare": ["x"]}, "model_name_or_path or, for several models, compare"),
    "evaluate_no_room": ("evaluate", {"max_length": 5}, "max_length=5"),
    "evaluate_parts": ("evaluate", {"dataset_name": "parts.jsonl"}, "row 0 of the data: its chat template writes"),
    "evaluate_into_a_file": ("evaluate", {"output_dir": "good.jsonl/out"}, "good.jsonl/out"),
    "noise_folder_exists": ("noise", {"output_dir": "trained"}, "output_dir"),
    "clean_rule_without_scores": ("clean", {"drop_top": "10%"}, "suspects with a rule"),
    "clean_other_data": ("clean", {"decisions": "other.jsonl"}, "fingerprint"),
    "audit_no_log": ("audit", {"run": "data"}, "log.json"),
    "audit_no_probe": ("audit", {"dataset_name": "good.jsonl"}, "no column probe_chosen. Run `trl-capo annotate`"),
    "audit_log_of_other_data": ("audit", {"run": "trained", "dataset_name": "good.jsonl"}, "good.jsonl"),
    "study_unknown_method": ("study", {"methods": {"dpo": {"method": "cpo"}}}, "no such method"),
    "study_missing_noise": ("study", {"noise": {}}, "'n'"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, model_dir, lora_dir) -> Path:
    """Folder with data sets that have one fault each, and a run with its pair log."""
    folder = tmp_path_factory.mktemp("place")
    for name, change in DATA.items():
        rows = [{**row, **change(row)} for row in make_pairs()]
        lines = [json.dumps({key: value for key, value in row.items() if value is not None}) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    shutil.copytree(lora_dir, folder / "adapter")
    (folder / "other.jsonl").write_text('{"pair": 0, "decision": "flip", "fingerprint": "0"}\n')
    training = CPU_ARGUMENTS | {"model_name_or_path": model_dir, "dataset_name": str(folder / "trained.jsonl")}
    training |= {"output_dir": str(folder / "trained"), "pair_log": "true", "max_steps": 12}
    code, _, errors = forked(train.main, write_yaml(folder, training))
    assert code == 0, errors
    return folder


def write_yaml(folder: Path, options: dict) -> list[str]:
    path = folder / "options.yaml"
    path.write_text(yaml.dump({key: value for key, value in options.items() if value is not None}))
    return ["--config", str(path)]


def options_of(command: str, model_dir: str) -> dict:
    """Options with which the command works."""
    model, data = {"model_name_or_path": model_dir}, {"dataset_name": "good.jsonl"}
    training = CPU_ARGUMENTS | model | data | {"output_dir": "out"}
    return {
        "train": training,
        "train --dry_run": training | {"dry_run": True},
        "evaluate": model | data,
        "noise": data | {"output_dir": "noisy", "kind": "flip", "rate": 0.2},
        "clean": data | {"output_dir": "cleaned"},
        "audit": {},
        "study": PLAN | model | {"dataset_name": "data", "output_dir": "study"},
    }[command]


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_with_one_message_naming_it_and_writes_nothing(place, tmp_path, monkeypatch, model_dir, name):
    monkeypatch.chdir(place)
    command, changes, named = MISTAKES[name]
    before, options = sorted(place.rglob("*")), options_of(command, model_dir) | changes
    code, out, errors = run_main(COMMANDS[command].main, *write_yaml(tmp_path, options))
    (line,) = [line for line in errors.splitlines() if "error" in line]
    assert (code, "Traceback" in errors, "Loading weights" in out + errors) == (2, False, False), errors
    assert line.startswith(f"trl-capo {command.split()[0]}: error: ")
    assert named in errors[errors.index(line) :], errors
    assert sorted(place.rglob("*")) == before


class Plant:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_code_in_a_model_folder_does_not_run_unless_trusted(place, tmp_path, monkeypatch, model_dir):
    monkeypatch.chdir(place)
    model, ran = Path(shutil.copytree(model_dir, tmp_path / "model")), tmp_path / "ran"
    code = f"import os; os.mkdir({str(ran)!r})\nfrom transformers import LlamaConfig as Config\n"
    (model / "evil.py").write_text(code)
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}
    (model / "config.json").write_text(json.dumps(config))
    for command in ("train", "evaluate"):
        code, _, errors = run_main(COMMANDS[command].main, *write_yaml(tmp_path, options_of(command, str(model))))
        assert code == 2, errors
        assert "custom code" in errors
    assert not ran.exists()


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_pickle_that_holds_code_is_not_loaded_as_weights(place, tmp_path, monkeypatch, model_dir, command):
    monkeypatch.chdir(place)
    model, ran = Path(shutil.copytree(model_dir, tmp_path / "model")), tmp_path / "ran"
    (model / "model.safetensors").unlink()
    torch.save({"lm_head.weight": torch.zeros(1), "more": Plant(ran)}, model / "pytorch_model.bin")
    code, _, errors = forked(COMMANDS[command].main, write_yaml(tmp_path, options_of(command, str(model))))
    assert code != 0
    assert "weights only" in errors.lower(), errors
    assert not ran.exists()
    torch.load(model / "pytorch_model.bin", weights_only=False)
    assert ran.exists()


def test_a_loading_script_in_a_data_folder_is_not_run(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    data, ran = tmp_path / "data", tmp_path / "ran"
    data.mkdir()
    shutil.copy(place / "good.jsonl", data / "train.jsonl")
    (data / "data.py").write_text(f"import os; os.mkdir({str(ran)!r})\n")
    options = options_of("noise", "") | {"dataset_name": str(data), "output_dir": str(tmp_path / "noisy")}
    run_main(noise.main, *write_yaml(tmp_path, options))
    assert not ran.exists()
