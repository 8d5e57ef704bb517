"""Files of decisions and suspects: read as they are, refused with their lines, never taken for those of other data."""

import csv
import json

import pytest
from conftest import as_conversation, make_pairs
from datasets import Dataset

from trl_capo.pair_log import fingerprint
from trl_capo.verdicts import Decision, Suspect, read_decisions, read_suspects

PAIRS = make_pairs(6)
OWN = fingerprint(PAIRS)


@pytest.fixture
def write(tmp_path):
    """Writes lines, text or what JSON makes of it, into a file and returns its name."""

    def into(*lines, name="decisions.jsonl") -> str:
        texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
        (tmp_path / name).write_text("\n".join(texts), encoding="utf-8")
        return str(tmp_path / name)

    return into


def decision(pair=0, what="flip", **more) -> dict:
    return {"pair": pair, "fingerprint": OWN, "decision": what} | more


def test_the_last_decision_on_a_pair_counts(write):
    name = write(
        decision(4, "drop"), decision(1, note="لا"), "", decision(4, "keep", note=None), decision(5, "drop", time=3)
    )
    expected = {4: Decision("keep", None), 1: Decision("flip", "لا"), 5: Decision("drop", None)}
    assert read_decisions(name, PAIRS) == expected
    assert read_decisions(write("\ufeff" + json.dumps(decision(2))), PAIRS) == {2: Decision("flip", None)}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"pair": 1', "column 11: not JSON"),
        ("[1]", "it is not an object"),
        ('"keep"', "it is not an object"),
        ({"pair": 1}, "it has no 'fingerprint', 'decision'"),
        (decision("1"), "pair='1': it is the row of a pair, a whole number"),
        (decision(True), "pair=True: it is the row"),
        (decision(6), "pair=6: the data set has rows 0 to 5"),
        (decision(-1), "pair=-1: the data set has rows 0 to 5"),
        (decision(what="delete"), "decision='delete': choose one of 'keep', 'flip', 'drop'"),
        (decision(what=["keep"]), "decision=['keep']: choose"),
        (decision(note=3), "note=3: it is text"),
    ],
    ids=str,
)
def test_a_bad_line_is_named(write, line, said):
    with pytest.raises(ValueError, match="decisions=") as error:
        read_decisions(write(decision(), "", line, decision(1)), PAIRS)
    assert f"decisions.jsonl': line 3: {said}" in str(error.value)
    assert str(error.value).count(": line ") == 1


def test_all_bad_lines_come_in_one_error(write):
    with pytest.raises(ValueError, match="line 1: .*; line 2: .*; and 12 more") as error:
        read_decisions(write(*[decision(99)] * 20), PAIRS)
    assert str(error.value).count("line ") == 8


def test_decisions_on_other_data_are_refused(write):
    """Also where the rows are the same in another order."""
    others = PAIRS.select([1, 0, 2, 3, 4, 5])
    with pytest.raises(ValueError, match="2 of its lines were decided on other data"):
        read_decisions(write(decision(), decision(1)), others)


def suspect(pair: int, score: float, **more) -> dict:
    row = PAIRS[pair]
    texts = {"id": row["id"], "group": row["language"], "chosen": row["chosen"], "rejected": row["rejected"]}
    return {"pair": pair, **texts, "score": score, "reasons": ["never agreed", "fell, slowly"]} | more


SUSPECTS = [suspect(3, 0.25), suspect(5, 0.9), suspect(0, 0.25)]


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_suspects_are_the_same_from_every_format_the_worst_first(tmp_path, write, ending):
    name, reasons = str(tmp_path / f"suspects.{ending}"), ["never agreed", "fell, slowly"]
    if ending == "parquet":
        Dataset.from_list(SUSPECTS).to_parquet(name)
    elif ending == "jsonl":
        write(*SUSPECTS, name="suspects.jsonl")
    else:
        reasons = ["never agreed; fell, slowly"]
        with open(name, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, SUSPECTS[0])
            table.writeheader()
            table.writerows(row | {"reasons": reasons[0]} for row in SUSPECTS)
    found = read_suspects(name, PAIRS)
    assert list(found.items()) == [
        (5, Suspect(0.9, reasons)),
        (3, Suspect(0.25, reasons)),
        (0, Suspect(0.25, reasons)),
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"pair": 1}, "it has no 'score'"),
        ({"pair": 1, "score": None}, "it has no 'score'"),
        ({"pair": "one", "score": 0.1}, "pair='one', score=0.1: they are numbers"),
        ({"pair": 1.5, "score": 0.1}, "pair=1.5: the data set has rows 0 to 5"),
        ({"pair": 6, "score": 0.1}, "pair=6: the data set has rows 0 to 5"),
        ({"pair": 1, "score": 1.5}, "score=1.5: it lies in [0, 1]"),
        ({"pair": 1, "score": float("nan")}, "score=nan: it lies in [0, 1]"),
        ({"pair": 0, "score": 0.5}, "pair=0: it is there already"),
        ({"pair": 1, "score": 10**400}, "pair=1, score=1000"),
        ({"pair": 1, "score": 0.5, "reasons": 5}, "reasons=5: it is text, or a list of texts"),
        ({"pair": 1, "score": 0.5, "reasons": ["a", None]}, "reasons=['a', None]: it is text, or a list of texts"),
    ],
    ids=str,
)
def test_a_bad_suspect_is_named(write, line, said):
    with pytest.raises(ValueError, match="suspects=") as error:
        read_suspects(write(suspect(0, 0.5), line, name="suspects.jsonl"), PAIRS)
    assert f"suspects.jsonl': line 2: {said}" in str(error.value)


