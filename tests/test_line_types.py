"""What a small file is refused for, a big one is refused for, too: rows behind those that its reader goes by."""

import gzip
import json
from typing import Any

import pytest
from broken_data import CHAT, GOOD, MESSAGES, VALUES, json_lines, message
from conftest import CPU_ARGUMENTS
from datasets.packaged_modules.json.json import JsonConfig
from odd_data import PARTS
from refusals import refusal, write_yaml
from trl import DatasetMixtureConfig
from trl.scripts.utils import DatasetConfig

from trl_capo import cli
from trl_capo.data import check_preference_data, load_preference_data
from trl_capo.data_mixture import load_mixture

MANY = 120
LATE = {f"{column} is {name}": {column: value} for name, value in VALUES.items() for column in ("prompt", "chosen")}
LATE |= {f"chosen with {name}": {"chosen": value} for name, value in MESSAGES.items()}
LATE |= {"text": GOOD, "messages": CHAT, "messages in one column": {"chosen": CHAT["chosen"]}, "parts": PARTS}
LATE |= {
    "a name": {"chosen": [message() | {"name": "me"}]},
    "a column": {"new": "text"},
    "no prompt": {"prompt": None},
}
LATE |= {"no group": {"language": None}, "a big number": {"chosen": 10**30}}
LATE |= {"a call": {"chosen": [message(None) | {"tool_calls": [{"type": "function", "function": {"name": "f"}}]}]}}


@pytest.fixture
def small_blocks(monkeypatch):
    """Readers of JSON take 1 kB at a time instead of 10 MB."""
    check = JsonConfig.__post_init__

    def post_init(config):
        check(config)
        config.chunksize = 1000

    monkeypatch.setattr(JsonConfig, "__post_init__", post_init)


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def problem_of(path, streaming: bool = False) -> str | None:
    try:
        splits = load_preference_data(str(path), streaming=streaming)
        check_preference_data(train=splits["train"])
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("first", [GOOD, CHAT | {"language": "de"}], ids=["text", "messages"])
def test_a_late_row_is_refused_as_in_a_small_file_or_read_as_it_stands(small_blocks, tmp_path, first):
    small, big, refused = tmp_path / "small.jsonl", tmp_path / "big.jsonl", 0
    for name, change in LATE.items():
        row = first | change
        small.write_text(json_lines([first, row]))
        big.write_text(json_lines([first] * MANY + [row]))
        said = problem_of(big)
        refused += said is not None
        if said is None:
            assert problem_of(small) is None, name
            assert without_nulls(load_preference_data(str(big))["train"][MANY]) == without_nulls(row), name
        else:
            assert f"{big}, line {MANY + 1}: " in said or f"(row {MANY})" in said, (name, said)
            assert said.count("\n") <= 1, said
    assert refused >= 25


@pytest.mark.parametrize("first", [GOOD, CHAT | {"language": "de"}], ids=["text", "messages"])
def test_a_late_row_of_a_stream_is_refused_with_its_line_or_read_as_it_stands(small_blocks, tmp_path, first):
    path = tmp_path / "big.jsonl"
    for name, change in LATE.items():
        row = first | change
        path.write_text(json_lines([first] * MANY + [row]))
        said = problem_of(path, streaming=True)
        if said is None:
            *_, read = load_preference_data(str(path), streaming=True)["train"]
            assert without_nulls(read) == without_nulls(row), name
        else:
            assert f"{path}, line {MANY + 1}: " in said, (name, said)


@pytest.mark.parametrize("streaming", [False, True])
def test_messages_behind_ten_megabytes_of_text_are_refused_by_the_command(tmp_path, model_dir, capfd, streaming):
    """Of blocks as they are: `datasets` would have read the text `[{"role":"assistant","content":"x"}]`."""
    row = GOOD | {"chosen": "x" * 1000}
    (tmp_path / "big.jsonl").write_text(json_lines([row]) * 10_500 + json_lines([row | {"chosen": CHAT["chosen"]}]))
    options = {"model_name_or_path": model_dir, "output_dir": str(tmp_path / "out"), "dataset_streaming": streaming}
    data = {"dataset_name": str(tmp_path / "big.jsonl"), "max_steps": 3}
    words = write_yaml(tmp_path, CPU_ARGUMENTS | options | data)
    said = "big.jsonl, line 10501: chosen is a list, but text in the first 10 MB of the first file"
    assert said in refusal("train", words, tmp_path, capfd)
    assert cli.main(["train", *words, "--dry_run"]) == 1
    assert said in " ".join(capfd.readouterr().out.split())


