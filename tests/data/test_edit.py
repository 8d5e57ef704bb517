"""Changed rows: what moves with an answer, and new folders."""

import os

import numpy as np
import pytest
from datasets import Dataset
from preference_rows import make_data, standard

from trl_capo.data import edit
from trl_capo.data.edit import EditArguments, replace_chosen, swap_answers

ROWS = np.array([1, 4, 5])


def test_columns_that_are_named_after_an_answer_move_with_it_and_become_null_when_it_is_replaced():
    more = {"chosen_rating": 5, "rejected_rating": 1, "score_chosen": 0.5, "score_rejected": -0.5, "chosen_by": "x"}
    data = Dataset.from_list([standard(index) | more for index in range(8)])
    ratings = {"chosen_rating": 1, "rejected_rating": 5, "score_chosen": -0.5, "score_rejected": 0.5}
    for row, (old, new) in enumerate(zip(data, swap_answers(data, ROWS), strict=True)):
        swapped = old | ratings | {"chosen": old["rejected"], "rejected": old["chosen"]}
        assert new == (swapped if row in ROWS else old)
    changed = replace_chosen(data, ROWS, ["a", "b", "c"])
    assert changed["chosen"][4:6] == ["b", "c"]
    assert changed["chosen_rating"][:] == [5, None, 5, 5, None, None, 5, 5]
    assert changed["rejected_rating"][:] == [1] * 8


@pytest.mark.parametrize("arguments", ["{}", {"word": 1}], ids=["text", "mapping"])
def test_answers_whose_messages_have_other_keys_are_swapped_whole(arguments):
    call = {"type": "function", "function": {"name": "say", "arguments": arguments}}
    row = {"chosen": [{"role": "assistant", "content": None, "tool_calls": [call]}]}
    row |= {"prompt": "p", "rejected": [{"role": "assistant", "content": "no"}]}
    swapped = swap_answers(Dataset.from_list([row] * 8), ROWS)
    assert swapped[1]["rejected"] == row["chosen"]
    assert swapped[1]["chosen"] == [{"role": "assistant", "content": "no", "tool_calls": None}]
    assert swapped[0]["chosen"] == row["chosen"]
    assert swap_answers(swapped, ROWS)["rejected"][:] == [swapped[0]["rejected"]] * 8


def test_a_data_set_is_never_written_over_something_and_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    with pytest.raises(ValueError, match="output_dir='.*full' exists"):
        edit.load_splits(EditArguments("data", str(tmp_path / "full")))

    def stop(*_):
        assert len(os.listdir(tmp_path)) == 2
        raise KeyboardInterrupt

    monkeypatch.setattr(edit.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        edit.save_splits(EditArguments("data", str(tmp_path / "out")), {"train": make_data(rows=3)}, {"a.json": {}})
    assert os.listdir(tmp_path) == ["full"]
