"""The ranking and its files: order, reasons, and text that stays text in every format."""

import json

import pandas as pd
import pyarrow.parquet as pq
import pytest
from audit_logs import ODD, make_log, odd_pairs, row

from trl_capo.audit.mislabels import estimate_label_errors, read_dynamics
from trl_capo.audit.suspects import SCHEMA, TEXTS, list_suspects, reasons, render_messages, write_suspects
from trl_capo.common.text import spreadsheet_cell


def test_three_files_have_the_same_content(tmp_path):
    dynamics, data, _ = odd_pairs(tmp_path / "log")
    errors = estimate_label_errors(dynamics)
    assert [list_suspects(errors, None, "?")[name].null_count for name in (*TEXTS, "id")] == [89] * 4
    worst = write_suspects(list_suspects(errors, data, "print"), 10, tmp_path)
    table = pq.read_table(tmp_path / "suspects.parquet")
    assert table.schema.equals(SCHEMA)
    assert table["rank"].to_pylist() == list(range(1, 90))
    lines = [json.loads(line) for line in (tmp_path / "suspects.jsonl").read_bytes().splitlines()]
    cells = pd.read_csv(tmp_path / "suspects.csv", dtype=str, encoding="utf-8-sig").to_dict("records")
    assert lines == worst == table.to_pylist()[:10]
    assert list(cells[0]) == SCHEMA.names
    for line, found in zip(lines, cells, strict=True):
        assert line["prompt"] == ODD[line["pair"] % 7]
        assert found["pair"] == str(line["pair"]) == line["id"]
        assert all(found[name] == spreadsheet_cell(line[name]) for name in (*TEXTS, "reasons"))
        assert float(found["score"]) == line["score"]


@pytest.mark.parametrize(
    ("margins", "expected"),
    [
        ([-2.0, -4.0, -6.0], ["rejected answer in all 3 passes (mean margin -4.00)", "answer (margin -2.00)"]),
        ([2.0, -4.0, 2.0], ["rejected answer in 1 of 3", "the chosen answer (margin +2.00)", "disagreed, 1 time"]),
        ([1.0, 2.0, 3.0], ["the model preferred the chosen answer in all 3 passes (mean margin +2.00)"]),
        ([0.0, -1.0, -2.0], ["the model preferred the rejected answer in 2 of 3 passes (mean margin -1.00)"]),
        ([0.0, 0.0], ["the model preferred neither answer in all 2 passes (mean margin +0.00)"]),
        ([-1.0], ["before it learned from the pair, the model preferred the rejected answer (margin -1.00)"]),
    ],
    ids=str,
)
def test_reasons_worked_by_hand(tmp_path, margins, expected):
    """A margin of 0, as in the first step, in which the policy is its reference, is no preference."""
    dynamics = read_dynamics(make_log(tmp_path / "log", [row(0, epoch, m) for epoch, m in enumerate(margins)], 1))
    (pair,) = dynamics.pairs.itertuples()
    assert all(text in reason for text, reason in zip(expected, reasons(pair), strict=True))
    assert reasons(pair, 0.4)[len(expected) :] == ["about 40% of the labels of '' look wrong"]


def test_messages_become_lines():
    parts = [{"type": "image"}, {"type": "text", "text": "what is it?"}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    found = render_messages([{"role": "user", "content": "hi"}, {"role": "user", "content": parts}, call])
    assert found == 'user:\nhi\nuser:\n[image] what is it?\nassistant:\n[{"name": "f"}]'
