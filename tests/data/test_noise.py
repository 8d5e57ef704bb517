"""Injected noise, checked with exact binomial intervals at 1e-6 and a closed form, and the command."""

import json
import math

import numpy as np
import pytest
import yaml
from conftest import make_pairs, run_main
from datasets import Dataset, DatasetDict, load_from_disk
from preference_rows import ANSWERS, FORMATS, LANGUAGES, conversation, make_data, noisy_rows, standard
from scipy.stats import binom
from trl import extract_prompt

from trl_capo.data.noise import KINDS, inject_noise, main

ROWS = 1200


@pytest.fixture(scope="module")
def data() -> Dataset:
    return make_data(rows=ROWS)


def inject(dataset, kind, rate, **options) -> Dataset:
    scores = {"score_column": "margin"} if kind == "flip_ambiguous" else {}
    return inject_noise(dataset, kind, rate, **scores, **options)


def within(count: int, pairs: int, rate: float) -> bool:
    low, high = binom.interval(1 - 1e-6, pairs, rate)
    return low <= count <= high


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_is_noisy_is_true_exactly_for_the_rows_that_changed(kind, form):
    before = make_data(form, 300)
    after = inject(before, kind, 0.3, seed=1)
    if not kind.startswith("flip") and "prompt" not in before.column_names:
        before = before.map(extract_prompt)
    assert after.column_names == [*before.column_names, "is_noisy"]
    kept = {"flip": (), "flip_ambiguous": (), "wrong_language": ("rejected",)}[kind]
    for old, new in zip(before, after, strict=True):
        noisy = new.pop("is_noisy")
        assert noisy == (new != old)
        assert all(new[key] == old[key] for key in old if key not in ANSWERS or key in kept)
        if noisy and kind.startswith("flip"):
            assert [new[key] for key in ANSWERS] == [old[key] for key in reversed(ANSWERS)]


@pytest.mark.parametrize("kind", KINDS)
def test_rates_are_met_also_by_group_and_rows_stay_noisy_at_every_higher_rate(data, kind):
    """Ambiguous flips vary less than binomial counts, so the interval holds for them, too."""
    runs = {rate: inject(data, kind, rate, seed=2) for rate in (0, 0.05, 0.4, 0.9)}
    assert all(within(len(noisy_rows(run)), ROWS, rate) for rate, run in runs.items())
    assert runs[0].remove_columns("is_noisy").to_list() == data.to_list()
    for lower, higher in zip(list(runs.values())[1:], list(runs.values())[2:], strict=False):
        assert noisy_rows(lower) < noisy_rows(higher)
        some = sorted(noisy_rows(lower))[:50]
        assert lower.select(some).to_list() == higher.select(some).to_list()
    for rates in ({"sw": 0.4, "*": 0.05}, {"日本": 0.7, "de": 0.1}):
        after = inject(data, kind, rates, seed=4)
        for language in LANGUAGES:
            rows = [row["is_noisy"] for row in after if row["language"] == language]
            assert within(sum(rows), len(rows), rates.get(language, rates.get("*", 0.0)))


def test_a_row_is_drawn_by_the_seed_and_its_number_alone(data):
    """The draws are those of NumPy's generator, whatever the kind, the other rows and their answers."""
    draws = np.random.default_rng(np.random.SeedSequence(7, spawn_key=(0,))).random(ROWS)
    expected = set(np.flatnonzero(draws < 0.3).tolist())
    for kind in ("flip", "wrong_language"):
        assert noisy_rows(inject(data, kind, 0.3, seed=7)) == expected
    assert noisy_rows(inject(data.shuffle(seed=0), "flip", 0.3, seed=7)) == expected
    numbered = data.add_column("group", [[1, 2, None][row % 3] for row in range(ROWS)])
    rates = {1: 0.3, "2": 0.3, "(none)": 0.3}
    assert noisy_rows(inject(numbered, "flip", rates, seed=7, group_column="group")) == expected


