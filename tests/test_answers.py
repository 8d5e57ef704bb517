"""What injected noise does to the answers of a pair: swapped, nearly tied, in a wrong language.

Every row is compared with what it was, and with what the rule allows it to become.
"""

import json

import pytest
from datasets import Dataset
from noise_data import (
    ANSWERS,
    FORMATS,
    LANGUAGES,
    conversation,
    implicit,
    implicit_conversation,
    make_data,
    noisy_rows,
    standard,
)

from trl_capo.answers import answer_start
from trl_capo.noise import flip_labels, inject_noise, replace_rejected, wrong_language_chosen


def test_a_flip_swaps_all_columns_that_are_named_after_the_answers():
    rows = [
        standard(index)
        | {"chosen_rating": 5, "rejected_rating": 1, "score_chosen": 0.5, "score_rejected": -0.5}
        | {"ref_chosen_logps": -1.0 - index, "ref_rejected_logps": -2.0 - index, "chosen_by": "x"}
        for index in range(40)
    ]
    after = flip_labels(Dataset.from_list(rows), 0.5)
    assert 0 < len(noisy_rows(after)) < 40
    for old, new in zip(rows, after, strict=True):
        one, other = ANSWERS[:: -1 if new["is_noisy"] else 1]
        for name in ("{}", "{}_rating", "score_{}", "ref_{}_logps"):
            assert new[name.format("chosen")] == old[name.format(one)]
            assert new[name.format("rejected")] == old[name.format(other)]
        assert (new["margin"], new["chosen_by"], new["id"]) == (old["margin"], "x", old["id"])


def test_what_is_known_of_a_replaced_answer_becomes_null():
    rows = [standard(index) | {"chosen_rating": 5, "rejected_rating": 1, "rating": 3} for index in range(40)]
    for kind, answer, other in (("near_tie", "rejected", "chosen"), ("wrong_language", "chosen", "rejected")):
        after = inject_noise(Dataset.from_list(rows), kind, 0.5)
        assert 0 < len(noisy_rows(after)) < 40
        for old, new in zip(rows, after, strict=True):
            assert new[f"{answer}_rating"] == (None if new["is_noisy"] else old[f"{answer}_rating"])
            assert (new[f"{other}_rating"], new["rating"]) == (old[f"{other}_rating"], 3)


def test_equal_answers_are_not_flipped_and_are_reported(caplog):
    rows = [standard(index) for index in range(40)]
    for row in rows[:20]:
        row["chosen"] = row["rejected"]
    after = flip_labels(Dataset.from_list(rows), 0.9)
    drawn = {index for index in noisy_rows(flip_labels(make_data(rows=40), 0.9)) if index >= 20}
    assert noisy_rows(after) == drawn
    assert "drawn pairs cannot be changed" in caplog.text


def test_answers_of_different_types_are_swapped_whole():
    """Messages with tool calls on one side only, whose columns have different types."""
    call = {"type": "function", "function": {"name": "say", "arguments": "{}"}}
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Do {index}"}],
            "chosen": [{"role": "assistant", "content": None, "tool_calls": [call]}],
            "rejected": [{"role": "assistant", "content": "no", "tool_calls": None}],
        }
        for index in range(20)
    ]
    after = flip_labels(Dataset.from_list(rows), 0.5)
    assert 0 < len(noisy_rows(after)) < 20
    for old, new in zip(rows, after, strict=True):
        one, other = ANSWERS[:: -1 if new["is_noisy"] else 1]
        assert (new["chosen"], new["rejected"]) == (old[one], old[other])
    assert noisy_rows(replace_rejected(Dataset.from_list(rows), 0.9)) == set()  # a tool call has no letter to double


def doubled(text: str) -> set[str]:
    return {
        text[:place] + 2 * text[place] + text[place + 1 :] for place in range(len(text)) if not text[place].isspace()
    }


USER = {"role": "user", "content": "?"}
STARTS = [
    ("Frage: gut so", "Frage: gar nicht", 7),
    ("Frage: gut so", "Frage: gut so", 13),
    ("Frage: gut", "Frage: gut so", 7),
    ("質問はい", "質問いいえ", 2),
    ("ja", "nein", 0),
    ([USER, {"role": "assistant", "content": "ja"}], [USER, {"role": "assistant", "content": "nein"}], 1),
    ([USER, USER], [USER, USER, USER], 2),
]


