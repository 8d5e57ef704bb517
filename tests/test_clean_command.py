"""`trl-capo clean`: files in, a data set out that trains; mistakes write nothing."""

import json
import os
from datetime import datetime
from math import nan

import pytest
from conftest import logged, make_pairs
from datasets import Dataset, DatasetDict, load_from_disk

from trl_capo import CAPOTrainer, clean_command, cli, saving
from trl_capo.data import load_preference_data
from trl_capo.pair_log import fingerprint

SCORES = [0.1, 0.95, 0.3, 0.0, 0.7, 0.2, 0.99, 0.05]


@pytest.fixture
def place(tmp_path):
    """Eight pairs, decisions on three of them, and suspects."""
    pairs = make_pairs(8)
    pairs.to_json(tmp_path / "pairs.jsonl", force_ascii=False)
    decided = [(0, "drop", "no sentence"), (2, "drop", None), (2, "flip", None), (6, "keep", None)]
    lines = [{"pair": p, "fingerprint": fingerprint(pairs), "decision": d, "note": n} for p, d, n in decided]
    (tmp_path / "decisions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    suspects = [
        {"pair": index, "id": row["id"], "chosen": row["chosen"], "score": score, "reasons": ["seldom agreed"]}
        for index, (row, score) in enumerate(zip(pairs, SCORES, strict=True))
    ]
    Dataset.from_list(suspects).to_parquet(tmp_path / "suspects.parquet")
    return tmp_path


@pytest.fixture
def clean(place, capfd):
    """Exit code, output and errors of the command; options win over the data's and the output's names."""

    def call(**options) -> tuple[int, str, str]:
        given = {"dataset_name": place / "pairs.jsonl", "output_dir": place / "out"} | options
        words = [w for name, value in given.items() if value is not None for w in (f"--{name}", str(value))]
        capfd.readouterr()
        code = cli.main(["clean", *words])
        return (code, *capfd.readouterr())

    return call


def swapped(row: dict) -> dict:
    truth = {"is_noisy": not row["is_noisy"]} if "is_noisy" in row else {}
    return row | {"chosen": row["rejected"], "rejected": row["chosen"]} | truth


@pytest.mark.parametrize("kind", [lambda i: datetime(2024, 1, 1 + i), lambda i: bytes([i, 255]), lambda i: nan])
def test_ids_that_are_no_text_are_told_as_text(place, clean, kind):
    ids = [kind(index) for index in range(8)]
    pairs = make_pairs(8).remove_columns("id").add_column("id", ids)
    pairs.to_parquet(place / "pairs.parquet")
    code, _, errors = clean(dataset_name=place / "pairs.parquet", decisions=place / "decisions.jsonl")
    assert code == 0, errors
    changes = [json.loads(line) for line in (place / "out" / "changes.jsonl").read_text().splitlines()]
    assert [change["id"] for change in changes] == [str(ids[0]), str(ids[2])]


def test_decisions_applied_give_the_data_and_say_what_was_changed(place, clean):
    code, output, _ = clean(decisions=place / "decisions.jsonl")
    assert code == 0
    before = make_pairs(8).to_list()
    written = load_preference_data(str(place / "out"))
    assert written["train"].to_list() == [before[1], swapped(before[2]), *before[3:]]
    assert [line.split() for line in output.splitlines()[:5]] == [
        ["language", "pairs", "kept", "flipped", "dropped"],
        ["de", "3", "2", "0", "1"],
        ["sw", "3", "3", "0", "0"],
        ["日本", "2", "1", "1", "0"],
        ["all", "pairs", "8", "6", "1", "1"],
    ]
    changes = [json.loads(line) for line in (place / "out" / "changes.jsonl").read_text().splitlines()]
    assert changes == [
        {"pair": 0, "id": "pair-0", "decision": "drop", "why": "decided by hand: no sentence", "score": None},
        {"pair": 2, "id": "pair-2", "decision": "flip", "why": "decided by hand", "score": None},
    ]
    record = json.loads((place / "out" / "clean.json").read_text(encoding="utf-8"))
    assert record["fingerprint"] == fingerprint(make_pairs(8))
    assert [record[key] for key in ("pairs", "keep", "flip", "drop")] == [8, 6, 1, 1]
    assert record["groups"]["de"] == {"pairs": 3, "keep": 2, "flip": 0, "drop": 1}


def test_rules_and_weights_give_data_that_train(place, clean, model_dir, make_args):
    """The worst quarter is 6 and 1; 6 is kept by hand, with its label's weight 1."""
    options = {"suspects": place / "suspects.parquet", "drop_top": "25%", "weight": "true"}
    code, output, _ = clean(decisions=place / "decisions.jsonl", **options)
    assert code == 0
    train = load_from_disk(place / "out")["train"]
    weights = dict(zip(train["id"][:], train["weight"][:], strict=True))
    expected = {"pair-2": 1.0, "pair-3": 1.0, "pair-4": 0.0, "pair-5": 0.6, "pair-6": 1.0, "pair-7": 0.9}
    assert weights == pytest.approx(expected)
    assert "Mean weight of the 6 pairs that are left: 0.750." in output
    whys = {line["pair"]: line["why"] for line in map(json.loads, (place / "out" / "changes.jsonl").open())}
    assert whys[1] == "drop_top=25%, the worst 2 of 8 pairs; seldom agreed"
    args = make_args(max_steps=1, per_device_train_batch_size=6)
    trainer = CAPOTrainer(model_dir, args=args, train_dataset=train)
    trainer.train()
    assert logged(trainer, "capo/weight") == [pytest.approx(0.75)]


