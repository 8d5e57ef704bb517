"""Figures of models by hand, and differences on constructed data."""

import numpy as np
import pytest

from trl_capo.common.intervals import wilson_interval
from trl_capo.evaluate.summary import compare_models, paired_differences, summarise, summarise_model


def scores(margins: list[float]) -> dict:
    return {"margins": np.array(margins), "per_token": np.ones(len(margins)), "reference": "r"}


def test_summary_by_hand():
    """Margins 2, -1, 0, 5: two of four right, one tie, mean 1.5, median 1; per token 1, 1, -1, 0: two of four."""
    interval = [*wilson_interval(2, 4)]
    assert summarise(np.array([2.0, -1.0, 0.0, 5.0]), np.array([1.0, 1.0, -1.0, 0.0])) == {
        "pairs": 4,
        "accuracy": 0.5,
        "accuracy_95": interval,
        "ties": 0.25,
        "margin_mean": 1.5,
        "margin_median": 1.0,
        "reference_free_accuracy": 0.5,
        "reference_free_accuracy_95": interval,
    }


def test_a_model_with_nothing_but_ties_has_no_accuracy_but_a_reference_free_one():
    figures = summarise_model(["a", "b", "b"], {"also": ["x", "x", "y"]}, scores([0.0, 0.0, 0.0]))
    parts = [figures["overall"], *figures["groups"].values(), *figures["also_by"]["also"].values()]
    assert [(part["accuracy"], part["accuracy_95"], part["ties"]) for part in parts] == [(None, None, 1.0)] * 5
    assert figures["macro"] == {"reference_free_accuracy": 1.0}
    assert figures["worst"] == {"reference_free_accuracy": {"group": "a", "value": 1.0}}
    found = compare_models(["a", "a"], {"one": scores([1.0, -1.0]), "same": scores([0.0, 0.0])})["same"]
    assert (found["measure"], found["overall"]["difference"]) == ("reference_free_accuracy", 0.0)


def test_a_group_with_nothing_but_ties_has_accuracy_0():
    """Group a: one of two right; b: two ties. Macro 1/4, worst b; against all right: -1/2, -1, -3/4."""
    labels, tied, right = ["a", "a", "b", "b"], scores([1.0, -1.0, 0.0, 0.0]), scores([1.0, 1.0, 1.0, 1.0])
    figures = summarise_model(labels, {}, tied)
    assert (figures["macro"]["accuracy"], figures["worst"]["accuracy"]) == (0.25, {"group": "b", "value": 0.0})
    found = compare_models(labels, {"right": right, "tied": tied})["tied"]
    assert (found["against"], found["measure"]) == ("right", "accuracy")
    assert [found["groups"][group]["difference"] for group in "ab"] == [-0.5, -1.0]
    assert (found["macro"]["difference"], found["overall"]["difference"]) == (-0.75, -0.75)


def test_a_difference_is_found_only_in_the_group_that_has_it():
    """Group x: the other model is right on 60 more of 200 pairs; group y: no difference."""
    labels = ["x"] * 200 + ["y"] * 200
    baseline = np.arange(400) % 2 == 0
    other = baseline.copy()
    other[np.flatnonzero(~baseline[:200])[:60]] = True
    found = paired_differences(labels, baseline, other)
    x, y = found["groups"]["x"], found["groups"]["y"]
    assert (x["difference"], x["beyond_chance"]) == (pytest.approx(0.3), True)
    assert y == {"difference": 0.0, "interval_95": [0.0, 0.0], "beyond_chance": False}
    assert found["overall"]["difference"] == found["macro"]["difference"] == pytest.approx(0.15)
    assert paired_differences(None, baseline, other)["groups"] == {}


@pytest.mark.parametrize(("wins", "marked"), [(1, False), (4, False), (6, True)])
def test_few_pairs_are_not_beyond_chance(wins, marked):
    """Of 100 pairs so many are won and none lost: p = 2 / 2^wins is 1, 0.125 and 0.031."""
    found = paired_differences(["g"] * 100, np.zeros(100, dtype=bool), np.arange(100) < wins)
    assert found["groups"]["g"]["beyond_chance"] is marked
