"""The ranking and its files: the order, the reasons, and text that stays text in every format."""

import csv
import io
import json
import re
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from audit_data import make_log, row, two_kinds
from conftest import as_conversation
from datasets import Dataset

from trl_capo.audit.dynamics import read_dynamics
from trl_capo.audit.judgement import judge
from trl_capo.audit.suspects import SCHEMA, Ranking, cell, write_suspects
from trl_capo.audit.texts import flatten
from trl_capo.pair_log import fingerprint
from trl_capo.verdicts import read_suspects

ODD = ["=1+1", 'a,b\n"c"', "مرحبا بك", "日本\u2028語", "\x07bell\x00", "<script>alert(1)</script>", "| a | *b* | `c`"]


def make_ranking(folder, size: int = 90, names=("de", "sw", "日本"), texts: bool = True) -> tuple[Ranking, np.ndarray]:
    """Pairs of three passes, of which every third of a group has a wrong label; row 0 is never seen."""
    generator = np.random.default_rng(0)
    margins, wrong = two_kinds(generator, size, 0.25)
    rows = [
        row(pair, epoch, (1 + epoch) * margins[pair], group=names[pair % 3], group_noise_rate=0.2 + pair / 1000)
        for epoch in range(3)
        for pair in range(1, size)
    ]
    lines = [
        {
            "prompt": ODD[i % 7],
            "chosen": f"{ODD[(i + 1) % 7]} {i}",
            "rejected": ODD[(i + 2) % 7],
            "id": i,
            "is_noisy": w,
        }
        for i, w in enumerate(wrong.tolist())
    ]
    data = Dataset.from_list(lines)
    pairs = read_dynamics(make_log(folder, rows, size, fingerprint=fingerprint(data)))
    return Ranking(pairs, judge(pairs), data if texts else None), wrong[1:]


@pytest.fixture
def ranking(tmp_path) -> Ranking:
    return make_ranking(tmp_path / "log")[0]


def test_the_worst_come_first_and_wrong_labels_are_among_them(tmp_path):
    ranking, wrong = make_ranking(tmp_path)
    scores = [found["score"] for found in ranking.rows()]
    assert scores == sorted(scores, reverse=True)
    assert [found["rank"] for found in ranking.rows()] == list(range(1, 90))
    first = [found["pair"] - 1 for found in ranking.rows(0, int(wrong.sum()))]
    assert wrong[first].mean() > 0.95
    assert 0 not in {found["pair"] for found in ranking.rows()}