def test_flip_probabilities_are_those_of_the_formula():
    """Three of four scores of size 1, one of size 3, so their mean is 1.5: P = sigmoid(a - 4/3) and sigmoid(a - 4).

    With x = e^(a - 4/3) and q = e^(-8/3), mean P = r is (1 - r) q x^2 + (3/4 + q/4 - r (1 + q)) x - r = 0.
    """
    dataset = Dataset.from_list([standard(index) | {"margin": [1, -3, -1, 1][index % 4]} for index in range(4_000)])
    draws = np.random.default_rng(np.random.SeedSequence(9, spawn_key=(0,))).random(4_000)
    q = math.exp(-8 / 3)
    for rate in (0.02, 0.5, 0.7):
        a, b = (1 - rate) * q, 0.75 + 0.25 * q - rate * (1 + q)
        x = (-b + math.sqrt(b * b + 4 * a * rate)) / (2 * a)
        unsure, sure = x / (1 + x), x * q / (1 + x * q)
        assert 0.75 * unsure + 0.25 * sure == pytest.approx(rate)
        expected = np.where(np.arange(4_000) % 4 == 1, sure, unsure)
        assert noisy_rows(inject(dataset, "flip_ambiguous", rate, seed=9)) == set(np.flatnonzero(draws < expected))


def test_scores_of_one_size_give_plain_flips(data):
    for score in (0.0, 3.0, 1e300):
        same = data.remove_columns("margin").add_column("margin", [score] * ROWS)
        assert noisy_rows(inject(same, "flip_ambiguous", 0.3)) == noisy_rows(inject(data, "flip", 0.3))


def test_equal_answers_are_not_flipped():
    rows = [standard(index) | ({"chosen": f"schlecht {index}"} if index < 20 else {}) for index in range(40)]
    drawn = noisy_rows(inject(make_data(rows=40), "flip", 0.9))
    assert noisy_rows(inject(Dataset.from_list(rows), "flip", 0.9)) == {row for row in drawn if row >= 20}


def test_a_wrong_language_answers_the_same_prompt():
    """System messages do not count, so three languages share each question."""
    after = inject(make_data(conversation, 300), "wrong_language", 0.5)
    donors = {row: int(after[row]["chosen"][0]["content"].split()[-1]) for row in noisy_rows(after)}
    languages = {(standard(row)["language"], standard(donor)["language"]) for row, donor in donors.items()}
    assert languages == {(own, other) for own in LANGUAGES for other in LANGUAGES if own != other}
    assert all(donor // 3 == row // 3 for row, donor in donors.items())


REFUSED = {
    "rate=1.0": {"rate": 1.0},
    "no group fr, only de, sw": {"rate": {"de": 0.2, "fr": 0.1}},
    "no group column": {"rate": {"de": 0.2}, "group_column": None},
    "kind='typos'": {"kind": "typos"},
    "score_column='margin'": {"score_column": "margin"},
    "score_column=None": {"kind": "flip_ambiguous"},
    "score_column='sureness'": {"kind": "flip_ambiguous", "score_column": "sureness"},
    "two or more languages": {"kind": "wrong_language", "group_column": None},
    "'is_noisy'": {"dataset": make_data(rows=30).add_column("is_noisy", [False] * 30)},
}


@pytest.mark.parametrize("named", REFUSED)
def test_options_that_do_not_fit_are_named(named):
    with pytest.raises(ValueError, match=named):
        inject_noise(**{"dataset": make_data(rows=30), "kind": "flip", "rate": 0.2} | REFUSED[named])


def test_the_command_writes_one_split_with_noise_copies_the_others_and_counts_groups(tmp_path):
    data = make_data(rows=24).rename_column("language", "tongue")
    DatasetDict(train=make_pairs(9), extra=data).save_to_disk(tmp_path / "splits")
    config = {"kind": "flip", "rate": {"sw": 0.8, "*": 0.1}, "group_column": "tongue"}
    (tmp_path / "noise.yaml").write_text(yaml.dump(config | {"dataset_split": "extra", "seed": 9}))
    options = ["--config", tmp_path / "noise.yaml", "--dataset_name", tmp_path / "splits", "--seed", "1"]
    code, _, errors = run_main(main, *options, "--output_dir", tmp_path / "deep" / "out")
    assert code == 0, errors
    written, expected = load_from_disk(tmp_path / "deep" / "out"), inject_noise(data, **config, seed=1)
    assert written["train"].to_list() == make_pairs(9).to_list()
    assert written["extra"].to_list() == expected.to_list()
    swahili = sum(row["is_noisy"] for row in expected if row["tongue"] == "sw")
    record = json.loads((tmp_path / "deep" / "out" / "noise.json").read_text(encoding="utf-8"))
    assert record["groups"]["sw"] == {"pairs": 8, "noisy": swahili}
