"""The windows of exact sums, by hand and against NumPy."""

import numpy as np
import pytest
import torch

from trl_capo.metrics import PairWindow, group_metrics


def filled(rows, groups, count, batches=(slice(None),)):
    window = PairWindow(["a", "b"], extremes=["b"])
    for batch in batches:
        window.add(torch.tensor(rows)[batch], torch.tensor(groups)[batch], count)
    return window


def test_means_by_hand():
    """Rows (1, 2), (3, -4), (5, 6) in groups 0, 1, 0: means (3, 4/3); of group 0 (3, 4), of 1 (3, -4); 2 is empty."""
    overall, groups = filled([[1.0, 2.0], [3.0, -4.0], [5.0, 6.0]], [0, 1, 0], 3).means()
    assert overall == pytest.approx({"a": 3, "b": 4 / 3, "b_min": -4, "b_max": 6})
    assert groups == [{"a": 3, "b": 4}, {"a": 3, "b": -4}, {}]


def test_pairs_without_a_group_count_for_the_whole_only():
    overall, groups = filled([[1.0, 0.0], [3.0, 0.0]], [-1, 0], 1).means()
    assert overall["a"] == 2
    assert groups == [{"a": 3, "b": 0}]


@pytest.mark.parametrize("cuts", [[], [1], [3, 4], [1, 2, 3, 4, 5, 6]])
def test_cutting_into_batches_changes_nothing(cuts):
    rows = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)
    groups = [0, 2, 1, 0, 0, 2, -1]
    edges = [0, *cuts, 7]
    batches = [slice(*pair) for pair in zip(edges, edges[1:], strict=False)]
    overall, by_group = filled(rows.tolist(), groups, 3, batches).means()
    assert overall["a"] == pytest.approx(rows[:, 0].mean(), rel=1e-5)
    assert (overall["b_min"], overall["b_max"]) == (rows[:, 1].min(), rows[:, 1].max())
    for group, means in enumerate(by_group):
        assert means["b"] == pytest.approx(rows[np.array(groups) == group, 1].mean(), rel=1e-5)


def test_a_value_that_is_not_finite_stays_in_its_group():
    _, groups = filled([[1.0, 2.0], [float("nan"), float("inf")]], [0, 1], 2).means()
    assert groups[0] == {"a": 1, "b": 2}


def test_windows_of_processes_are_put_together():
    parts = [filled([[1.0, 2.0]], [0], 2), filled([[3.0, 9.0], [8.0, -1.0]], [1, 1], 2)]
    together = PairWindow(["a", "b"], extremes=["b"])
    together.merge(torch.stack([part.vector for part in parts]))
    assert together.means() == filled([[1.0, 2.0], [3.0, 9.0], [8.0, -1.0]], [0, 1, 1], 2).means()


def test_groups_may_appear_later_but_not_vanish():
    window = filled([[1.0, 2.0]], [0], 1)
    window.add(torch.tensor([[5.0, 6.0]]), torch.tensor([2]), 3)
    assert window.means()[1] == [{"a": 1, "b": 2}, {}, {"a": 5, "b": 6}]
    with pytest.raises(ValueError, match="a window of 1 groups cannot be added to one of 3"):
        window.add(torch.tensor([[5.0, 6.0]]), torch.tensor([0]), 1)


def test_an_empty_window_has_no_means():
    assert PairWindow(["a"]).empty
    assert PairWindow(["a"]).means() == ({}, [])


def test_macro_and_worst_by_hand():
    """Accuracies 0.9 and 0.4 (and an empty group): macro 0.65, worst 0.4, however many pairs each has."""
    groups = [
        {"rewards/accuracies": 0.9, "rewards/margins": 2.0},
        {},
        {"rewards/accuracies": 0.4, "rewards/margins": -1.0},
    ]
    assert group_metrics(groups, ["de", "fr", "zh/hans"]) == pytest.approx(
        {
            "rewards/accuracies/de": 0.9,
            "rewards/margins/de": 2.0,
            "rewards/accuracies/zh/hans": 0.4,
            "rewards/margins/zh/hans": -1.0,
            "rewards/accuracies/macro": 0.65,
            "rewards/accuracies/worst": 0.4,
        }
    )


def test_no_groups_no_metrics():
    assert group_metrics([], []) == {}