def test_three_files_say_the_same(ranking, tmp_path):
    worst = write_suspects(ranking, 10, tmp_path)
    table = pq.read_table(tmp_path / "suspects.parquet")
    assert table.schema.equals(SCHEMA)
    rows = table.to_pylist()
    assert len(rows) == 89
    lines = [json.loads(line) for line in (tmp_path / "suspects.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == len(worst) == 10
    with (tmp_path / "suspects.csv").open(encoding="utf-8-sig", newline="") as file:
        cells = list(csv.DictReader(file))
    assert len(cells) == 10
    for full, line, found, text in zip(rows, lines, cells, worst, strict=False):
        assert line == text
        assert {name: line[name] for name in ("pair", "id", "group", "score", "reasons", "prompt", "chosen")} == {
            name: full[name] for name in ("pair", "id", "group", "score", "reasons", "prompt", "chosen")
        }
        assert found["pair"] == str(line["pair"]) == line["id"]
        assert found["reasons"] == "; ".join(line["reasons"])
        assert found["prompt"] == cell(line["prompt"])
        assert line["prompt"] == ODD[line["pair"] % 7]


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_each_file_is_known_again_as_one_of_its_data(ranking, tmp_path, ending):
    """Also the CSV, in which formulas are quoted and control characters escaped, in texts and in ids."""
    data = ranking.data.map(lambda row: {"id": f"-{row['id']}", "chosen": f"{row['chosen']}\r\n\t- x"})
    for rows in (data, data.map(as_conversation)):
        ranking = replace(ranking, data=rows, pairs=replace(ranking.pairs, fingerprint=fingerprint(rows)))
        worst = write_suspects(ranking, 10, tmp_path)
        found = read_suspects(str(tmp_path / f"suspects.{ending}"), rows)
        assert list(found)[:10] == [row["pair"] for row in worst]
        with pytest.raises(ValueError, match="are not those that the data have in these rows"):
            read_suspects(str(tmp_path / f"suspects.{ending}"), rows.select([*range(1, 90), 0]))


def test_suspects_without_texts_are_known_by_their_fingerprint(tmp_path):
    """Of a log that does not name its data, and whose audit is not told of them."""
    data = make_ranking(tmp_path / "log")[0].data
    write_suspects(make_ranking(tmp_path / "other", texts=False)[0], 10, tmp_path)
    assert len(read_suspects(str(tmp_path / "suspects.parquet"), data)) == 89
    with pytest.raises(ValueError, match="89 of its pairs are not those that the data have in these rows"):
        read_suspects(str(tmp_path / "suspects.parquet"), data.select(range(89, -1, -1)))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_no_cell_is_a_formula_whatever_a_spreadsheet_separates_by(ranking, tmp_path, separator):
    """One with another reads what lies between quotes as cells and lines; one with several heeds the quotes."""
    data = ranking.data.map(lambda row: {"chosen": "foo;=1+1;\n=2+2;\n;\t@x,=3", "prompt": '"; =4",=5'})
    write_suspects(replace(ranking, data=data), 3, tmp_path)
    text = (tmp_path / "suspects.csv").read_bytes().decode("utf-8-sig")
    cells = [cell for line in csv.reader(io.StringIO(text, newline=""), delimiter=separator) for cell in line]
    assert not [cell for cell in cells if cell.lstrip()[:1] in tuple("=@")]
    assert text.startswith('"pair","id"')


def test_reasons_of_pairs_worked_by_hand(tmp_path):
    margins = {0: [-2.0, -4.0, -6.0], 1: [2.0, -4.0, 2.0], 2: [1.0, 2.0, 3.0], 3: [-1.0, 1.0, 3.0]}
    rows = [row(pair, epoch, values[epoch]) for epoch in range(3) for pair, values in margins.items()]
    pairs = read_dynamics(make_log(tmp_path, rows, 4))
    ranking = Ranking(pairs, judge(pairs), None)
    assert ranking.reasons(0) == [
        "the model preferred the rejected answer in all 3 passes (mean margin -4.00)",
        "it did so before it had learned from the pair (margin -2.00)",
    ]
    assert ranking.reasons(1) == [
        "the model preferred the rejected answer in 1 of 3 passes (mean margin +0.00)",
        "before it had learned from the pair it preferred the chosen one (margin +2.00)",
        "it agreed with the label and then no longer did, 1 time",
    ]
    assert ranking.reasons(2) == ["the model preferred the chosen answer in all 3 passes (mean margin +2.00)"]
    assert ranking.reasons(3)[1] == "it did so before it had learned from the pair (margin -1.00)"
    assert {found["pair"]: found["prompt"] for found in ranking.rows()} == dict.fromkeys(range(4))


@pytest.mark.parametrize(
    ("margins", "expected"),
    [
        ([0.0, -1.0, -2.0], ["the model preferred the rejected answer in 2 of 3 passes (mean margin -1.00)"]),
        ([0.0, 1.0, 2.0], ["the model preferred the chosen answer in 2 of 3 passes (mean margin +1.00)"]),
        ([0.0, 0.0, 0.0], ["the model preferred neither answer in all 3 passes (mean margin +0.00)"]),
        ([0.0], ["before it learned from the pair, the model preferred neither answer (margin +0.00)"]),
        ([-1.0], ["before it learned from the pair, the model preferred the rejected answer (margin -1.00)"]),
        ([-1.0, 0.0], ["the model preferred the rejected answer in 1 of 2 passes (mean margin -0.50)", "it did so"]),
    ],
    ids=str,
)
def test_a_tie_prefers_nothing(tmp_path, margins, expected):
    """As every pair of a first step is one: the policy is its reference there."""
    rows = [row(0, epoch, margin) for epoch, margin in enumerate(margins)]
    pairs = read_dynamics(make_log(tmp_path, rows, 1))
    reasons = Ranking(pairs, judge(pairs), None).reasons(0)
    assert len(reasons) == len(expected)
    assert all(reason.startswith(start) for reason, start in zip(reasons, expected, strict=True))


def test_the_trainings_rate_is_not_that_of_another_group_of_the_same_name(ranking):
    """'de' is all pairs of 'de' and some of 'sw', which then is the rest of it."""
    names = ranking.pairs.group_names()
    names[np.flatnonzero(names == "sw")[:5]] = "de"
    found = judge(ranking.pairs, names=names)
    rates = dict(zip(found.groups.tolist(), found.training_rates.tolist(), strict=True))
    assert np.isnan(rates["de"])
    assert {name: rates[name] for name in ("sw", "日本")} == {
        name: ranking.pairs.training_rates[name] for name in ("sw", "日本")
    }


def test_messages_become_lines():
    parts = [{"type": "image"}, {"type": "text", "text": "what is it?"}]
    call = [{"name": "f"}]
    assert flatten([{"role": "user", "content": "hi"}, {"role": "user", "content": parts}]) == (
        "user:\nhi\nuser:\n[image] what is it?"
    )
    assert flatten([{"role": "assistant", "content": None, "tool_calls": call}]) == 'assistant:\n[{"name": "f"}]'
    assert (flatten("text"), flatten(None)) == ("text", None)


def test_reasons_name_the_group_as_it_is_called(tmp_path):
    generator = np.random.default_rng(0)
    few, many = two_kinds(generator, 200, 0.1)[0], two_kinds(generator, 200, 0.4)[0]
    rows = [row(pair, 0, margin, group="de") for pair, margin in enumerate(few)]
    rows += [row(200 + pair, 0, margin, group="sw") for pair, margin in enumerate(many)]
    pairs = read_dynamics(make_log(tmp_path, rows, 400))
    found = [reason for line in Ranking(pairs, judge(pairs), None).rows() for reason in line["reasons"]]
    assert any(re.fullmatch(r"about \d+% of the labels of 'sw' look wrong", reason) for reason in found)
    assert "np." not in " ".join(found)
