"""Loading and checking pairs: every kind of place, mixtures, and what is refused or warned about."""

import pytest
from conftest import as_conversation, make_pairs
from datasets import Dataset, DatasetDict
from preference_rows import FORMATS, make_data
from trl import DatasetMixtureConfig

from trl_capo.common.fingerprint import fingerprint
from trl_capo.data.load import check_pairs, load_mixture, load_pairs, select_split

PAIRS = make_pairs(6)


def test_files_folders_and_saved_data_sets_give_the_same_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    PAIRS.to_json("data/train.jsonl", force_ascii=False)
    PAIRS.to_json("pairs.json", force_ascii=False)
    PAIRS.to_csv("pairs.csv")
    PAIRS.to_parquet("pairs.parquet")
    PAIRS.save_to_disk("saved")
    DatasetDict(train=PAIRS, test=PAIRS.select([0])).save_to_disk("splits")
    for name in ("data", "pairs.json", "pairs.csv", "pairs.parquet", "saved", "splits"):
        assert load_pairs(name)["train"].to_list() == PAIRS.to_list(), name
    assert list(load_pairs("pairs.json", streaming=True)["train"]) == PAIRS.to_list()
    with pytest.raises(ValueError, match=r"dataset_test_split='dev': .* Choose from train, test"):
        select_split(load_pairs("splits"), "dev", "dataset_test_split")


@pytest.mark.parametrize("name", ["nothing.jsonl", "no/such-set", "empty.jsonl", "cut.jsonl", "a.txt", "bare"])
def test_what_cannot_be_read_is_named_in_one_line(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bare").mkdir()
    for file, text in {"empty.jsonl": "", "cut.jsonl": '{"chosen": "a"}\n{"chosen": "b', "a.txt": "a"}.items():
        (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=f"dataset_name='{name}'") as error:
        load_pairs(name)
    assert "\n" not in str(error.value)


def test_the_test_split_of_a_mixture_depends_on_the_seed_alone(tmp_path):
    PAIRS.to_json(tmp_path / "one.jsonl", force_ascii=False)

    def mix(seed=0, name="one", **options) -> dict:
        entries = [{"path": str(tmp_path / f"{name}.jsonl")}] * 2
        return load_mixture(DatasetMixtureConfig(entries, **options), seed)

    assert mix()["train"].to_list() == 2 * PAIRS.to_list()
    first, again, other = (mix(seed, test_split_size=0.5) for seed in (3, 3, 4))
    assert first["test"].to_list() == again["test"].to_list() != other["test"].to_list()
    assert len(first["train"]) == len(first["test"]) == 6
    for options in ({"test_split_size": 99}, {"test_split_size": 0.5, "streaming": True}, {"name": "three"}):
        with pytest.raises(ValueError, match=r"test_split_size=|datasets.*three"):
            mix(**options)


@pytest.mark.parametrize("form", FORMATS)
def test_good_pairs_of_every_format_pass_also_as_a_stream(form):
    data = make_data(form, 300)
    assert check_pairs(data, "pairs") == check_pairs(data.to_iterable_dataset(), "pairs") == []


def changed(rows: int, **columns) -> Dataset:
    """Six pairs; the first `rows` have other values in these columns, and None removes a column."""
    data = [row | (columns if index < rows else {}) for index, row in enumerate(PAIRS)]
    return Dataset.from_list(data)


PROBLEMS = {
    "no rows": PAIRS.select([]),
    "no column rejected, only": PAIRS.remove_columns("rejected"),
    r"chosen is null in 2 of 6 rows \(row 0, 1\)": changed(2, chosen=None),
    "prompt is text, chosen is messages, rejected is text": changed(6, chosen=as_conversation(PAIRS[0])["chosen"]),
    "rejected is empty in 6 of 6 rows": changed(6, rejected=" \n"),
    "chosen equals rejected in 6 of 6 rows": changed(6, chosen="a", rejected="a"),
    "no prompt": changed(6, chosen="yes", rejected="no").remove_columns("prompt"),
    "in 4 of 6 rows .*; rename the column 'question' to 'prompt'": changed(4, chosen="ab", rejected="b")
    .rename_column("prompt", "question")
    .map(lambda row: row if row["chosen"] == "ab" else row | {"rejected": row["chosen"] + "!"}),
}


@pytest.mark.parametrize("named", PROBLEMS)
def test_pairs_that_cannot_be_used_are_refused_in_one_line(named):
    with pytest.raises(ValueError, match=f"^train_dataset.*{named}") as error:
        check_pairs(PROBLEMS[named], "train_dataset")
    assert "\n" not in str(error.value)


def test_what_is_wrong_with_some_rows_is_a_warning_with_their_numbers():
    assert check_pairs(changed(2, chosen=""), "d") == ["d: chosen is empty in 2 of 6 rows (row 0, 1)"]
    equal = changed(1, chosen="a", rejected="a")
    assert check_pairs(equal.select([5, 0, 1]), "d") == ["d: chosen equals rejected in 1 of 3 rows (row 1)"]


def turns(*texts: str) -> list[dict]:
    return [{"role": role, "content": text} for role, text in zip(["user", "assistant"], texts, strict=False)]


REPEATED = {
    "text": lambda i: {"prompt": f"q{i} ", "chosen": f"q{i} yes", "rejected": f"q{i} no"},
    "messages": lambda i: {
        "prompt": turns(f"q{i}"),
        "chosen": turns(f"q{i}", "yes"),
        "rejected": turns(f"q{i}", "no"),
    },
    "mixed": lambda i: {"prompt": f"q{i}", "chosen": turns(f"q{i}", "yes"), "rejected": turns(f"q{i}", "no")},
}


@pytest.mark.parametrize("form", REPEATED)
def test_a_prompt_that_all_answers_repeat_is_left_out(form, tmp_path, caplog):
    """As in ultrafeedback_binarized. One answer that does not begin with its prompt keeps the column."""
    rows = [REPEATED[form](index) for index in range(3)]
    Dataset.from_list(rows).to_json(tmp_path / "pairs.jsonl")
    data = load_pairs(str(tmp_path / "pairs.jsonl"))["train"]
    assert data.column_names == ["chosen", "rejected"]
    assert fingerprint(data) == fingerprint(Dataset.from_list(rows))
    assert check_pairs(data, "train_dataset") == []
    assert "train: all answers begin with their prompt" in caplog.text
    rows[2]["rejected"] = rows[1]["rejected"]
    Dataset.from_list(rows).to_json(tmp_path / "other.jsonl")
    assert "prompt" in load_pairs(str(tmp_path / "other.jsonl"))["train"].column_names


def test_messages_with_tool_calls_or_parts_are_read():
    call = {"type": "function", "function": {"name": "say", "arguments": "{}"}}
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "?"}]
    row = {"prompt": [{"role": "user", "content": parts}], "rejected": [{"role": "assistant", "content": "no"}]}
    row["chosen"] = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    empty = row | {"chosen": [{"role": "assistant", "content": None, "tool_calls": None}]}
    assert check_pairs(Dataset.from_list([row, empty]), "d") == ["d: chosen is empty in 1 of 2 rows (row 1)"]
    calls = [{key: [{"role": "assistant", "tool_calls": [call]}] if key == "chosen" else row[key] for key in row}]
    assert check_pairs(Dataset.from_list(calls), "d") == []
