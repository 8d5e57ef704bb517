"""Lengths in tokens: with a tokenizer of bytes they are known without it."""

import numpy as np
import pytest
from conftest import as_conversation, byte_tokenizer, make_pairs
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from trl_capo.statistics import ALL_PAIRS
from trl_capo.token_lengths import length_rows, length_warnings, measure_lengths


def measured(data, labels="language", max_length=None, drops=True):
    labels = None if labels is None else data[labels][:]
    return measure_lengths(data, labels, byte_tokenizer(), "tiny", max_length=max_length, drops=drops)


def test_a_length_is_the_bytes_of_prompt_and_longer_answer_and_one_token_for_the_end():
    data = make_pairs()
    found = measured(data)
    assert list(found) == ["de", "sw", "日本", ALL_PAIRS]
    sizes = {
        row["id"]: len((row["prompt"] + max(row["chosen"], row["rejected"], key=len)).encode()) + 1 for row in data
    }
    assert sorted(found[ALL_PAIRS].pairs) == sorted(sizes.values())
    assert found["sw"].pairs == [sizes[row["id"]] for row in data if row["language"] == "sw"]
    answers = [row[side] for row in data for side in ("chosen", "rejected")]
    assert found[ALL_PAIRS].characters == sum(map(len, answers))
    assert found[ALL_PAIRS].tokens == sum(len(text.encode()) + 1 for text in answers)


def test_conversations_are_measured_in_their_template():
    """`<s>role: content</s>`: the template's letters and two tokens; characters are those of the contents alone."""
    row = {"prompt": "hi", "chosen": "日本", "rejected": "x"}
    found = measured(Dataset.from_list([as_conversation(row)]), None)[ALL_PAIRS]
    prompt = 2 + len("user: hi")
    assert found.pairs == [prompt + 2 + len("assistant: 日本".encode())]
    assert found.characters == 3


def test_an_implicit_prompt_counts_with_both_answers():
    rows = [{"chosen": "say: yes", "rejected": "say: no"}]
    found = measured(Dataset.from_list(rows), None)[ALL_PAIRS]
    assert found.pairs == [len("say: yes") + 1]
    assert (found.tokens, found.characters) == (len("say: yes") + 1 + len("say: no") + 1, len("say: yessay: no"))


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_cut_and_dropped_pairs_are_those_of_dpo_trainer(make_args, model_dir, mode):
    """The prompts have 12 to 17 bytes: what the trainer drops, and what its collator cuts."""
    data, limit = make_pairs(), 16
    args = make_args(DPOConfig, max_length=limit, truncation_mode=mode)
    trainer = DPOTrainer(model_dir, args=args, train_dataset=data)
    found = measured(data, max_length=limit, drops=mode == "keep_start")[ALL_PAIRS]
    assert len(trainer.train_dataset) == len(data) - found.dropped
    whole = [
        max(len(row["prompt_ids"] + row[side]) for side in ("chosen_ids", "rejected_ids"))
        for row in trainer.train_dataset
    ]
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(len(whole))])
    kept = batch["attention_mask"].sum(1).view(2, -1).amax(0)
    cut = int((kept.numpy() < np.array(whole)).sum())
    assert found.cut(limit) * len(data) == pytest.approx(cut + found.dropped)
    assert (found.dropped > 0) == (mode == "keep_start")
    assert cut > 0


def pairs_of(sizes: dict[str, list[int]]) -> Dataset:
    rows = [
        {"prompt": "p", "chosen": "é" * (size // 2) if name == "é" else "a" * size, "rejected": "", "language": name}
        for name, lengths in sizes.items()
        for size in lengths
    ]
    return Dataset.from_list(rows)


def test_the_table_has_the_most_cut_group_first_and_tokens_per_character_against_the_best():
    """Lengths are those given + 2; `é` has two bytes: 98 tokens for 49 characters; answers end in one token more."""
    found = measured(pairs_of({"a": [8, 18, 28, 1998], "é": [98]}), max_length=50)
    rows = length_rows(found, "language", 50)
    assert [row[0] for row in rows] == ["language", "é", "a", "all pairs"]
    assert rows[1][1:] == ["1", "100", "100", "100", "100.0", f"{100 / 49:.2f}", f"{(100 / 49) / (2060 / 2052):.1f}"]
    assert rows[2][1:] == ["4", "20", "30", "2,000", "25.0", "1.00", "1.0"]
    assert rows[3][1:] == ["5", "30", "100", "2,000", "40.0", f"{2160 / 2101:.2f}", ""]


def test_warnings_name_the_groups_that_lose_and_a_length_that_would_do():
    data = pairs_of({"a": [8] * 9 + [98], "b": [8] * 40})
    (warning,) = length_warnings(measured(data, max_length=50), 50)
    assert "cuts 2.0% of the pairs (a 10.0%)" in warning
    assert "A max_length of 100 would" in warning
    for fine in (100, None):
        assert length_warnings(measured(data, max_length=fine), fine) == []
    long_prompt = Dataset.from_list(
        [{"prompt": "p" * 60, "chosen": "a", "rejected": "b", "language": "b"}] + data.to_list()
    )
    _, dropped = length_warnings(measured(long_prompt, max_length=50), 50)
    assert "1 of 51 pairs (b 1) are left out" in dropped


def test_very_many_groups_are_shown_in_part():
    data = pairs_of({f"group {index:03}": [5] * (1 + index) for index in range(40)})
    rows = length_rows(measured(data), "language", None)
    assert len(rows) == 26
    assert {row[0] for row in rows[1:-1]} == {f"group {index:03}" for index in range(16, 40)}