def test_pairs_without_a_score_are_counted(place, clean):
    """The audit's CSV and JSONL have its worst pairs alone: what is not there is no pair that is sure to be right."""
    rows = Dataset.from_parquet(str(place / "suspects.parquet")).select([1, 4, 6])
    rows.to_json(place / "worst.jsonl")
    code, output, errors = clean(suspects=place / "worst.jsonl", drop_above=0.9, weight=True)
    assert code == 0
    assert f"5 of 8 pairs have no score in {place}/worst.jsonl: no rule changed them, and their weight is 1." in output
    assert "Flipping" not in errors  # nothing is flipped
    code, output, _ = clean(suspects=place / "suspects.parquet", drop_above=0.9, output_dir=place / "all")
    assert code == 0
    assert "have no score" not in output


def test_one_split_is_cleaned_and_the_others_are_copied(place, clean):
    splits = DatasetDict(train=make_pairs(3), extra=make_pairs(8).with_format("numpy"))
    splits.save_to_disk(place / "splits")
    options = {"dataset_name": place / "splits", "dataset_split": "extra", "group_column": "none"}
    code, output, _ = clean(decisions=place / "decisions.jsonl", **options)
    assert code == 0
    assert output.splitlines()[1].split() == ["all", "pairs", "8", "6", "1", "1"]
    written = load_from_disk(place / "out")
    assert written["train"].to_list() == make_pairs(3).to_list()
    assert len(written["extra"]) == 7


MISTAKES = [
    ({}, ["nothing to do"]),
    ({"dataset_name": None, "output_dir": None, "decisions": "x"}, ["dataset_name, output_dir missing"]),
    ({"drop_top": "10%"}, ["drop_top='10%' without suspects"]),
    ({"suspects": "suspects.parquet"}, ["suspects='suspects.parquet' without a rule"]),
    ({"drop_top": "0.1", "drop_above": "2"}, ["without suspects", "drop_top='0.1'", "drop_above=2.0", "two rules"]),
    ({"suspects": "suspects.parquet", "drop_top": "110%"}, ["drop_top='110%': give a share"]),
    ({"suspects": "suspects.parquet", "flip_top": "5%"}, ["flip_top='5%': that is 0 of 8 pairs"]),
    ({"suspects": "suspects.parquet", "drop_above": "high"}, ["drop_above", "high"]),
    ({"suspects": "decisions.jsonl", "drop_above": "0.5"}, ["line 1: it has no 'score'"]),
    ({"decisions": "suspects.parquet"}, ["must end in .jsonl"]),
    ({"decisions": "empty.jsonl"}, ["decisions='empty.jsonl': there are no decisions in it"]),
    ({"decisions": "missing.jsonl"}, ["decisions='missing.jsonl': there is no such file"]),
    ({"decisions": "decisions.jsonl", "dataset_name": "other.jsonl"}, ["4 of its lines were decided on other data"]),
    ({"decisions": "decisions.jsonl", "dataset_split": "test"}, ["dataset_split='test'"]),
    ({"decisions": "decisions.jsonl", "group_column": "tongue"}, ["group_column='tongue'"]),
    ({"decisions": "decisions.jsonl", "output_dir": "taken"}, ["output_dir='taken' is there already"]),
    ({"decisons": "1"}, ["unknown option --decisons", "Did you mean --decisions"]),
]


@pytest.mark.parametrize(("options", "named"), MISTAKES, ids=[str(options) for options, _ in MISTAKES])
def test_mistakes_are_one_message_and_write_nothing(place, clean, monkeypatch, options, named):
    monkeypatch.chdir(place)
    make_pairs(9).select(range(1, 9)).to_json("other.jsonl", force_ascii=False)
    os.mkdir("taken")
    (place / "empty.jsonl").touch()
    (place / "taken" / "precious").write_text("mine")
    before = sorted(place.rglob("*"))
    code, output, errors = clean(**options)
    assert code == 2
    assert errors.count("trl-capo clean: error: ") == 1
    assert all(text in errors for text in named), errors
    assert "Traceback" not in errors
    assert output == ""
    assert sorted(place.rglob("*")) == before
    assert (place / "taken" / "precious").read_text() == "mine"


def test_an_interrupted_command_leaves_nothing_behind(place, monkeypatch):
    """Stopped after the data were written and before the folder got its name."""
    before = sorted(os.listdir(place))

    def stop(*_):
        assert any(name.endswith(".part") for name in os.listdir(place))
        raise KeyboardInterrupt

    monkeypatch.setattr(saving.os, "replace", stop)
    names = {"dataset_name": "pairs.jsonl", "output_dir": "out", "decisions": "decisions.jsonl"}
    with pytest.raises(KeyboardInterrupt):
        clean_command.main([word for name, value in names.items() for word in (f"--{name}", str(place / value))])
    assert sorted(os.listdir(place)) == before
