"""The report and the plots."""

from dataclasses import replace

import numpy as np
import pytest
from audit_logs import odd_pairs

from trl_capo.audit.mislabels import LabelErrors, estimate_label_errors
from trl_capo.audit.report import data_map, noise_rates, rate_table, report


def make_errors(folder, names=("de", "sw", "日本")) -> LabelErrors:
    dynamics, _, wrong = odd_pairs(folder, names=names)
    errors = estimate_label_errors(dynamics)
    return replace(errors, pairs=errors.pairs.assign(wrong=wrong[errors.pairs.index]))


def test_a_report_shows_text_as_text(tmp_path):
    errors = make_errors(tmp_path / "log", names=("<script>", "a|b", "日本"))
    text = report(errors, rate_table(errors, "group"), {}, ["a *note*"], "clean --x `y`\n", "r_un")
    for part in ("# r\\_un\n", "\\<script\\>", "a\\|b", "- a \\*note\\*\n", "\n      clean --x `y`\\n\n"):
        assert part in text


def test_plots_show_the_pairs_and_the_rates(tmp_path):
    """Points lie at (variability, mean confidence) in their group's colour; lines are the intervals, highest first."""
    errors = make_errors(tmp_path / "log")
    names = {"de": "de", "sw": "sw", "日本": "ja"}
    points = data_map(errors, names).axes[0].collections
    for group, drawn in zip(names, points, strict=True):
        own = errors.pairs[errors.pairs["group"] == group][["variability", "mean_confidence"]].to_numpy()
        assert np.sort(np.asarray(drawn.get_offsets()), axis=0) == pytest.approx(np.sort(own, axis=0))
    assert len({tuple(drawn.get_facecolor()[0]) for drawn in points}) == 3
    axes, groups = noise_rates(errors, names).axes[0], errors.groups.sort_values("rate", ascending=False)
    lines = [segment[:, 0].tolist() for segment in axes.collections[0].get_segments()]
    assert lines == [pytest.approx([group.low, group.high]) for group in groups.itertuples()]
    assert [label.get_text() for label in axes.get_yticklabels()] == [names[group] for group in groups.index]
    true = errors.pairs.groupby("group")["wrong"].mean().loc[groups.index]
    assert [line.get_xdata() for line in axes.lines if line.get_label() == "true"] == [pytest.approx(true.to_numpy())]
