"""The report and the plots."""

import pytest
from audit_logs import odd_pairs

from trl_capo.audit.mislabels import LabelErrors, estimate_label_errors
from trl_capo.audit.report import plot_rates, rate_table, report


def make_errors(folder, names=("de", "sw", "日本")) -> LabelErrors:
    dynamics, _, wrong = odd_pairs(folder, names=names)
    errors = estimate_label_errors(dynamics)
    return errors._replace(pairs=errors.pairs.assign(wrong=wrong[errors.pairs.index]))


def test_a_report_shows_text_as_text(tmp_path):
    errors = make_errors(tmp_path / "log", names=("<script>", "a|b", "日本"))
    text = report(errors, rate_table(errors, "group"), ["a *note*"], "clean --x `y`\n", "r_un")
    for part in ("# r\\_un\n", "\\<script\\>", "a\\|b", "- a \\*note\\*\n", "\n      clean --x `y`\\n\n"):
        assert part in text


def test_the_plot_shows_the_rates(tmp_path):
    """Lines are the intervals, highest first."""
    errors = make_errors(tmp_path / "log")
    groups = errors.groups.sort_values("rate", ascending=False)
    axes = plot_rates(errors, tmp_path / "rates.png").axes[0]
    lines = [segment[:, 0].tolist() for segment in axes.collections[0].get_segments()]
    assert lines == [pytest.approx([group.low, group.high]) for group in groups.itertuples()]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(groups.index)
    true = errors.pairs.groupby("group")["wrong"].mean().loc[groups.index]
    assert [line.get_xdata() for line in axes.lines if line.get_label() == "true"] == [pytest.approx(true.to_numpy())]
