"""What `trl-capo evaluate` refuses: one clear error each, and nothing written. What can be known to be wrong before a
model is loaded is refused before one is; what only scoring shows stands at the end. Models: test_models.py.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import as_conversation, save_tiny_model
from datasets import Dataset
from pair_oracle import make_pool
from test_modes import load
from transformers import BitsAndBytesConfig

import trl_capo.evaluate

ERROR = "trl-capo evaluate: error: "


@pytest.fixture
def refused(command, tmp_path):
    """The error of the command, which must be the only one."""

    def call(**changes) -> str:
        code, output, errors = command(**changes)
        assert code == 2, output + errors
        assert errors.count(ERROR) == 1
        assert "Traceback" not in errors
        assert not (tmp_path / "out").exists()
        return errors[errors.index(ERROR) :]

    return call


@pytest.fixture
def refused_at_once(refused, monkeypatch):
    """As `refused`, and no model may be loaded."""

    def load(args, source):
        raise AssertionError(f"{source.name} is loaded")

    monkeypatch.setattr(trl_capo.evaluate, "load_model", load)
    return refused


SIMPLE = {
    "absent group column": ({"group_column": "nosuch"}, ["nosuch", "language"]),
    "absent further column": ({"also_by": ["nosuch"]}, ["also_by='nosuch'", "language"]),
    "missing data": ({"dataset_name": "./missing.jsonl"}, ["missing.jsonl"]),
    "missing split": ({"dataset_split": "nosuch"}, ["nosuch", "train"]),
    "missing model": ({"model_name_or_path": "./missing"}, ["model_name_or_path", "missing"]),
    "missing reference": ({"ref_model": "./missing"}, ["ref_model", "missing"]),
    "missing adapter": ({"adapter": "./missing"}, ["adapter", "missing"]),
    "no model": ({"model_name_or_path": None}, ["model_name_or_path", "compare"]),
    "both": ({"compare": ["a", "b"]}, ["model_name_or_path", "compare"]),
    "one to compare": ({"model_name_or_path": None, "compare": ["a"]}, ["compare=['a']", "two models or more"]),
    "empty output folder": ({"output_dir": ""}, ["output_dir is empty"]),
    "no pair short enough": ({"max_length": 3}, ["max_length"]),
    "beta": ({"beta": -1}, ["beta", "-1"]),
    "batch size": ({"per_device_eval_batch_size": 0}, ["per_device_eval_batch_size", "0"]),
    "dtype": ({"dtype": "float99"}, ["dtype", "float99"]),
    "unknown option": ({"nosuch": 1}, ["nosuch"]),
}


@pytest.mark.parametrize("kind", SIMPLE)
def test_options(refused_at_once, kind):
    changes, named = SIMPLE[kind]
    message = refused_at_once(**changes)
    assert all(word in message for word in named), message


@pytest.mark.parametrize(("kind", "named"), [("lists", "list"), ("no chosen", "be used"), ("empty file", "bad")])
def test_data(refused_at_once, tmp_path, kind, named):
    rows = make_pool().remove_columns("language")
    changes = {
        "lists": lambda: rows.add_column("language", [["de"]] * 24),
        "no chosen": lambda: rows.remove_columns("chosen"),
        "empty file": lambda: rows.select([]),
    }
    changes[kind]().to_parquet(tmp_path / "bad.parquet")
    column = "language" if kind == "lists" else "none"
    assert named in refused_at_once(dataset_name=tmp_path / "bad.parquet", group_column=column)


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_a_file_without_rows(refused_at_once, tmp_path, content):
    (tmp_path / "empty.jsonl").write_text(content)
    message = refused_at_once(dataset_name=tmp_path / "empty.jsonl")
    assert f"dataset_name={str(tmp_path / 'empty.jsonl')!r} cannot be read: it has no rows." in message


def test_tools_that_are_not_json(refused_at_once, options):
    tools = ["[]"] * 7 + ["{'a': 1}"] * 17
    rows = [as_conversation(row) | {"tools": text} for row, text in zip(make_pool(), tools, strict=True)]
    Dataset.from_list(rows).to_json(options["dataset_name"])
    message = refused_at_once()
    assert all(word in message for word in ("row 7", "column 'tools'", "not JSON")), message


@pytest.mark.parametrize(("last", "reason"), [("./missing", "no such folder"), ("WITHOUT WEIGHTS", "no weights")])
def test_the_last_model_of_a_comparison_is_looked_at_before_the_first_is_loaded(
    refused_at_once, options, tmp_path, last, reason
):
    if last != "./missing":
        last = str(shutil.copytree(options["ref_model"], tmp_path / last))
        (Path(last) / "model.safetensors").unlink()
    models = [options["model_name_or_path"], options["ref_model"], last]
    message = refused_at_once(model_name_or_path=None, compare=models)
    assert f"compare={last!r}" in message
    assert reason in message


@pytest.mark.parametrize("kind", ["a file", "below a file", "not writable", "a folder where a file goes"])
def test_an_output_folder_that_cannot_be_used(refused_at_once, options, tmp_path, kind):
    if kind == "not writable" and os.access("/proc/nosuch", os.W_OK):
        pytest.skip("no folder here that nobody can write to")
    (tmp_path / "full" / "report.md").mkdir(parents=True)
    folders = {"a file": options["dataset_name"], "below a file": options["dataset_name"] + "/sub/folder"}
    folders |= {"not writable": "/proc/out", "a folder where a file goes": tmp_path / "full"}
    message = refused_at_once(output_dir=folders[kind])
    assert f"output_dir={str(folders[kind])!r}" in message


@pytest.mark.parametrize("kind", ["raises", "fails on a type", "is missing"])
def test_a_chat_template_that_cannot_render_a_row(refused_at_once, options, tmp_path, kind):
    """The sixth row has a system message, which the template does not take."""
    model = str(shutil.copytree(options["model_name_or_path"], tmp_path / "templated"))
    broken = {"raises": "{{ raise_exception('no system role') }}", "fails on a type": "{{ 'no system role' + 1 }}"}
    template = "{% for m in messages %}{% if m['role'] == 'system' %}BROKEN{% endif %}{{ m['content'] }}{% endfor %}"
    file = Path(model) / "chat_template.jinja"
    file.write_text(template.replace("BROKEN", broken.get(kind, "")))
    if kind == "is missing":
        file.unlink()
    rows = [as_conversation(row) for row in make_pool()]
    rows[5]["prompt"].insert(0, {"role": "system", "content": "Be brief."})
    Dataset.from_list(rows).to_json(options["dataset_name"])
    message = refused_at_once(model_name_or_path=None, compare=[options["model_name_or_path"], model])
    row = 0 if kind == "is missing" else 5
    assert f"{model!r} cannot tokenise row {row}: " in message
    assert {"raises": "no system role", "is missing": "chat_template"}.get(kind, "str") in message


def without_special_tokens(folder: str) -> str:
    config = Path(folder) / "tokenizer_config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps({k: v for k, v in content.items() if k not in ("eos_token", "pad_token")}))
    return folder


def test_a_tokenizer_without_an_end_of_sequence_token(refused_at_once, tmp_path):
    model = without_special_tokens(save_tiny_model(tmp_path / "endless", 0))
    message = refused_at_once(model_name_or_path=model)
    assert all(word in message for word in ("endless", "row 0", "end-of-sequence", "eos_token"))


def test_conversations_need_neither_an_end_nor_a_padding_token(command, options, tmp_path):
    """The chat template ends the answers; what stands in the padding is masked."""
    make_pool().map(as_conversation).to_json(options["dataset_name"])
    model = without_special_tokens(save_tiny_model(tmp_path / "endless", 0))
    figures = []
    for name in (model, options["model_name_or_path"]):
        assert command(model_name_or_path=name)[0] == 0
        figures.append(json.loads((tmp_path / "out" / "metrics.json").read_text())["models"][name]["overall"])
    assert figures[0] == figures[1]


def test_four_bits_without_bitsandbytes(refused_at_once, monkeypatch):
    monkeypatch.setattr("trl_capo.evaluate_arguments.find_spec", lambda name: None)
    message = refused_at_once(load_in_4bit=True)
    assert all(word in message for word in ("load_in_4bit", "bitsandbytes", "pip install"))


# What only scoring shows.


@pytest.mark.parametrize("role", ["model_name_or_path", "ref_model"])
def test_a_model_that_computes_nothing_finite(refused, tmp_path, role):
    folder = save_tiny_model(tmp_path / "diverged", 0)
    model = load(folder)
    torch.nn.init.constant_(model.lm_head.weight, torch.nan)
    model.save_pretrained(folder)
    message = refused(**{role: folder})
    assert all(word in message for word in ("diverged", "24 of 24", "not finite")), message


def computes_in_4_bits(folder: str) -> bool:
    model = load(folder, quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    try:
        model(torch.tensor([[1, 2, 3]]))
    except Exception:  # whatever it is called
        return False
    return True


def test_a_shape_that_bitsandbytes_cannot_compute_with(refused, model_dir):
    if computes_in_4_bits(model_dir):
        pytest.skip("bitsandbytes computes with any shape on this processor")
    message = refused(load_in_4bit=True, ref_model=None)
    assert all(word in message for word in ("load_in_4bit", "4 bits", "Leave load_in_4bit out"))