@pytest.mark.parametrize("streaming", [False, True])
def test_a_late_list_or_mapping_beside_the_pair_is_read_as_text(small_blocks, tmp_path, streaming):
    path, first = tmp_path / "big.jsonl", GOOD | {"tags": "a", "more": {"tags": "a"}, "all": ["a"]}
    late = first | {"language": ["de"], "tags": {"a": ["b"]}, "more": {"tags": ["a", "b"]}, "all": [["b"]]}
    path.write_text(json_lines([first] * MANY + [late, first]))
    assert problem_of(path, streaming) is None
    read = list(load_preference_data(str(path), streaming=streaming)["train"])[MANY]
    assert (read["language"], read["tags"], read["more"]["tags"]) == ('["de"]', '{"a":["b"]}', '["a","b"]')


def test_another_format_within_the_first_block_of_a_stream_is_refused_with_its_line(tmp_path):
    path, answer = tmp_path / "mixed.jsonl", CHAT["chosen"]
    for first, late, said in (
        (GOOD, {"chosen": answer}, "chosen is a list, but text in the first row"),
        (GOOD, {"rejected": {"a": 1}, "tags": "a"}, "rejected is a mapping, but text in the first row"),
        (CHAT, {"chosen": "yes"}, "chosen is text, but a list in the first row"),
    ):
        path.write_text(json_lines([first | {"tags": ["a"]}] * MANY + [first | late]))
        assert f"{path}, line {MANY + 1}: {said}" in (problem_of(path, streaming=True) or "")


SCORES = [  # the first ones, and what fits them and what does not later
    (1, [2, -3, 2.0, "3", None], [0.5, 1e30, 2**63 + 5, True, "high", "0.5", [1], {"a": 1}]),
    (0.5, [1, 2**60 + 1, 1e30, "0.5", None], [True, "high", [0.5], {"a": 1}]),
    (True, [False, 1, 0, "true", None], [2, 0.5, "maybe", [True], {"a": 1}]),
]


@pytest.mark.parametrize(("first", "fit", "odd"), SCORES)
def test_a_late_score_is_refused_with_its_line_where_the_reader_ends_and_nowhere_else(
    small_blocks, tmp_path, first, fit, odd
):
    path, before = tmp_path / "big.jsonl", [GOOD | {"score": first}] * MANY
    for late, fits in [(value, True) for value in fit] + [(value, False) for value in odd]:
        path.write_text(json_lines([*before, GOOD | {"score": late}, before[0]]))
        for said in (problem_of(path), problem_of(path, streaming=True)):
            assert (f"{path}, line {MANY + 1}: score is " in (said or "")) != fits, (late, said)


LINE = json.dumps(GOOD)
WRONG = LINE.replace('"yes, gladly"', "3")
ALIKE = {  # of which none is what it looks like
    "key in text": GOOD | {"chosen": '{"chosen": 3, "prompt": [1]}'},
    "key at the end of text": GOOD | {"chosen": 'a "chosen": \\', "rejected": ': 3, "chosen": ["\\"'},
    "key in another column": GOOD | {"score": {"chosen": 3, "prompt": ["a"], "rejected": {}}},
}
SPELT = {
    "as it is": WRONG,
    "last": '{"rejected": "a", "prompt": "b", "chosen": 3}',
    "white space": WRONG.replace('": ', '" :\t ').replace(', "', ' , "'),
    "escaped": WRONG.replace("chosen", r"ch\u006fs\u0065n"),
    "beside text alike": json.dumps(ALIKE["key in text"] | {"chosen": 3, "prompt": '"chosen": "a"'}),
    "behind raw control characters": WRONG.replace("no", "n\to\x1f"),
    "beside another": json.dumps({"score": {"chosen": 1}} | GOOD | {"chosen": 3}),
}


@pytest.mark.parametrize("streaming", [False, True])
def test_the_column_is_known_however_it_is_spelt(small_blocks, tmp_path, streaming):
    path = tmp_path / "big.jsonl"
    good = [GOOD | {"score": {"chosen": 1, "prompt": ["b"], "rejected": {}}}] * MANY
    for name, line in SPELT.items():
        path.write_text(json_lines(good) + line + "\n" + LINE)
        assert f"line {MANY + 1}: chosen is a number, but text" in (problem_of(path, streaming) or ""), name
    path.write_text(json_lines(good + list(ALIKE.values())) + LINE.replace("no", "n\to"))
    assert problem_of(path, streaming) is None


