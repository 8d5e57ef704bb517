"""Loading and checking pairs: every kind of place, mixtures, and what is refused or warned about."""

import numpy as np
import pytest
from conftest import as_conversation, make_pairs
from datasets import Dataset, DatasetDict
from preference_rows import FORMATS, make_data
from trl import DatasetMixtureConfig

from trl_capo.common.fingerprint import fingerprint
from trl_capo.data.edit import swap_answers
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
    "prompt is empty in 6 of 6 rows": changed(6, prompt=" "),
    "no prompt": changed(6, chosen="yes", rejected="no").remove_columns("prompt"),
    "in 4 of 6 rows .* the text of 'instruction' and 'input' into a column 'prompt'": changed(4, prompt="Why?")
    .map(
        lambda row: (
            row if row["prompt"] == "Why?" else {side: row["prompt"] + row[side] for side in ("chosen", "rejected")}
        )
    )
    .rename_column("prompt", "instruction")
    .add_column("input", [""] * 6),
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


def turns(*texts: str, roles="user assistant user assistant") -> list[dict]:
    return [{"role": role, "content": text} for role, text in zip(roles.split(), texts, strict=False)]


SYSTEM, LAST = "system user assistant", {"roles": "assistant"}
REPEATED = {  # prompt and the beginning of both answers, as they are stored and as they should be read
    "text": ("q ", "q ", "q ", ""),
    "text with another space": ("q\n", "q ", "q", " "),
    "messages": (turns("q"), turns("q"), turns("q"), []),
    "system in the answers": (turns("q"), turns("s", "q", roles=SYSTEM), turns("s", "q", roles=SYSTEM), []),
    "system in the prompt": (turns("s", "q", roles=SYSTEM), turns("q"), turns("s", "q", roles=SYSTEM), []),
    "last turn": (turns("1", "2", "q"), turns("q"), turns("1", "2", "q"), []),
    "mixed": ("q", turns("q"), turns("q"), []),
    "mixed, other text": ("q", turns("s", "q.", roles=SYSTEM), turns("s", "q.", roles=SYSTEM), []),
    "mixed, answers alone": ("q", [], turns("q"), []),
}


@pytest.mark.parametrize("form", REPEATED)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_prompt_is_cut_off_the_answers_that_repeat_it(form, streaming, tmp_path, caplog):
    """As in ultrafeedback_binarized. A row that does not repeat its prompt stays as it is."""
    given, start, prompt, rest = REPEATED[form]
    ends = ("yes", "no") if isinstance(start, str) else (turns("yes", **LAST), turns("no", **LAST))
    rows = [{"prompt": given, "chosen": start + ends[0], "rejected": start + ends[1], "id": 1}] * 3
    other = {"prompt": "a" if isinstance(given, str) else turns("a"), "chosen": ends[0], "rejected": ends[1], "id": 2}
    Dataset.from_list([*rows, other]).to_json(tmp_path / "pairs.jsonl")
    data = load_pairs(str(tmp_path / "pairs.jsonl"), streaming=streaming)["train"]
    expected = [{"prompt": prompt, "chosen": rest + ends[0], "rejected": rest + ends[1], "id": 1}] * 3
    assert list(data) == [*expected, other | {"prompt": turns("a") if isinstance(start, list) else "a"}]
    assert "train: the prompt is cut off the answers" in caplog.text
    assert check_pairs(data, "train_dataset") == []
    if not streaming:
        assert fingerprint(data) == fingerprint(Dataset.from_list([*rows, other]))


def test_answers_that_begin_with_their_prompt_by_chance_stay_whole(tmp_path):
    rows = [{"prompt": "q", "chosen": "yes", "rejected": "no"}] * 20
    rows += [{"prompt": "2", "chosen": "2 + 2", "rejected": "2 - 2"}]
    rows += [{"prompt": "q", "chosen": "q", "rejected": "no"}] * 5
    Dataset.from_list(rows).to_json(tmp_path / "pairs.jsonl")
    assert load_pairs(str(tmp_path / "pairs.jsonl"))["train"].to_list() == rows


def test_cells_of_a_csv_file_are_texts_and_only_empty_ones_are_null(tmp_path):
    (tmp_path / "pairs.csv").write_text("prompt,chosen,rejected,language,score\nq,None,NA,nan,1.5\nq,yes,,de,\n")
    rows = load_pairs(str(tmp_path / "pairs.csv"))["train"].to_list()
    assert [list(row.values()) for row in rows] == [["q", "None", "NA", "nan", 1.5], ["q", "yes", None, "de", None]]


def test_messages_with_tool_calls_or_parts_are_read(tmp_path):
    call = {"type": "function", "function": {"name": "say", "arguments": "{}"}}
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "?"}]
    row = {"prompt": [{"role": "user", "content": parts}], "rejected": [{"role": "assistant", "content": "no"}]}
    row["chosen"] = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    empty = row | {"chosen": [{"role": "assistant", "content": None, "tool_calls": None}]}
    assert check_pairs(Dataset.from_list([row, empty]), "d") == ["d: chosen is empty in 1 of 2 rows (row 1)"]
    calls = [{key: [{"role": "assistant", "tool_calls": [call]}] if key == "chosen" else row[key] for key in row}]
    assert check_pairs(Dataset.from_list(calls), "d") == []
    Dataset.from_list([row | {"prompt": turns("q")}]).to_json(tmp_path / "mixed.jsonl")  # the keys of answers differ
    data = load_pairs(str(tmp_path / "mixed.jsonl"))["train"]
    assert check_pairs(data, "d") == []
    assert swap_answers(data, np.array([0]))[0]["rejected"] == data[0]["chosen"]