@pytest.mark.parametrize(("chosen", "rejected", "start"), STARTS, ids=str)
def test_an_answer_starts_where_it_differs_from_the_last_space_on_unless_there_is_a_prompt(chosen, rejected, start):
    assert answer_start(chosen, rejected, explicit=False) == start
    assert answer_start(chosen, rejected, explicit=True) == 0


SPACED = ["मेरा नाम हिन्दी है", "مرحبا بالعالم", "Tiếng Việt", "e\u0301te\u0301", " x "]
UNSPACED = ["日本語のテキスト", "ภาษาไทย", "a", "👍", "..."]


@pytest.mark.parametrize("text", SPACED + UNSPACED)
@pytest.mark.parametrize("form", ["text", "messages", "parts"])
def test_a_near_tie_is_chosen_with_one_letter_doubled_in_every_script(text, form):
    def answer(words):
        content = [{"type": "text", "text": words}] if form == "parts" else words
        later = [{"role": "assistant", "content": "first" if form == "messages" else [{"type": "text", "text": "1"}]}]
        return words if form == "text" else [*later, {"role": "assistant", "content": content}]

    rows = [{"chosen": answer(text), "rejected": answer("other")} for _ in range(50)]
    if form == "text":
        rows = [row | {"prompt": "p"} for row in rows]
    else:
        rows = [row | {"prompt": [{"role": "user", "content": answer("p")[0]["content"]}]} for row in rows]
    after = replace_rejected(Dataset.from_list(rows), 0.6)
    near = [row["rejected"] for row in after if row["is_noisy"]]
    assert len(near) > 10
    expected = [answer(words) for words in doubled(text)]
    assert all(found in expected for found in near)
    assert all(row["chosen"] == answer(text) for row in after)
    letters = {character for character in text if character.isalnum()}
    if len(letters) > 1:
        assert len({json.dumps(found) for found in near}) > 1  # not the same letter in every row


@pytest.mark.parametrize("form", [implicit, implicit_conversation])
def test_a_near_tie_leaves_a_prompt_within_the_answers_alone(form):
    before = make_data(form, 300)
    after = replace_rejected(before, 0.5)
    for index in noisy_rows(after):
        prompt = (standard if form is implicit else conversation)(index)["prompt"]
        assert after[index]["rejected"][: len(prompt)] == prompt
        own = before[index]["chosen"][len(prompt) :]
        near = after[index]["rejected"][len(prompt) :]
        if form is implicit_conversation:
            (own,), (near,) = own, near
            own, near = own["content"], near["content"]
        assert near in doubled(own)


@pytest.mark.parametrize("form", FORMATS)
def test_a_wrong_language_answers_the_same_prompt_where_one_does(form):
    """Questions that languages share: in conversations, where system messages do not count; else there are none."""
    before = make_data(form, 300)
    after = wrong_language_chosen(before, 0.5)
    assert len(noisy_rows(after)) > 100
    donors = {standard(index)["chosen"]: index for index in range(300)}
    questions = []
    for index in noisy_rows(after):
        chosen = after[index]["chosen"]
        text = chosen if isinstance(chosen, str) else chosen[-1]["content"]
        own_prompt = standard(index)["prompt"] if form is implicit else ""
        assert text.startswith(own_prompt)
        donor = donors[text[len(own_prompt) :]]
        assert standard(donor)["language"] != standard(index)["language"]
        if form is implicit_conversation:
            assert chosen[:-1] == conversation(index)["prompt"]
        questions.append(donor // 3 == index // 3)
    if form in (conversation, implicit_conversation):
        assert all(questions)
    else:
        assert not all(questions)


def test_wrong_languages_come_from_all_other_groups_and_never_from_the_pair():
    """Every German answer is also the rejected one of the Swahili pairs, which must take Japanese ones.

    Each prompt is shared by two rows of every language.
    """
    rows = [standard(index) | {"prompt": f"{index // 6}"} for index in range(300)]
    for row in rows:
        if row["language"] != "日本":
            row["chosen" if row["language"] == "de" else "rejected"] = "ja"
    after = wrong_language_chosen(Dataset.from_list(rows), 0.9)
    sources = {language: set() for language in LANGUAGES}
    for row in after:
        if row["is_noisy"]:
            sources[row["language"]].add("de" if row["chosen"] == "ja" else row["chosen"].split()[1])
    assert sources == {"de": {"sw", "日本"}, "sw": {"日本"}, "日本": {"de", "sw"}}
