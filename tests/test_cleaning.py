"""A data set mended by decisions and scores: every row against one that was worked by hand."""

import pytest
from conftest import as_conversation, make_pairs
from datasets import Dataset

from trl_capo.cleaning import Rules, clean
from trl_capo.verdicts import Decision, Suspect


def rows(count: int = 10) -> Dataset:
    """Pairs with columns that belong to the answers, and some that do not."""
    more = {
        "chosen_rating": 5,
        "rejected_rating": 1,
        "ref_chosen_logps": -2.0,
        "ref_rejected_logps": -3.0,
        "margin": 4,
    }
    return Dataset.from_list([row | more | {"is_noisy": index == 1} for index, row in enumerate(make_pairs(count))])


def flipped(row: dict) -> dict:
    swapped = {"chosen": row["rejected"], "rejected": row["chosen"], "chosen_rating": 1, "rejected_rating": 5}
    return row | swapped | {"ref_chosen_logps": -3.0, "ref_rejected_logps": -2.0, "is_noisy": not row["is_noisy"]}


# Ten pairs; row 7 is the worst, and 4 the next. Nothing is known of rows 8 and 9.
SCORES = {7: 0.97, 4: 0.9, 0: 0.6, 1: 0.5, 2: 0.3, 3: 0.25, 5: 0.1, 6: 0.0}
SUSPECTS = {row: Suspect(score, ["always contradicted"] if row == 7 else []) for row, score in SCORES.items()}


def test_decisions_give_exactly_the_expected_rows():
    data = rows()
    decisions = {2: Decision("flip", None), 5: Decision("drop", "not a sentence"), 7: Decision("keep", None)}
    cleaned = clean(data, decisions=decisions)
    expected = data.to_list()
    expected[2] = flipped(expected[2])
    del expected[5]
    assert cleaned.dataset.to_list() == expected
    assert cleaned.dataset.features == data.features
    assert cleaned.done == ["keep", "keep", "flip", "keep", "keep", "drop", "keep", "keep", "keep", "keep"]
    assert cleaned.changes == [
        {"pair": 2, "id": "pair-2", "decision": "flip", "why": "decided by hand", "score": None},
        {"pair": 5, "id": "pair-5", "decision": "drop", "why": "decided by hand: not a sentence", "score": None},
    ]


def test_equal_answers_are_flipped_with_what_belongs_to_them():
    data = rows().map(
        lambda row, index: {"rejected": row["chosen"] if index == 4 else row["rejected"]}, with_indices=True
    )
    cleaned = clean(data, decisions={4: Decision("flip", None)})
    assert cleaned.dataset[4] == flipped(data[4])
    assert cleaned.done[4] == "flip"


def test_only_a_truth_of_true_and_false_turns_with_its_label():
    data = rows().remove_columns("is_noisy")
    flips = {row: Decision("flip", None) for row in (0, 1, 2)}
    for values, after in (
        ([True, None, False], [False, None, True]),
        ([1, 0, 2], [1, 0, 2]),
        (["no"] * 3, ["no"] * 3),
    ):
        marked = data.add_column("is_noisy", values + values[:1] * 7)
        assert clean(marked, decisions=flips).dataset["is_noisy"][:] == after + values[:1] * 7


@pytest.mark.parametrize("form", [lambda row: row, as_conversation])
def test_flipping_twice_gives_the_data_back(form):
    data = rows().map(form)
    decisions = {row: Decision("flip", None) for row in (0, 3, 9)}
    once = clean(data, decisions=decisions).dataset
    assert [row for row in range(10) if once[row] != data[row]] == [0, 3, 9]
    assert clean(once, decisions=decisions).dataset.to_list() == data.to_list()


@pytest.mark.parametrize(
    ("rules", "dropped", "turned"),
    [
        ({"drop_top": "20%"}, {7, 4}, set()),
        ({"drop_top": "29.9%"}, {7, 4}, set()),  # two pairs and 99 %
        ({"drop_top": "3"}, {7, 4, 0}, set()),
        ({"flip_top": "10%"}, set(), {7}),
        ({"flip_top": "10%", "drop_top": "30%"}, {4, 0}, {7}),
        ({"drop_above": 0.5}, {7, 4, 0}, set()),  # not the score of 0.5 itself
        ({"drop_above": 0.0}, {7, 4, 0, 1, 2, 3, 5}, set()),
        ({"flip_above": 0.95, "drop_above": 0.55}, {4, 0}, {7}),
        ({"flip_above": 0.95, "drop_top": 2}, {4}, {7}),
        ({"flip_above": 0.99}, set(), set()),
    ],
    ids=str,
)
def test_rules_change_exactly_the_worst(rules, dropped, turned):
    data = rows()
    cleaned = clean(data, suspects=SUSPECTS, rules=Rules(**rules))
    assert {row for row, what in enumerate(cleaned.done) if what == "drop"} == dropped
    assert {row for row, what in enumerate(cleaned.done) if what == "flip"} == turned
    before = [flipped(row) if index in turned else row for index, row in enumerate(data)]
    assert cleaned.dataset.to_list() == [row for index, row in enumerate(before) if index not in dropped]
    assert {change["pair"]: change["score"] for change in cleaned.changes} == {
        row: SCORES[row] for row in dropped | turned
    }


