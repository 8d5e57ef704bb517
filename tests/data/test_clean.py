"""Cleaning by decisions and scores: every row against one that was worked by hand, and the command."""

import json
import logging
from datetime import datetime

import pandas as pd
import pytest
from conftest import make_pairs, run_main
from datasets import Dataset, DatasetDict, load_from_disk

from trl_capo.common.fingerprint import fingerprint
from trl_capo.data.clean import CleanArguments, clean, main, read_table

PAIRS = make_pairs(8)
# Ten pairs; row 7 is the worst, and 4 the next. Rows 8 and 9 have no score.
SCORES = {7: 0.97, 4: 0.9, 0: 0.6, 1: 0.5, 2: 0.3, 3: 0.25, 5: 0.1, 6: 0.0}
SUSPECTS = pd.DataFrame({"score": SCORES.values()}, SCORES.keys())


def rows(count: int = 10) -> Dataset:
    """Pairs with columns that belong to the answers, and some that do not."""
    more = {"chosen_rating": 5, "rejected_rating": 1, "margin": 4}
    return Dataset.from_list([row | more | {"is_noisy": index == 1} for index, row in enumerate(make_pairs(count))])


def flipped(row: dict) -> dict:
    swapped = {"chosen": row["rejected"], "rejected": row["chosen"], "chosen_rating": 1, "rejected_rating": 5}
    return row | swapped | {"is_noisy": not row["is_noisy"]}


def test_decisions_give_exactly_the_expected_rows_which_are_trusted_from_then_on_if_asked():
    data, decisions = rows(), pd.DataFrame({"decision": {2: "flip", 5: "drop", 7: "keep"}})
    cleaned, _ = clean(data, decisions=decisions)
    expected = data.to_list()
    expected[2] = flipped(expected[2])
    del expected[5]
    assert cleaned.to_list() == expected
    assert cleaned.features == data.features
    flip = pd.DataFrame({"decision": {2: "flip"}})
    assert clean(clean(data, decisions=flip)[0], decisions=flip)[0].to_list() == data.to_list()
    rules = CleanArguments(trusted=True)
    first, _ = clean(data, decisions=decisions, rules=rules)
    assert first["trusted"][:] == [index in (2, 7) for index in range(10) if index != 5]
    again, _ = clean(first, decisions=pd.DataFrame({"decision": {0: "keep"}}), rules=rules)
    assert again["trusted"][:] == [index in (0, 2, 7) for index in range(10) if index != 5]
    assert again["trusted_swapped"][:] == [False, None, True, None, None, None, False, None, None]
    assert clean(again, decisions=flip, rules=rules)[0]["trusted_swapped"][2] is False


RULES = [
    ({"drop_top": "29.9%"}, {7, 4}, set()),  # two pairs and 99 %
    ({"drop_top": "3"}, {7, 4, 0}, set()),
    ({"flip_top": "10%", "drop_top": "30%"}, {4, 0}, {7}),
    ({"drop_above": 0.5}, {7, 4, 0}, set()),  # not the score of 0.5 itself
    ({"flip_above": 0.95, "drop_top": 2}, {4}, {7}),
    ({"flip_above": 0.99}, set(), set()),
]


@pytest.mark.parametrize(("rules", "dropped", "turned"), RULES, ids=str)
def test_rules_change_exactly_the_worst(rules, dropped, turned):
    data = rows()
    cleaned, _ = clean(data, suspects=SUSPECTS, rules=CleanArguments(**rules))
    before = [flipped(row) if index in turned else row for index, row in enumerate(data)]
    assert cleaned.to_list() == [row for index, row in enumerate(before) if index not in dropped]


def test_a_weight_is_the_expected_sign_of_the_label():
    """1 - 2 p and at least 0; a flipped label is wrong with 1 - p. What a human saw, or has no score, has weight 1."""
    rules = CleanArguments(weight=True, flip_above=0.95, drop_above=0.7)
    kept = pd.DataFrame({"decision": {0: "keep"}})
    cleaned, _ = clean(rows(), suspects=SUSPECTS, rules=rules, decisions=kept)
    assert cleaned["id"][:] == [f"pair-{row}" for row in (0, 1, 2, 3, 5, 6, 7, 8, 9)]
    assert cleaned["weight"][:] == pytest.approx([1.0, 0.0, 0.4, 0.5, 0.8, 1.0, 0.94, 1.0, 1.0], abs=1e-12)


