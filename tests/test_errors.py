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

COMMANDS = {"train": train, "evaluate": evaluate, "noise": noise, "clean": clean, "audit": audit, "study": study}
HTML = "<script>alert(1)</script>"
PLAN = {"methods": {"dpo": {}}, "noise": {"n": {"kind": "flip", "rate": 0.1}}, "learning_rates": [1e-4]}
PLAN |= {"grid": [{"methods": ["dpo"], "noise": ["n"], "seeds": [0], "epochs": 1}]}

# What is wrong with the data set: a change of every row.
DATA = {
    "good": lambda row: {},
    "no_rejected": lambda row: {"rejected": None, "refused": "no"},
    "weight_text": lambda row: {"weight": "much"},
}
# The command, the options that differ from those that work, and what the message must name.
MISTAKES = {
    "train_missing_file": ("train", {"dataset_name": "nothing.jsonl"}, "nothing.jsonl"),
    "train_no_data": ("train", {"dataset_name": None}, "dataset_name"),
    "train_missing_column": ("train", {"dataset_name": "no_rejected.jsonl"}, "no column rejected"),
    "train_missing_model": ("train", {"model_name_or_path": "/nothing"}, "model_name_or_path='/nothing'"),
    "train_missing_groups": ("train", {"group_column": "tongue"}, "group_column='tongue'"),
    "train_unknown_option": ("train", {"learning_rat": 1}, "learning_rate"),
    "train_no_sigmoid": ("train", {"loss_type": "ipo"}, "loss_type"),
    "train_smoothing": ("train", {"label_smoothing": 0.1}, "label_smoothing=0.1"),
    "train_weight_text": ("train", {"dataset_name": "weight_text.jsonl"}, "'weight'"),
    "train_missing_checkpoint": ("train", {"resume_from_checkpoint": "nothing"}, "resume_from_checkpoint='nothing'"),
    "train_noise_without_kind": ("train", {"inject_rate": "0.2"}, "inject_rate"),
    "train_log_of_other_data": ("train", {"pair_log": "trained/pair_log"}, "pair_log"),
    "evaluate_missing_reference": ("evaluate", {"ref_model": "/nothing"}, "ref_model='/nothing'"),
    "evaluate_missing_column": ("evaluate", {"also_by": ["topic"]}, "also_by='topic'"),
    "noise_folder_exists": ("noise", {"output_dir": "trained"}, "output_dir"),
    "clean_rule_without_scores": ("clean", {"drop_top": "10%"}, "suspects with a rule"),
    "clean_other_data": ("clean", {"decisions": "other.jsonl"}, "fingerprint"),
    "audit_no_log": ("audit", {"run": "data"}, "log.json"),
    "audit_log_of_other_data": ("audit", {"run": "trained", "dataset_name": "good.jsonl"}, "good.jsonl"),
    "study_unknown_method": ("study", {"methods": {"dpo": {"method": "cpo"}}}, "no such method"),
    "study_missing_noise": ("study", {"noise": {}}, "'n'"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, model_dir) -> Path:
    """Folder with data sets that have one fault each, and a training with its pair log."""
    folder = tmp_path_factory.mktemp("place")
    for name, change in DATA.items():
        rows = [{**row, **change(row)} for row in make_pairs()]
        lines = [json.dumps({key: value for key, value in row.items() if value is not None}) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    rows = [{**row, "chosen": row["chosen"] + HTML} for row in make_pairs()]
    (folder / "html.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "other.jsonl").write_text('{"pair": 0, "decision": "flip", "fingerprint": "0"}\n')
    training = CPU_ARGUMENTS | {"model_name_or_path": model_dir, "dataset_name": str(folder / "html.jsonl")}
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
    return {
        "train": CPU_ARGUMENTS | model | data | {"output_dir": "out"},
        "evaluate": model | data,
        "noise": data | {"output_dir": "noisy", "kind": "flip", "rate": 0.2},
        "clean": data | {"output_dir": "cleaned"},
        "audit": {},
        "study": PLAN | model | {"dataset_name": "data", "output_dir": "study"},
    }[command]


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_with_one_message_that_names_it(place, tmp_path, monkeypatch, model_dir, name):
    monkeypatch.chdir(place)
    command, changes, named = MISTAKES[name]
    code, _, errors = run_main(COMMANDS[command].main, *write_yaml(tmp_path, options_of(command, model_dir) | changes))
    assert code == 2, errors
    start = f"trl-capo {command}: error: "
    assert errors.count(start) == 1
    assert "Traceback" not in errors
    assert named in errors[errors.index(start) :], errors


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


def test_the_page_of_an_audit_shows_html_in_answers_as_text(place, tmp_path):
    code, _, errors = run_main(audit.main, str(place / "trained"), "--output_dir", str(tmp_path))
    assert code == 0, errors
    page = (tmp_path / "suspects.html").read_text()
    assert "alert(1)" in page
    assert HTML not in page
