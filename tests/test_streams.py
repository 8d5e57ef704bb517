"""A line of a stream that cannot be read is told with its file and number, wherever it stands."""

import json
import re

import pytest
from conftest import CPU_ARGUMENTS, make_pairs
from refusals import write_yaml

from trl_capo import cli, train

BAD = {"broken": "{broken", "a key twice": '{"prompt": "a", "chosen": "b", "chosen": "c", "rejected": "d"}'}


@pytest.fixture
def options(tmp_path, model_dir):
    """Of a training on a stream with a bad line, which comes after so many good ones of so many characters."""

    def make(line: str, before: int, characters: int = 0) -> list[str]:
        rows = [row | {"note": "x" * characters} for row in make_pairs(24)]
        lines = [json.dumps(rows[index % 24]) for index in range(before)] + [line] + [json.dumps(rows[0])] * 3
        (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n")
        data = {"dataset_name": str(tmp_path / "train.jsonl"), "dataset_streaming": True}
        options = {"model_name_or_path": model_dir, "output_dir": str(tmp_path / "out"), "max_steps": 40}
        return write_yaml(tmp_path, CPU_ARGUMENTS | data | options)

    return make


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("before", [0, 30, 150])
def test_a_bad_line_at_the_start_is_refused_before_a_model_is_loaded(options, tmp_path, capfd, bad, before):
    words = options(BAD[bad], before)
    assert train.main(words) == 2
    said = capfd.readouterr().err
    assert re.search(f"train.jsonl, line {before + 1}[:,] ", said), said
    assert "Loading weights" not in said
    assert not (tmp_path / "out").exists()
    assert cli.main(["train", *words, "--dry_run"]) == 1
    assert re.search(f"train.jsonl, line {before + 1}[:,] ", " ".join(capfd.readouterr().out.split()))


def test_a_broken_line_far_on_is_refused_before_a_model_is_loaded(options, tmp_path, capfd):
    """Readers of JSON take 10 MiB at a time; these are 24."""
    assert train.main(options(BAD["broken"], before=400, characters=60_000)) == 2
    assert (
        capfd.readouterr()
        .err.rstrip()
        .endswith("train.jsonl, line 401: column 2: not JSON: Expecting property name enclosed in double quotes")
    )
    assert not (tmp_path / "out").exists()


def test_a_bad_line_far_on_ends_the_training_with_its_place(options, capfd):
    words = [*options(BAD["a key twice"], before=400, characters=60_000), "--per_device_train_batch_size", "16"]
    assert train.main(words) == 1
    said = capfd.readouterr().err
    assert said.rstrip().endswith("train.jsonl, line 401: the key 'chosen' comes twice in an object")
    assert "Traceback" not in said
    assert cli.main(["train", *words, "--dry_run"]) == 1
    assert "train.jsonl, line 401: " in " ".join(capfd.readouterr().out.split())


def test_a_null_far_on_is_refused_before_its_reader_dies_of_it(options, tmp_path, capfd):
    """At the start of a block of 10 MB pyarrow ends the process with signal 11."""
    words = options("null", 200, characters=100_000)
    assert train.main(words) == 2
    assert "train.jsonl, line 201: null is not an object" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
