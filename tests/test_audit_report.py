"""The report and the plots of an audit: text that stays text, where rates come from, and what is drawn."""

from dataclasses import replace

import numpy as np
import pytest
from test_audit_suspects import make_ranking

from trl_capo.audit.judgement import judge
from trl_capo.audit.plots import data_map, plot_audit, rates
from trl_capo.audit.report import report
from trl_capo.audit.suspects import Ranking


@pytest.fixture
def ranking(tmp_path) -> Ranking:
    return make_ranking(tmp_path / "log")[0]


def test_a_report_shows_text_as_text(ranking):
    options = {"title": "r_un", "used": {}, "group_name": "language", "top": 10, "plots": {}, "remarks": []}
    options["commands"] = ["trl-capo clean --x `y`\n"]
    text = report(ranking, None, **options)
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert '<div dir="auto">مرحبا بك</div>' in text
    assert "日本\\u2028語" in text
    assert "\x07" not in text
    assert "# Audit of r\\_un\n" in text
    assert "1 pair of the data never seen" in text
    assert "\n      trl-capo clean --x `y`\\n\n" in text
    blocks = [line for line in text.split("\n") if line.startswith("<blockquote>")]
    assert len(blocks) == 3 * 20
    assert all(line.endswith("</blockquote>") for line in blocks)  # so that Markdown means nothing within


def test_a_report_shows_lines_however_they_end(ranking):
    options = {"title": "run", "used": {}, "group_name": "group", "top": 1, "plots": {}, "remarks": [], "commands": []}
    data = ranking.data.map(lambda row: {"chosen": "one\r\ntwo\rthree\nfour\r\n"})
    text = report(replace(ranking, data=data), None, **options)
    said = "".join(f'<div dir="auto">{line}</div>' for line in ("one", "two", "three", "four", "&nbsp;"))
    assert text.count(f"<blockquote>{said}</blockquote>") == 20


def test_a_report_says_where_its_rates_come_from(ranking):
    """Three passes, judged by all or by the first, with the training's rates and with groups that it did not know."""
    options = {"title": "run", "used": {}, "group_name": "group", "top": 1, "plots": {}, "remarks": [], "commands": []}
    others = np.array(["x"] * 89, dtype=object)
    for evidence, names, said in (
        ("mean_margin", None, "the mean of two estimates"),
        ("first_margin", None, "the training's own estimate. Of margins at first sight the mixture finds too much"),
        (
            "mean_margin",
            others,
            "alone, since the training estimated none for these groups.\n- Pairs on",
        ),
        ("first_margin", others, "Of margins at first sight a mixture finds far too much"),
    ):
        judged = replace(ranking, judgement=judge(ranking.pairs, evidence, names))
        assert said in report(judged, None, **options)


def test_plots_show_the_figures(tmp_path):
    """Points lie at (variability, mean confidence) in their group's colour; lines are the intervals, highest above."""
    ranking, wrong = make_ranking(tmp_path)
    pairs, judged = ranking.pairs, ranking.judgement
    figure, shown = data_map(ranking, ["de", "sw", "ja"])
    assert shown == "89 pairs"
    for group, drawn in enumerate(figure.axes[0].collections):
        own = judged.place == group
        points = np.stack([pairs.variability[own], pairs.mean_confidence[own]], axis=1)
        assert np.asarray(drawn.get_offsets()) == pytest.approx(points)
    assert len({tuple(drawn.get_facecolor()[0]) for drawn in figure.axes[0].collections}) == 3

    true = np.array([wrong[judged.place == place].mean() for place in range(3)])
    figure, left_out = rates(ranking, ["de", "sw", "ja"], true)
    order = np.argsort(-judged.rates)
    axes = figure.axes[0]
    lines = [segment[:, 0] for segment in axes.collections[0].get_segments()]
    assert lines == [pytest.approx(judged.intervals[group]) for group in order]
    assert [line.get_xdata() for line in axes.lines if line.get_label() == "true"] == [pytest.approx(true[order])]
    assert [label.get_text() for label in axes.get_yticklabels()] == [("de", "sw", "ja")[group] for group in order]
    assert left_out == 0


def test_plots_are_drawn_for_many_groups_and_names_that_no_font_has(tmp_path):
    names = ("$x$", "\ue000private", "العربية")
    ranking, wrong = make_ranking(tmp_path / "log", names=names)
    true = np.array([wrong[ranking.judgement.place == place].mean() for place in range(3)])
    files, remarks = plot_audit(ranking, true, tmp_path)
    assert set(files) == {"data_map.png", "noise_rates.png"}
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in files)
    assert any("private" in line for line in remarks)
    many, _ = make_ranking(tmp_path / "many", size=300)
    from_pairs = np.array([f"g{number % 70}" for number in range(299)], dtype=object)
    _, remarks = plot_audit(Ranking(many.pairs, judge(many.pairs, names=from_pairs), None), None, tmp_path)
    assert remarks == ["The plot of noise rates leaves out 10 groups with lower ones."]
