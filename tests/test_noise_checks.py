"""What noise injection refuses: one error each, that names the option, its value, the reason and the remedy."""

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from noise_data import make_data

from trl_capo.noise import flip_labels, inject_noise

DATA = make_data(rows=30)
CHANGED = {
    "one language": DATA.map(lambda row: {"language": "de"}),
    "no language": DATA.remove_columns("language"),
    "is_noisy": DATA.add_column("is_noisy", [False] * 30),
    "stream": DATA.to_iterable_dataset(),
    "splits": DatasetDict(train=DATA),
    "empty": DATA.select([]),
    "no chosen": DATA.remove_columns("chosen"),
    "null": Dataset.from_list([{**row, "chosen": None if row["id"] == 7 else row["chosen"]} for row in DATA]),
    "lists": Dataset.from_list([{**row, "language": [row["language"]]} for row in DATA]),
    "nan": Dataset.from_list([{**row, "margin": float("nan") if row["id"] == 4 else 1.0} for row in DATA]),
    "no score": Dataset.from_list([{**row, "margin": None if row["id"] == 4 else 1.0} for row in DATA]),
    "infinite": Dataset.from_list([{**row, "margin": float("inf") if row["id"] in (4, 9) else 1.0} for row in DATA]),
    "boolean": Dataset.from_list([{**row, "margin": True} for row in DATA]),
    "references": Dataset.from_list([{**row, "ref_chosen_logps": -1.0, "ref_rejected_logps": -2.0} for row in DATA]),
    "types": Dataset.from_list([{**row, "chosen_extra": 1, "rejected_extra": "one"} for row in DATA]),
}
AMBIGUOUS = {"kind": "flip_ambiguous", "score_column": "margin"}
REFUSED = [
    ({"rate": 1.0}, ["rate=1.0", "[0, 1)"]),
    ({"rate": -0.1}, ["rate=-0.1"]),
    ({"rate": float("nan")}, ["rate=nan"]),
    ({"rate": False}, ["rate=False"]),
    ({"rate": "0.2"}, ["rate='0.2'"]),
    ({"rate": None}, ["rate=None"]),
    ({"rate": [0.2]}, ["rate=[0.2]"]),
    ({"rate": {"de": 1.5, "sw": "x", "日本": 0.2}}, ["rate['de']=1.5", "rate['sw']='x'"]),
    ({"rate": {"de": 0.2, "fr": 0.1}}, ["'fr'", "'de', 'sw', '日本'", "'*'"]),
    ({"rate": {False: 0.2}}, ["False", "quotes"]),
    ({"rate": {"de": 0.2}, "data": "no language"}, ["no group column", "group_column"]),
    ({"rate": {"de": 0.2}, "group_column": None}, ["no group column", "group_column"]),
    ({"rate": {"de": 0.2}, "data": "lists"}, ["30 rows", "list"]),
    ({"group_column": "tongue"}, ["group_column='tongue'", "'language'"]),
    ({"seed": -1}, ["seed=-1", "0 or more"]),
    ({"seed": 0.5}, ["seed=0.5"]),
    ({"seed": True}, ["seed=True"]),
    ({"kind": "typos"}, ["kind='typos'", "'flip', 'flip_ambiguous', 'near_tie', 'wrong_language'"]),
    ({"kind": None}, ["kind=None"]),
    ({"score_column": "margin"}, ["score_column='margin'", "'flip'", "flip_ambiguous"]),
    ({"kind": "flip_ambiguous"}, ["score_column=None", "'margin'"]),
    ({**AMBIGUOUS, "score_column": "sureness"}, ["score_column='sureness'", "'margin'"]),
    ({**AMBIGUOUS, "score_column": "chosen"}, ["score_column='chosen'", "30 of 30 rows", "row 0, 1"]),
    ({**AMBIGUOUS, "data": "nan"}, ["score_column='margin'", "1 of 30 rows", "row 4: nan"]),
    ({**AMBIGUOUS, "data": "no score"}, ["1 of 30 rows", "row 4: None"]),
    ({**AMBIGUOUS, "data": "infinite"}, ["2 of 30 rows", "row 4, 9: inf"]),
    ({**AMBIGUOUS, "data": "boolean"}, ["30 of 30 rows", "True"]),
    ({"kind": "wrong_language", "data": "one language"}, ["'de'", "two languages"]),
    ({"kind": "wrong_language", "data": "no language"}, ["group_column='auto'", "no group column"]),
    ({"kind": "wrong_language", "rate": 0, "group_column": None}, ["group_column=None"]),
    ({"kind": "wrong_language", "data": "references"}, ["'ref_chosen_logps', 'ref_rejected_logps'", "Remove"]),
    ({"kind": "near_tie", "data": "references"}, ["'ref_chosen_logps', 'ref_rejected_logps'", "Remove"]),
    ({"data": "is_noisy"}, ["'is_noisy'", "already"]),
    ({"data": "stream"}, ["IterableDataset", "without streaming"]),
    ({"data": "splits"}, ["DatasetDict", "one split"]),
    ({"data": "empty"}, ["no rows"]),
    ({"data": "no chosen"}, ["'chosen'"]),
    ({"data": "null", "kind": "near_tie"}, ["chosen is null", "row 7"]),
    ({"data": "types"}, ["'chosen_extra'", "'rejected_extra'", "one type"]),
]


@pytest.mark.parametrize(("options", "named"), REFUSED, ids=[str(options) for options, _ in REFUSED])
def test_bad_input_is_named(options, named):
    options = {"kind": "flip", "rate": 0.2, "data": None} | options
    data = CHANGED.get(options.pop("data"), DATA)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        inject_noise(data, **options)
    assert all(text in str(error.value) for text in named), str(error.value)
    assert "\n\n" not in str(error.value)


@pytest.mark.parametrize("rate", [0, 0.2, np.float64(0.2), np.float32(0.2), {"de": np.float64(0.2), "*": 0}])
def test_numbers_of_every_kind_are_rates(rate):
    assert len(flip_labels(DATA, rate, seed=np.int64(3))) == 30
