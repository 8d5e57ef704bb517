"""A study's folder is of one content of its data and model, whatever their paths say."""

import json

import pytest
from conftest import make_pairs
from datasets import Dataset

from trl_capo.study import inputs
from trl_capo.study.inputs import describe_inputs, refuse_other_inputs, settle_inputs


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(1000))
    (folder / "README.md").write_text("about it")
    return folder


@pytest.fixture
def study(tmp_path):
    """The folder of a study with a run that is done and a memory."""
    folder = tmp_path / "study"
    for name in ("runs/one/result.json", "memory/hidden.safetensors"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("{}")
    return folder


def parts(change=lambda row: row):
    return {"train": make_pairs(6).map(change), "test": make_pairs(3)}


def test_the_same_content_is_the_same_however_it_is_stored(model, tmp_path):
    found = describe_inputs(parts(), str(model))
    assert list(found) == ["the train pairs", "the test pairs", "the model's files"]
    make_pairs(6).to_parquet(tmp_path / "train.parquet")
    stored = Dataset.from_parquet(str(tmp_path / "train.parquet"), cache_dir=str(tmp_path / "cache"))
    (model / "README.md").write_text("more about it")
    assert describe_inputs(parts() | {"train": stored}, str(model)) == found
    assert "the model's files" not in describe_inputs(parts(), "someone/on-the-hub")


@pytest.mark.parametrize("column", ["prompt", "chosen", "language", "id"])
def test_every_column_counts(column, model):
    changed = describe_inputs(parts(lambda row: {column: row[column] + "."}), str(model))
    found = describe_inputs(parts(), str(model))
    assert changed["the train pairs"] != found["the train pairs"]
    assert changed["the test pairs"] == found["the test pairs"]


def test_large_weights_are_told_apart_by_samples(model, monkeypatch):
    """A training changes them everywhere; here one byte in ten, of which 64 samples of two bytes meet some."""
    monkeypatch.setattr(inputs, "WHOLE", 100)
    monkeypatch.setattr(inputs, "SAMPLE", 2)
    found = describe_inputs({}, str(model))
    (model / "model.safetensors").write_bytes((bytes(9) + b"x") * 100)
    assert describe_inputs({}, str(model)) != found


def test_runs_of_other_content_are_refused_before_and_in_a_run(study):
    settle_inputs(study, {"the train pairs": "1", "the test pairs": "2"})  # of an earlier version: taken as it is
    settle_inputs(study, {"the train pairs": "1", "the test pairs": "2"})
    assert (study / "memory/hidden.safetensors").is_file()
    for refuse in (settle_inputs, refuse_other_inputs):
        with pytest.raises(ValueError, match=r"changed since it began: the test pairs\. Choose another output_dir"):
            refuse(study, {"the train pairs": "1", "the test pairs": "3"})
    assert json.loads((study / "inputs.json").read_text())["the test pairs"] == "2"


def test_without_runs_nothing_is_remembered(study):
    settle_inputs(study, {"the train pairs": "1"})
    (study / "runs/one/result.json").unlink()
    settle_inputs(study, {"the train pairs": "2"})
    assert not (study / "memory/hidden.safetensors").exists()
    refuse_other_inputs(study, {"the train pairs": "2"})