@pytest.mark.parametrize("read", [read_decisions, read_suspects])
def test_a_file_that_says_nothing_is_refused(write, read):
    option = read.__name__.removeprefix("read_")
    for text in ("", "\n \n"):
        with pytest.raises(ValueError, match=f"there are no {option} in it"):
            read(write(text, name="nothing.jsonl"), PAIRS)


def test_suspects_of_other_data_are_refused(write):
    """By their ids, or by their texts; spaces, which formats treat in their own ways, are no difference."""
    spaced = suspect(1, 0.5, chosen=PAIRS[1]["chosen"].replace(" ", " \r\n") + "\n")
    assert set(read_suspects(write(spaced, name="s.jsonl"), PAIRS)) == {1}
    for strange in ({"id": "pair-7"}, {"id": None, "chosen": PAIRS[1]["rejected"]}):
        name = write(suspect(0, 0.5), suspect(1, 0.5, **strange), name="s.jsonl")
        with pytest.raises(ValueError, match=r"1 of its pairs are not those that the data have .*\(line 2\)"):
            read_suspects(name, PAIRS)


def flipped(row: dict) -> dict:
    return {"chosen": row["rejected"], "rejected": row["chosen"]}


@pytest.mark.parametrize("form", ["text", "messages"])
@pytest.mark.parametrize("tells", [("fingerprint",), ("chosen",), ("rejected", "id")], ids=str)
def test_suspects_are_held_against_the_pairs_their_order_and_their_labels(write, form, tells):
    """By each thing that a file may tell alone; where it tells none, there is nothing to hold against."""
    data = PAIRS if form == "text" else PAIRS.map(as_conversation)
    before = "" if form == "text" else "assistant:\n"
    known = [{name: f"{before}{row[name]}" for name in ("chosen", "rejected")} | {"id": row["id"]} for row in PAIRS]
    lines = [row | {"fingerprint": fingerprint(data)} for row in known]
    lines = [{"pair": pair, "score": 0.5} | {name: lines[pair][name] for name in tells} for pair in range(6)]
    name = write(*lines, name="suspects.jsonl")
    assert set(read_suspects(name, data)) == set(range(6))
    for others in (data.select(range(5, -1, -1)), data.map(flipped)):
        with pytest.raises(ValueError, match="6 of its pairs are not those that the data have in these rows"):
            read_suspects(name, others)
        assert len(read_suspects(write({"pair": 0, "score": 0.5}, name="bare.jsonl"), others)) == 1


def test_messages_may_stand_in_a_file_as_they_do_in_the_data(tmp_path):
    """A data set to which somebody added scores."""
    data = PAIRS.map(as_conversation)
    data.add_column("pair", range(6)).add_column("score", [0.5] * 6).to_parquet(tmp_path / "scored.parquet")
    assert len(read_suspects(str(tmp_path / "scored.parquet"), data)) == 6
    with pytest.raises(ValueError, match="6 of its pairs"):
        read_suspects(str(tmp_path / "scored.parquet"), data.map(flipped))


def test_files_that_are_not_there_or_of_another_kind_are_refused(tmp_path, write):
    with pytest.raises(FileNotFoundError, match=r"decisions='nothing.jsonl': there is no such file"):
        read_decisions("nothing.jsonl", PAIRS)
    with pytest.raises(ValueError, match=r"must end in .parquet or .csv or .jsonl"):
        read_suspects(write("", name="suspects.xlsx"), PAIRS)
    for ending, said in (("jsonl", "line 1: it is not UTF-8"), ("csv", "it cannot be read: .*utf-8")):
        (tmp_path / f"latin.{ending}").write_bytes('{"note": "ä"}'.encode("latin-1"))
        with pytest.raises(ValueError, match=f"latin.{ending}': {said}"):
            read_suspects(str(tmp_path / f"latin.{ending}"), PAIRS)
    (tmp_path / "half.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"suspects='.*half.parquet': it cannot be read"):
        read_suspects(str(tmp_path / "half.parquet"), PAIRS)