@pytest.mark.parametrize("rule", [("drop_top", "0%"), ("flip_top", "0.1"), ("drop_top", "9"), ("drop_above", 1.0)])
def test_rules_that_cannot_be_followed_are_refused(rule):
    with pytest.raises(ValueError, match=f"{rule[0]}={rule[1]!r}"):
        clean(rows(), suspects=SUSPECTS, rules=CleanArguments(**dict([rule])))


def test_something_must_be_left():
    with pytest.raises(ValueError, match="every pair would be dropped"):
        clean(rows(2), decisions=pd.DataFrame({"decision": ["drop", "drop"]}))
    for data in (rows(2), rows(2).add_column("weight", [1, 1])):
        with pytest.raises(ValueError, match="weight"):
            clean(data, suspects=pd.DataFrame({"score": [0.9, 0.9]}), rules=CleanArguments(weight=True))


WRITERS = {
    "csv": lambda table, path: table.to_csv(path, index=False, encoding="utf-8-sig"),
    "jsonl": lambda table, path: table.to_json(path, orient="records", lines=True),
    "parquet": pd.DataFrame.to_parquet,
}


@pytest.mark.parametrize("ending", WRITERS)
def test_the_command_writes_the_data_and_a_log_of_every_change(tmp_path, ending):
    """The worst quarter is 6 and 1; 6 is kept by hand. Ids that are no text become text; other splits are copied."""
    ids = [datetime(2024, 1, 1 + row) for row in range(8)]
    pairs = PAIRS.remove_columns("id").add_column("id", ids)
    DatasetDict(train=pairs, extra=PAIRS).save_to_disk(tmp_path / "splits")
    decided = [(0, "drop", "kein Satz"), (2, "drop", None), (2, "flip", None), (6, "keep", None)]
    reasons = "seldom agreed" if ending == "csv" else [["seldom agreed"]] * 4
    tables = {
        "decisions": pd.DataFrame(decided, columns=["pair", "decision", "note"]),
        "suspects": pd.DataFrame({"pair": [1, 4, 5, 6], "score": [0.95, 0.7, 0.2, 0.99], "reasons": reasons}),
    }
    words = ["--dataset_name", tmp_path / "splits", "--output_dir", tmp_path / "out", "--drop_top", "25%", "--weight"]
    for name, table in tables.items():
        WRITERS[ending](table.assign(fingerprint=fingerprint(PAIRS)), tmp_path / f"{name}.{ending}")
        words += [f"--{name}", tmp_path / f"{name}.{ending}"]
    code, output, errors = run_main(main, *words)
    assert code == 0, errors
    written, before = load_from_disk(tmp_path / "out"), pairs.to_list()
    turned = before[2] | {"chosen": before[2]["rejected"], "rejected": before[2]["chosen"]}
    assert written["train"].remove_columns("weight").to_list() == [turned, *before[3:]]
    assert written["train"]["weight"][:] == pytest.approx([1.0, 1.0, 0.0, 0.6, 1.0, 1.0])
    assert written["extra"].to_list() == PAIRS.to_list()
    assert ["all", "pairs", "8", "5", "1", "2"] in [line.split() for line in output.splitlines()]
    rule = "drop_top=25%, the worst 2 of 8 pairs; seldom agreed"
    assert [json.loads(line) for line in (tmp_path / "out" / "changes.jsonl").read_text().splitlines()] == [
        {"pair": 0, "id": str(ids[0]), "decision": "drop", "why": "decided by hand: kein Satz", "score": None},
        {"pair": 1, "id": str(ids[1]), "decision": "drop", "why": rule, "score": 0.95},
        {"pair": 2, "id": str(ids[2]), "decision": "flip", "why": "decided by hand", "score": None},
    ]
    record = json.loads((tmp_path / "out" / "clean.json").read_text(encoding="utf-8"))
    assert record["fingerprint"] == fingerprint(PAIRS)
    assert record["groups"]["de"] == {"pairs": 3, "keep": 2, "flip": 0, "drop": 1}


@pytest.mark.parametrize(("option", "entry"), [("decisions", {"decision": "flip"}), ("suspects", {"score": 0.5})])
def test_a_file_without_a_fingerprint_is_used_with_a_warning(tmp_path, caplog, option, entry):
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps({"pair": 7, **entry}))
    with caplog.at_level(logging.WARNING):
        assert read_table(option, str(file), PAIRS).index.tolist() == [7]
    assert "has no fingerprint" in caplog.text
    for wrong in ({"pair": 8}, {"score": 2, "decision": "delete"}):
        file.write_text(json.dumps({"pair": 7, **entry, **wrong}))
        with pytest.raises(ValueError, match="own.jsonl"):
            read_table(option, str(file), PAIRS)
