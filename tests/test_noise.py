"""Injected noise: how much of it, in which rows, and that `is_noisy` tells them.

What changed is found by comparing rows one by one with the original; how many should have, by exact binomial intervals
at 1e-6; flip probabilities, by a closed form.
"""

import math

import numpy as np
import pytest
from datasets import Dataset
from noise_data import ANSWERS, FORMATS, LANGUAGES, conversation, make_data, noisy_rows, standard
from scipy.stats import binom

from trl_capo.noise import (
    KINDS,
    flip_ambiguous,
    flip_labels,
    inject_noise,
)

ROWS = 3000


@pytest.fixture(scope="module")
def data() -> Dataset:
    return make_data()


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
    assert after.column_names == [*before.column_names, "is_noisy"]
    assert after.features["is_noisy"].dtype == "bool"
    assert len(after) == 300
    changed = 0
    for old, new in zip(before, after, strict=True):
        noisy = new.pop("is_noisy")
        assert noisy == (new != old)
        kept = {"flip": (), "flip_ambiguous": (), "near_tie": ("chosen",), "wrong_language": ("rejected",)}[kind]
        assert all(new[key] == old[key] for key in old if key not in ANSWERS or key in kept)
        if noisy and kind.startswith("flip"):
            assert [new[key] for key in ANSWERS] == [old[key] for key in reversed(ANSWERS)]
        changed += noisy
    assert within(changed, 300, 0.3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [0.05, 0.4, 0.9])
def test_the_rate_is_met_within_the_binomial_interval(data, kind, rate):
    """For ambiguous flips, whose count has less spread than a binomial one, the interval is wide enough too."""
    assert within(len(noisy_rows(inject(data, kind, rate, seed=3))), ROWS, rate)


@pytest.mark.parametrize("kind", KINDS)
def test_rate_zero_changes_nothing(data, kind):
    for rate in (0, 0.0, {"de": 0.0}):
        after = inject(data, kind, rate)
        assert noisy_rows(after) == set()
        assert after.remove_columns("is_noisy").to_list() == data.to_list()
    with pytest.raises(ValueError, match="rate={}: a rate is the share"):  # which says nothing of any group
        inject(data, kind, {})


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_call_gives_the_same_rows_and_another_seed_gives_others(data, kind):
    first, second, other = (inject(data, kind, 0.2, seed=seed) for seed in (5, 5, 6))
    assert first.to_list() == second.to_list()
    assert noisy_rows(first) != noisy_rows(other)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_noisy_at_a_rate_are_the_same_at_a_higher_one(data, kind):
    runs = [inject(data, kind, rate, seed=2) for rate in (0.1, 0.2, 0.4, 0.8)]
    for lower, higher in zip(runs, runs[1:], strict=False):
        assert noisy_rows(lower) < noisy_rows(higher)
        some = sorted(noisy_rows(lower))[:50]
        assert lower.select(some).to_list() == higher.select(some).to_list()


def test_a_row_is_drawn_by_its_number_alone(data):
    """Against NumPy's own generator; more rows, other answers or another kind move no draw."""
    draws = np.random.default_rng(np.random.SeedSequence(7, spawn_key=(0,))).random(ROWS)
    expected = set(np.flatnonzero(draws < 0.3).tolist())
    for kind in ("flip", "near_tie", "wrong_language"):
        assert noisy_rows(inject(data, kind, 0.3, seed=7)) == expected
        assert noisy_rows(inject(data.select(range(400)), kind, 0.3, seed=7)) == {row for row in expected if row < 400}
    assert noisy_rows(flip_labels(data.shuffle(seed=0), 0.3, seed=7)) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_mapping_gives_each_group_its_rate(data, kind):
    rates = {"sw": 0.4, "*": 0.05}
    for mapping in (rates, {"sw": 0.4}, {"日本": 0.7, "de": 0.1}):
        after = inject(data, kind, mapping, seed=4)
        for language in LANGUAGES:
            share = mapping.get(language, mapping.get("*", 0.0))
            rows = [row["is_noisy"] for row in after if row["language"] == language]
            assert within(sum(rows), len(rows), share)


def test_a_mapping_and_a_number_that_agree_draw_the_same_rows(data):
    assert noisy_rows(flip_labels(data, {"*": 0.25})) == noisy_rows(flip_labels(data, 0.25))
    named = data.rename_column("language", "tongue")
    mapped = flip_labels(named, dict.fromkeys(LANGUAGES, 0.25), group_column="tongue")
    assert noisy_rows(mapped) == noisy_rows(flip_labels(data, 0.25))


def test_groups_may_be_numbers_or_missing():
    rows = [standard(index) | {"language": [1, 2, None][index % 3]} for index in range(90)]
    after = flip_labels(Dataset.from_list(rows), {1: 0.99, "(none)": 0.99})
    assert {row["language"] for row in after if row["is_noisy"]} == {1, None}


def test_flip_probabilities_are_those_of_the_formula():
    """Three of four scores of size 1, one of size 3, so their mean is 1.5: P = sigmoid(a - 4/3) and sigmoid(a - 4).

    With x = e^(a - 4/3) and q = e^(-8/3), mean P = r is (1 - r) q x^2 + (3/4 + q/4 - r (1 + q)) x - r = 0. The rows
    that flip are those whose draw is below P.
    """
    dataset = Dataset.from_list([standard(index) | {"margin": [1, -3, -1, 1][index % 4]} for index in range(20_000)])
    draws = np.random.default_rng(np.random.SeedSequence(9, spawn_key=(0,))).random(20_000)
    q = math.exp(-8 / 3)
    for rate in (0.02, 0.2, 0.5, 0.7):
        a, b = (1 - rate) * q, 0.75 + 0.25 * q - rate * (1 + q)
        x = (-b + math.sqrt(b * b + 4 * a * rate)) / (2 * a)
        unsure, sure = x / (1 + x), x * q / (1 + x * q)
        assert 0.75 * unsure + 0.25 * sure == pytest.approx(rate)
        after = flip_ambiguous(dataset, rate, score_column="margin", seed=9)
        expected = np.where(np.arange(20_000) % 4 == 1, sure, unsure)
        assert noisy_rows(after) == set(np.flatnonzero(draws < expected).tolist())
        assert within(sum(after["is_noisy"][1::4]), 5_000, sure)


def test_scores_without_differences_give_plain_flips(data):
    for score in (0.0, 3.0, 1e300):
        same = data.map(lambda row, score=score: {"margin": score})
        found = noisy_rows(flip_ambiguous(same, 0.3, score_column="margin"))
        assert found == noisy_rows(flip_labels(data, 0.3))


def test_scores_of_any_size_are_no_problem(data):
    """One score that dwarfs the others: its pair stays, and the others have the rate."""
    huge = data.map(lambda row, index: {"margin": 1e12 if index == 5 else 1.0}, with_indices=True)
    found = noisy_rows(flip_ambiguous(huge, 0.5, score_column="margin"))
    assert 5 not in found
    assert within(len(found), ROWS, 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_formatted_and_selected_data_set_is_read_as_it_is(kind):
    selected = make_data(conversation, 300).select(range(250, 50, -2))
    after = inject(selected.with_format("numpy"), kind, 0.5)
    expected = inject(Dataset.from_list(selected.to_list()), kind, 0.5)
    assert after.to_list() == expected.to_list()
    assert 0 < len(noisy_rows(after)) < 100
    assert [row["id"] for row in after] == list(range(250, 50, -2))
