"""Lengths in tokens: a byte tokenizer makes them known without it."""

import numpy as np
import pytest
from conftest import as_conversation, byte_tokenizer, make_pairs
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from trl_capo.data.tokenise import ALL_PAIRS, length_table, length_warnings, measure_lengths, tokenise_rows


def measured(data, labels="language", max_length=None):
    return measure_lengths(
        data, None if labels is None else data[labels][:], byte_tokenizer(), "tiny", max_length, "pairs"
    )


def pairs_of(sizes: dict[str, list[int]]) -> Dataset:
    rows = [
        {"prompt": "p", "chosen": "é" * (size // 2) if name == "é" else "a" * size, "rejected": "", "language": name}
        for name, lengths in sizes.items()
        for size in lengths
    ]
    return Dataset.from_list(rows)


def test_a_length_is_the_bytes_of_prompt_and_longer_answer_and_one_token_for_the_end():
    data = make_pairs()
    found = measured(data)
    sizes = [len((row["prompt"] + max(row["chosen"], row["rejected"], key=len)).encode()) + 1 for row in data]
    everything = found.loc[ALL_PAIRS]
    assert everything[["pairs", "longest", "median"]].tolist() == [24, max(sizes), sorted(sizes)[12]]
    assert found.loc["sw", "longest"] == max(sizes[1::3])
    answers = [row[side] for row in data for side in ("chosen", "rejected")]
    assert everything["cost"] == sum(len(text.encode()) + 1 for text in answers) / sum(map(len, answers))


def test_conversations_are_measured_in_their_template():
    """The template writes `<s>role: content</s>`; a completion is its content and `</s>`, in bytes 6 + 1 and 1 + 1."""
    row = {"prompt": "hi", "chosen": "日本", "rejected": "x"}
    found = measured(Dataset.from_list([as_conversation(row)]), None).loc[ALL_PAIRS]
    assert found["longest"] == 2 + len("user: hi") + 1 + len("assistant: ") + 7
    assert found["cost"] == (7 + 2) / len("日本x")


SHOWN = "{{ m.role }}: {{ m.content or '' }}{% for c in m.tool_calls or [] %}CALL{% endfor %}\n"
NAME, ALL = (SHOWN.replace("CALL", f"{{{{ c.function{shown} | tojson }}}}") for shown in (".name", ""))
KNOWN = f"{{% if m.role in ('user', 'assistant') %}}{ALL}{{% endif %}}"
CALL = [{"type": "function", "function": {"name": "find", "arguments": {"city": "Bern"}}}]
ASK, CALLS, PARTS = [("user", "q")], [("assistant", None, CALL)], [{"type": "text", "text": "q"}]
CONTENT = "leaves out `content` of 'assistant' messages, such as in row 1"
BESIDE = ALL.replace("m.content", "not m.tool_calls and m.content")
TEMPLATES = {  # a template, the messages of prompt and chosen answer, and what is wrong with them
    "all is shown": (ALL, [("system", "s"), *ASK], CALLS, ""),
    "system": (KNOWN, [("system", "s"), *ASK], [("assistant", "a")], "leaves out `content` of 'system' messages"),
    "beside calls": (BESIDE, ASK, [("assistant", "a", CALL)], CONTENT),
    "unknown role": (KNOWN, ASK, [("gpt", "a")], "row 1 of d: its chat template leaves out `content` of 'gpt'"),
    "calls": (SHOWN, [("user", "CALL find")], CALLS, "leaves out `tool_calls.function.name`"),
    "arguments": (NAME, ASK, CALLS, "`tool_calls.function.arguments.city` of 'assistant'"),
    "parts": (ALL, [("user", PARTS)], [("assistant", "a")], "writes content in parts as Python code"),
}


@pytest.mark.parametrize("case", TEMPLATES)
def test_what_a_chat_template_leaves_out_is_named_also_after_the_rows_that_are_tokenised(case, caplog):
    """It is an error where the answers lack it, and else a warning; row 0 has nothing of the kind."""
    template, prompt, chosen, problem = TEMPLATES[case]
    tokenizer, given = byte_tokenizer(), []
    tokenizer.chat_template = f"{{% for m in messages %}}{template}{{% endfor %}}"
    for messages in (prompt, chosen):
        given.append([dict(zip(("role", "content", "tool_calls"), message, strict=False)) for message in messages])
    rows = [as_conversation({"prompt": "q", "chosen": "a", "rejected": "b"})] * 2
    rows[1] = {"prompt": given[0], "chosen": given[1], "rejected": rows[0]["rejected"]}
    try:
        assert len(list(tokenise_rows(rows, tokenizer, "m", "d", 1))) == 1
        found = caplog.text
    except ValueError as error:
        found = str(error)
    assert problem in found
    assert bool(found) == bool(problem)
    assert ("cannot tokenise row 1 of d" in found) == (case not in ("all is shown", "system", "beside calls"))


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_cut_and_dropped_pairs_are_those_of_dpo_trainer(make_args, model_dir, mode):
    """The prompts have 12 to 17 bytes, so that the trainer drops some pairs and its collator cuts others."""
    data, limit = make_pairs(), 16
    args = make_args(DPOConfig, max_length=limit, truncation_mode=mode)
    trainer = DPOTrainer(model_dir, args=args, train_dataset=data)
    found = measured(data, max_length=limit).loc[ALL_PAIRS]
    dropped = found["too_long"] if mode == "keep_start" else 0
    assert len(trainer.train_dataset) == len(data) - dropped
    rows = list(trainer.train_dataset)
    whole = [max(len(row["prompt_ids"] + row[side]) for side in ("chosen_ids", "rejected_ids")) for row in rows]
    kept = trainer.data_collator(rows)["attention_mask"].sum(1).view(2, -1).amax(0).numpy()
    assert found["cut"] * len(data) == pytest.approx((kept < np.array(whole)).sum() + dropped)
    assert found["too_long"] > 0


def test_the_table_begins_with_the_most_cut_group_and_compares_tokens_per_character():
    """The lengths are those given + 2, and the answers together have one token more; `é` has two bytes."""
    rows = length_table(measured(pairs_of({"a": [8, 18, 28, 1998], "é": [98]}), max_length=50), "language")
    assert [row[0] for row in rows] == ["language", "é", "a", "all pairs"]
    assert rows[1][1:] == ["1", "100", "100", "100", "100.0", f"{100 / 49:.2f}", f"{(100 / 49) / (2060 / 2052):.1f}"]
    assert rows[3][1:] == ["5", "30", "2,000", "2,000", "40.0", f"{2160 / 2101:.2f}", ""]


def test_warnings_name_the_groups_that_lose_and_a_length_that_would_do():
    data = pairs_of({"a": [8] * 9 + [98], "b": [8] * 40})
    (warning,) = length_warnings(measured(data, max_length=50), 50, drops=True)
    assert "(a 10.0%, all pairs 2.0%)" in warning
    assert "max_length=100" in warning
    assert length_warnings(measured(data, max_length=100), 100, drops=True) == []