SECOND = {
    "lines": ("1.jsonl", f"{LINE}\n{WRONG}\n", 2),
    "lines that end as long ago": ("1.jsonl", f"{LINE}\r{WRONG}\r", 2),
    "a list": ("1.json", f"[{LINE}, {WRONG}]", 1),
    "a list over lines": ("1.json", json.dumps([GOOD, GOOD | {"chosen": 3}], indent=1), 8),
    "objects over lines": ("1.jsonl", "\n".join([json.dumps(GOOD | {"chosen": 3}, indent=1)] * 2), 1),
    "compressed": ("1.jsonl.gz", gzip.compress(f"\ufeff{LINE}\n\n{WRONG}".encode()), 3),
}


@pytest.mark.parametrize(("name", "content", "line"), SECOND.values(), ids=SECOND)
def test_all_layouts_of_a_second_file(tmp_path, name, content, line):
    """Types are those of the first file, however small it is."""
    (tmp_path / "0.jsonl").write_text(json_lines([GOOD] * 3))
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert f"/{name}, line {line}: chosen is a number, but text in the first 10 MB" in (problem_of(tmp_path) or "")


def test_files_of_other_configurations_are_not_looked_at(tmp_path):
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- {config_name: a, data_files: a.jsonl}\n- {config_name: b, data_files: b.jsonl}\n---\n"
    )
    (tmp_path / "a.jsonl").write_text(json_lines([GOOD] * 3))
    (tmp_path / "b.jsonl").write_text(json_lines([CHAT | {"new": 1}] * 3))
    for name, row in (("a", GOOD), ("b", CHAT)):
        for streaming in (False, True):
            rows = load_preference_data(str(tmp_path), config=name, streaming=streaming)["train"]
            assert next(iter(rows))["chosen"] == row["chosen"]


@pytest.mark.parametrize("streaming", [False, True])
def test_entries_of_a_mixture(small_blocks, tmp_path, monkeypatch, streaming):
    monkeypatch.chdir(tmp_path)
    rows = [GOOD] * MANY
    (tmp_path / "good.jsonl").write_text(json_lines(rows))
    (tmp_path / "bad.jsonl").write_text(json_lines([*rows, GOOD | {"chosen": ["a"]}, GOOD]))
    (tmp_path / "new.jsonl").write_text(json_lines([*rows, GOOD | {"chosen": 3}, GOOD]))
    names = ("good.jsonl", "bad.jsonl", "new.jsonl")
    with pytest.raises(ValueError, match="bad.jsonl") as error:
        load_mixture(DatasetMixtureConfig([DatasetConfig(name) for name in names], streaming), 0)
    assert [line.split("jsonl, ")[1].split(",")[0] for line in str(error.value).splitlines()] == [
        f"line {MANY + 1}: chosen is a list",
        f"line {MANY + 1}: chosen is a number",
    ]
    chosen = DatasetConfig("new.jsonl", columns=["prompt", "rejected"])
    assert len(list(load_mixture(DatasetMixtureConfig([chosen], streaming), 0)["train"])) == MANY + 2


@pytest.mark.parametrize(("split", "streaming"), [("train", True), ("train[:50%]+train[50%:]", False)])
def test_a_mixture_is_held_against_the_split_that_it_is_of(small_blocks, tmp_path, split, streaming):
    late = {"score": 3} if streaming else {"chosen": ["a"]}  # the reader takes no other columns if it reads all
    files = {"train": tmp_path / "train.jsonl", "test": tmp_path / "test.jsonl"}
    files["train"].write_text(json_lines([GOOD] * MANY))
    files["test"].write_text(json_lines([GOOD, GOOD | late]))
    files = {name: str(path) for name, path in files.items()}
    for entry in (DatasetConfig(str(tmp_path)), DatasetConfig("json", data_files=files)):
        entry.split = split
        load_mixture(DatasetMixtureConfig([entry], streaming), 0)
        entry.split = split.replace("train", "test")
        with pytest.raises(ValueError, match="test.jsonl, line 2: "):
            load_mixture(DatasetMixtureConfig([entry], streaming), 0)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (WRONG.replace("3", "9" * 30), "a number has more than 64 bits"),
        (LINE.replace("{", '{"new": "a", '), "it has a column 'new', which there is not in the first 10 MB"),
    ],
    ids=["number", "column"],
)
def test_what_readers_refuse_without_a_place_has_one(small_blocks, tmp_path, line, said):
    path = tmp_path / "big.jsonl"
    path.write_text(f"{LINE}\n" * MANY + f"{line}\n{LINE}\n")
    message = problem_of(path)
    assert f"{path}, line {MANY + 1}: {said}" in message
    assert message.count("\n") == 0