def test_every_change_has_its_reason():
    cleaned = clean(rows(), suspects=SUSPECTS, rules=Rules(flip_top="10%", drop_above=0.8))
    assert [change["why"] for change in cleaned.changes] == [
        "drop_above=0.8",
        "flip_top=10%, the worst 1 of 10 pairs; always contradicted",
    ]


def test_decisions_outrank_rules():
    decisions = {7: Decision("keep", None), 4: Decision("flip", None), 6: Decision("drop", None)}
    cleaned = clean(rows(), decisions=decisions, suspects=SUSPECTS, rules=Rules(drop_top="30%"))
    assert {row: what for row, what in enumerate(cleaned.done) if what != "keep"} == {4: "flip", 0: "drop", 6: "drop"}


def test_a_weight_is_the_expected_sign_of_the_label():
    """1 - 2 p and at least 0; a flipped label is wrong with 1 - p. What a human saw, or nobody, has weight 1."""
    rules = Rules(weight=True, flip_above=0.95, drop_above=0.7)
    cleaned = clean(rows(), suspects=SUSPECTS, rules=rules, decisions={0: Decision("keep", None)})
    assert cleaned.dataset["id"][:] == [f"pair-{row}" for row in (0, 1, 2, 3, 5, 6, 7, 8, 9)]
    expected = [1.0, 0.0, 0.4, 0.5, 0.8, 1.0, 0.94, 1.0, 1.0]
    assert cleaned.dataset["weight"][:] == pytest.approx(expected, abs=1e-12)
    assert cleaned.dataset.remove_columns("weight")[6] == flipped(rows()[7])


def test_a_label_that_is_more_likely_wrong_has_no_weight():
    cleaned = clean(rows(), suspects=SUSPECTS, rules=Rules(weight=True))
    expected = [0.0, 0.0, 0.4, 0.5, 0.0, 0.8, 1.0, 0.0, 1.0, 1.0]
    assert cleaned.dataset["weight"][:] == pytest.approx(expected, abs=1e-12)
    assert cleaned.changes == []


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"drop_top": "0%"}, "drop_top='0%': give a share"),
        ({"drop_top": "100%"}, "drop_top='100%': give a share"),
        ({"drop_top": "-3"}, "drop_top='-3': give a share"),
        ({"flip_top": "0.1"}, "flip_top='0.1': give a share"),
        ({"flip_top": "nan%"}, "flip_top='nan%': give a share"),
        ({"flip_top": "ten"}, "flip_top='ten': give a share"),
        ({"drop_above": 1.0}, "drop_above=1.0: scores lie in"),
        ({"flip_above": float("nan")}, "flip_above=nan: scores lie in"),
        ({"drop_top": "10%", "drop_above": 0.3}, "two rules for what to drop"),
        ({"flip_top": "10%", "drop_top": "10%"}, "all that would be dropped are flipped"),
        ({"flip_above": 0.4, "drop_above": 0.5}, "all that would be dropped are flipped"),
        ({"drop_top": "5%"}, "that is 0 of 10 pairs"),
        ({"drop_top": "9"}, "that is 9 of 10 pairs, and there are 8 suspects"),
    ],
    ids=str,
)
def test_rules_that_cannot_be_followed_are_refused(rules, said):
    with pytest.raises(ValueError, match=said):
        clean(rows(), suspects=SUSPECTS, rules=Rules(**rules))


def test_something_must_be_left():
    with pytest.raises(ValueError, match="every pair would be dropped"):
        clean(rows(2), decisions={0: Decision("drop", None), 1: Decision("drop", None)})
    sure = {row: Suspect(0.9, []) for row in range(2)}
    with pytest.raises(ValueError, match="weight: it would be 0 for every pair"):
        clean(rows(2), suspects=sure, rules=Rules(weight=True))
    with pytest.raises(ValueError, match="the data have a column 'weight' already"):
        clean(rows(2).add_column("weight", [1, 1]), suspects=sure, rules=Rules(weight=True))
