"""Mixtures of data sets: what they hold, against rows counted by hand, and what is told of broken ones."""

import os
import re
import subprocess
import sys

import pytest
from broken_data import BROKEN, GOOD, in_file, in_folder, json_lines
from conftest import CPU_ARGUMENTS
from datasets import Dataset
from refusals import refusal, write_yaml
from trl import DatasetMixtureConfig
from trl.scripts.utils import DatasetConfig

from trl_capo.data import load_preference_data
from trl_capo.data_mixture import load_mixture

ROWS = [GOOD | {"prompt": str(number)} for number in range(20)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Has 20 good rows in good.jsonl, ten each in data/a.jsonl and data/b.jsonl, and is where the test is."""
    in_file("good.jsonl", json_lines(ROWS))(tmp_path)
    in_folder({"a.jsonl": json_lines(ROWS[:10]), "b.jsonl": json_lines(ROWS[10:])})(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def mix(*entries, seed=0, **options):
    return load_mixture(DatasetMixtureConfig([DatasetConfig(**entry) for entry in entries], **options), seed)


@pytest.mark.parametrize(
    ("entry", "numbers"),
    [
        ({"path": "good.jsonl"}, range(20)),
        ({"path": "json", "data_files": "good.jsonl"}, range(20)),
        ({"path": "json", "data_files": {"train": ["data/b.jsonl", "data/a.jsonl"]}}, [*range(10, 20), *range(10)]),
        ({"path": "json", "data_dir": "data"}, range(20)),
        ({"path": "data"}, range(20)),
        ({"path": "data", "data_files": "b.*"}, range(10, 20)),
        ({"path": "good.jsonl", "split": "train[:15%]"}, range(3)),
    ],
    ids=str,
)
def test_an_entry_is_a_file_a_folder_or_a_reader_with_files(folder, entry, numbers):
    mixed = mix(entry, {"path": "good.jsonl"})["train"]
    assert mixed["prompt"] == [*map(str, numbers), *map(str, range(20))]
    streamed = mix({"path": "good.jsonl"}, entry, streaming=True)["train"] if "[" not in str(entry) else []
    assert [row["prompt"] for row in streamed] in ([], [*map(str, range(20)), *map(str, numbers)])


def test_shares_of_the_mixture_are_trls(folder):
    """Of 20 and 10 rows, three quarters and one: 20 rows are all that three quarters can be, so 7 of the other 10."""
    mixed = mix({"path": "good.jsonl", "fraction": 3}, {"path": "data/a.jsonl", "fraction": 1})["train"]
    assert mixed["prompt"] == [*map(str, range(20)), *map(str, range(7))]


def test_every_process_holds_out_the_same_rows(folder):
    """TRL draws without a seed, in every process and every resumed training anew."""
    code = (
        "from test_data_mixture import mix\n"
        "print(*mix({'path': 'good.jsonl'}, test_split_size=0.4, seed=3)['test']['prompt'])"
    )
    paths = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    found = [
        subprocess.run([sys.executable, "-c", code], env=paths, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    here = mix({"path": "good.jsonl"}, test_split_size=0.4, seed=3)
    assert found == [" ".join(here["test"]["prompt"]) + "\n"] * 2
    assert sorted([*here["test"]["prompt"], *here["train"]["prompt"]]) == sorted(map(str, range(20)))
    assert here["test"]["prompt"] != mix({"path": "good.jsonl"}, test_split_size=0.4, seed=4)["test"]["prompt"]


def test_all_entries_that_cannot_be_read_are_told_with_file_and_line(folder):
    bad = in_folder({"0.jsonl": json_lines(ROWS), "1.jsonl": json_lines(ROWS[:4]) + "{broken\n"})
    bad(folder / "deep")
    in_file("twice.csv", "prompt,chosen,chosen,rejected\na,b,c,d\n")(folder)
    in_file("null.jsonl", json_lines(ROWS[:1]) + "null\n")(folder)
    in_file("empty.jsonl", "")(folder)
    with pytest.raises(ValueError, match="cannot be read") as error:
        mix(
            {"path": "good.jsonl"},
            {"path": "deep/data"},
            {"path": "twice.csv"},
            {"path": "json", "data_files": ["good.jsonl", "deep/data/*.jsonl"]},
            {"path": "null.jsonl"},
            {"path": "empty.jsonl"},
            {"path": "nosuch.jsonl"},
            {"path": "data", "split": "other"},
        )
    lines = str(error.value).splitlines()
    told = [
        (1, "path='deep/data'", "deep/data/1.jsonl, line 5: column 2: not JSON"),
        (2, "path='twice.csv'", "twice.csv, line 1: the column 'chosen' comes twice"),
        (3, "path='json'", "deep/data/1.jsonl, line 5"),
        (4, "path='null.jsonl'", "null.jsonl, line 2: null is not an object"),
        (5, "path='empty.jsonl'", "cannot be read: it has no rows."),
        (6, "path='nosuch.jsonl'", "there is no such file or folder"),
        (7, "path='data'", "other"),
    ]
    assert len(lines) == len(told), lines
    for line, (index, named, problem) in zip(lines, told, strict=True):
        assert line.startswith(f"datasets[{index}]")
        assert named in line
        assert problem in line


def test_data_sets_that_do_not_fit_together_are_refused(folder):
    in_file("numbers.jsonl", json_lines([{"prompt": 1, "chosen": 2, "rejected": 3}]))(folder)
    with pytest.raises(ValueError, match="datasets: they cannot be mixed: .*prompt"):
        mix({"path": "good.jsonl"}, {"path": "numbers.jsonl"})
    with pytest.raises(ValueError, match="test_split_size: a stream cannot be split"):
        mix({"path": "good.jsonl"}, streaming=True, test_split_size=0.5)


def test_keys_that_an_entry_does_not_have_are_told_at_once(folder, capfd, model_dir):
    options = {"model_name_or_path": model_dir, "output_dir": "out"} | CPU_ARGUMENTS
    entries = [{"path": "good.jsonl"}, {"pth": "good.jsonl"}, {"path": "good.jsonl", "split_": "train", "weights": 2}]
    message = refusal("train", write_yaml(folder, options | {"datasets": entries}), folder, capfd)
    assert "datasets[1]: it has no 'path'." in message
    assert "datasets[1]: unknown key 'pth'. Did you mean 'path'?" in message
    assert "datasets[2]: unknown key 'split_'. Did you mean 'split'?" in message
    assert "datasets[2]: unknown key 'weights'. There are path, name, data_dir, " in message


SAVED = {case for case in BROKEN if case.startswith("saved, ")} - {"saved, cut"}  # their rows alone are read


@pytest.mark.parametrize("case", [c for c in BROKEN if c not in SAVED and not c.startswith(("a ", "every "))])
def test_broken_data_in_a_mixture(tmp_path, monkeypatch, capfd, model_dir, case):
    """As alone (test_broken_input.py); of a bad line, file and line are told."""
    (tmp_path / "data").mkdir()
    name = BROKEN[case](tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    options = {"model_name_or_path": model_dir, "output_dir": "out", "datasets": [{"path": name}]} | CPU_ARGUMENTS
    message = refusal("train", write_yaml(tmp_path, options), tmp_path, capfd)
    if case.startswith("line 2: ") and case not in ("line 2: two objects", "line 2: NaN as text"):
        assert "bad.jsonl, line 2" in message


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"path": "json"}, "datasets[0]: path='json': there is no such file or folder"),
        ({"path": "arrow", "data_files": []}, "datasets[0]: path='arrow': there is no such file or folder"),
        ({"path": ""}, "datasets[0]: path='': there is no such file or folder"),
        ({"path": None}, "datasets[0]: path=None: give text."),
        (
            {"path": "good.jsonl", "name": 5, "split": None},
            "datasets[0]: name=5: give text.\ndatasets[0]: split=None: give",
        ),
        ({"path": "good.jsonl", "fraction": "a"}, "datasets[0]: fraction='a': give a number."),
        ({"path": "good.jsonl", "fraction": -1}, "datasets[0]: fraction=-1: give a positive number."),
        ({"path": "good.jsonl", "fraction": float("nan")}, "datasets[0]: fraction=nan: give a positive number."),
        ({"path": "good.jsonl", "data_files": "good.jsonl"}, "path='good.jsonl' is a file: leave out data_files"),
        ({"path": "saved"}, "path='saved': a mixture takes no folder of save_to_disk."),
        ({"path": "json", "data_files": "null.txt"}, "null.txt, line 21: null is not an object"),
    ],
    ids=str,
)
def test_an_entry_that_means_nothing_is_refused_before_a_reader_reads_what_stands_here(folder, entry, said):
    Dataset.from_list(ROWS).save_to_disk(folder / "saved")
    in_file("null.txt", json_lines(ROWS) + "null\n")(folder)
    with pytest.raises(ValueError, match=re.escape(said)):
        mix(entry, {"path": "good.jsonl"})


@pytest.mark.parametrize("size", [0.0, 1.5, -1, float("nan"), 25])
def test_a_share_that_cannot_be_names_its_option(folder, size):
    with pytest.raises(ValueError, match=f"^test_split_size={size!r} of 20 rows: "):
        mix({"path": "good.jsonl"}, test_split_size=size)


def test_a_folder_may_be_called_like_a_reader_and_stand_in_ones_home(folder, monkeypatch):
    """`load_dataset("json")` would read every file of JSON that stands here."""
    monkeypatch.setenv("HOME", str(folder))
    (folder / "json").mkdir()
    in_file("a.jsonl", json_lines(ROWS[:3]))(folder / "json")
    for path in ("json", "~/json"):
        assert mix({"path": path}, {"path": "good.jsonl"})["train"].num_rows == 23
        assert load_preference_data(path)["train"].num_rows == 3
    for name in ("text", "parquet"):
        with pytest.raises(FileNotFoundError, match=f"dataset_name='{name}': there is no such file or folder"):
            load_preference_data(name)
