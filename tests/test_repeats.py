"""Repeated and contradicting pairs, by hand."""

from conftest import as_conversation
from datasets import Dataset

from trl_capo.repeats import find_repeats, repeat_warnings

ROWS = [
    {"prompt": "p", "chosen": "a", "rejected": "b"},
    {"prompt": "q", "chosen": "a", "rejected": "b"},  # another prompt
    {"prompt": "p", "chosen": "a", "rejected": "b"},  # 0 again
    {"prompt": "p", "chosen": "b", "rejected": "a"},  # 0 the other way round
    {"prompt": "p", "chosen": "b", "rejected": "a"},  # 3 again
    {"prompt": "p", "chosen": "c", "rejected": "c"},  # neither
    {"prompt": "q", "chosen": "b", "rejected": "a"},  # 1 the other way round
    {"prompt": "p", "chosen": "c", "rejected": "c"},  # 5 again
]


def test_in_text_messages_and_without_prompts():
    implicit = [{key: row["prompt"] + row[key] for key in ("chosen", "rejected")} for row in ROWS]
    for rows in (ROWS, [as_conversation(row) for row in ROWS], implicit):
        assert find_repeats(rows) == ([2, 4, 7], [3, 6])


def test_a_line_a_kind():
    repeats, contradictions = repeat_warnings(Dataset.from_list(ROWS))
    assert "3 of 8 rows: repeats" in repeats
    assert "(row 2, 4, 7)" in repeats
    assert "2 of 8 rows: contradicts" in contradictions
    assert "(row 3, 6)" in contradictions
    assert repeat_warnings(Dataset.from_list(ROWS[:2])) == []
    assert "(row 1, 2, 3, 4, 5, ...)" in repeat_warnings(Dataset.from_list(ROWS[:1] * 8))[0]
