"""The files of an evaluation: replaced together, and plots that can be read whatever the groups and models are called.

Their contents and the tables: test_evaluate_command.py.
"""

import json
import re
import warnings
from html import escape

import matplotlib.pyplot as plt
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from markdown_it import MarkdownIt
from matplotlib.font_manager import fontManager
from PIL import Image

import trl_capo.report
from trl_capo.fonts import one_line
from trl_capo.report import FILES, write_evaluation
from trl_capo.statistics import model_differences, model_figures

ALL = sorted(FILES)


def evaluation(groups: list[str], models=("a model",), reference="a reference") -> tuple:
    """Figures, labels and margins of invented models: four pairs a group."""
    labels, generator = [group for group in groups for _ in range(4)], np.random.default_rng(0)
    scores = {}
    for name in models:
        values = generator.normal(0.3, 1.0, len(labels))
        scores[name] = {"margins": values if reference else None, "normalised": values, "reference": reference}
    figures = {
        "dataset": {"name": "data", "split": "test", "pairs": len(labels)},
        "dropped_pairs": 0,
        "dropped_groups": [],
        "group_column": "language",
        "beta": 0.1,
        "models": {name: model_figures(labels, {}, **score) for name, score in scores.items()},
        "differences": model_differences(labels, scores, 0),
        "versions": {},
    }
    return figures, labels, {name: score["margins"] for name, score in scores.items()}


@pytest.fixture(autouse=True)
def no_warnings():
    """Matplotlib warns of glyphs that no font has, and of layouts that fail."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def report(folder) -> str:
    return (folder / "report.md").read_text(encoding="utf-8")


def test_a_run_that_makes_fewer_files_leaves_none_of_the_last_and_all_of_the_users(tmp_path):
    write_evaluation(*evaluation(["de", "sw"]), tmp_path)
    assert sorted(contents(tmp_path)) == ALL
    (tmp_path / "margins.csv").write_text("mine")
    write_evaluation(*evaluation(["de", "sw"], reference=None), tmp_path)
    assert sorted(contents(tmp_path)) == sorted({*ALL, "margins.csv"} - {"margins.png"})
    assert "margins.png" not in report(tmp_path)


@pytest.mark.parametrize("where", ["plots", "metrics"])
def test_a_run_that_fails_leaves_the_last_ones_files(tmp_path, monkeypatch, where):
    write_evaluation(*evaluation(["de", "sw"]), tmp_path)
    before = contents(tmp_path)

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    if where == "plots":
        monkeypatch.setattr(trl_capo.report, "plot_evaluation", fail)
    else:
        monkeypatch.setattr(json, "dumps", fail)
    with pytest.raises(OSError, match="No space"):
        write_evaluation(*evaluation(["fr"]), tmp_path)
    assert contents(tmp_path) == before
    (tmp_path / "mine").mkdir()
    with pytest.raises(OSError, match="No space"):
        write_evaluation(*evaluation(["fr"]), tmp_path / "mine" / "new" / "folder")
    assert [path.name for path in tmp_path.rglob("*") if path.is_dir()] == ["mine"]  # which was there before


def test_figures_survive_plots_that_cannot_be_drawn(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("a broken font")

    monkeypatch.setattr("trl_capo.plots._plot_margins", fail)
    (remark,) = write_evaluation(*evaluation(["de", "sw"]), tmp_path)
    assert sorted(contents(tmp_path)) == ["metrics.json", "report.md"]
    assert "a broken font" in report(tmp_path)
    assert "![" not in report(tmp_path)
    assert "a broken font" in remark


def height(file) -> int:
    with Image.open(file) as image:
        return image.height


def test_names_that_no_font_can_draw_are_numbered_and_explained(tmp_path):
    """Characters for private use, which no installed font should have."""
    strange = "\U000f0001\U000f0002"
    (remark,) = write_evaluation(*evaluation(["de", strange, "Ελλάδα"], models=["m", strange + "/x"]), tmp_path)
    text = report(tmp_path)
    assert remark in text
    assert re.search(rf"#\d+ is {strange}, #\d+ is {strange}/x\.", text)
    assert "is de" not in text
    assert "is Ελλάδα" not in text


@pytest.fixture
def strange_font(tmp_path):
    """An installed font that has one character, which no other has: a tall bar."""
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "bar"])
    builder.setupCharacterMap({0xF0001: "bar"})
    pen = TTGlyphPen(None)
    for point, draw in zip([(0, 0), (0, 900), (80, 900), (80, 0)], [pen.moveTo, *[pen.lineTo] * 3], strict=True):
        draw(point)
    pen.closePath()
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "bar": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (100, 0), "bar": (100, 0)})
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupNameTable({"familyName": "Strange", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "strange.ttf")
    fontManager.addfont(tmp_path / "strange.ttf")
    yield
    fontManager.ttflist = [font for font in fontManager.ttflist if font.name != "Strange"]


def test_an_installed_font_that_has_the_letters_draws_them(tmp_path, strange_font):
    family = plt.rcParams["font.family"]
    write_evaluation(*evaluation(["de", "\U000f0001"]), tmp_path / "out")
    assert " is \U000f0001" not in report(tmp_path / "out")
    assert plt.rcParams["font.family"] == family
    write_evaluation(*evaluation(["de", "\U000f0001" * 3]), tmp_path / "three")
    assert (tmp_path / "out" / "margins.png").read_bytes() != (tmp_path / "three" / "margins.png").read_bytes()


def test_dollars_and_backslashes_in_names_are_characters(tmp_path):
    """As formulae these would fail to parse, or vanish."""
    groups = ["$\\frac{$", "$x$", "a_b^c", "\\alpha"]
    write_evaluation(*evaluation(groups, models=["$\\frac{$", "m$"]), tmp_path)
    assert sorted(contents(tmp_path)) == ALL


@pytest.mark.parametrize("models", [1, 3])
def test_of_two_hundred_groups_the_plots_show_the_lowest(tmp_path, models):
    """The table has them all."""
    figures, *rest = evaluation(
        [f"group {index:03}" for index in range(200)], [f"m{index}" for index in range(models)]
    )
    write_evaluation(figures, *rest, tmp_path)
    assert max(height(tmp_path / name) for name in ("accuracy.png", "margins.png")) < 2700
    text = report(tmp_path)
    assert len(re.findall(r"^\| group \d{3} ", text, re.MULTILINE)) == 200 * (models + (models > 1))
    assert re.search(r"The plots show the \d+ of 200 groups with the lowest reward accuracy of m0\.", text)


@pytest.mark.parametrize("models", [2, 5, 8])
def test_thirty_languages_are_all_shown_with_several_models(tmp_path, models):
    groups = [f"Language_{index:02} (Script)" for index in range(30)]
    write_evaluation(*evaluation(groups, [f"m{index}" for index in range(models)]), tmp_path)
    assert "The plots show" not in report(tmp_path)
    assert height(tmp_path / "accuracy.png") < 3800


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, by their files' names."""
    kept = {}

    def keep(figure, path):
        kept[path.name] = figure
        figure.savefig(path, format="png")
        return path.name

    monkeypatch.setattr("trl_capo.plots._save", keep)
    return kept


@pytest.mark.parametrize("models", [["one\tmodel$"], ["a", "b"]])
def test_plots_name_what_they_show(tmp_path, drawn, models):
    """Names of one line each, with the model and the data set; accuracies on the whole scale."""
    write_evaluation(*evaluation(["tab\there", "line\nbreak", "de"], models), tmp_path)
    accuracy, margins = (drawn[name].axes[0] for name in ("accuracy.png", "margins.png"))
    labels = [label.get_text() for label in accuracy.get_yticklabels()]
    assert labels == ["de", r"line\nbreak", r"tab\there", "all pairs"]
    first = models[0].replace("\t", r"\t")
    assert accuracy.get_title() == (f"{first}\non data" if len(models) == 1 else "data")
    assert margins.get_title() == f"{first}\non data"
    low, high = accuracy.get_xlim()
    assert -0.05 < low <= 0 < 1 <= high < 1.05
    assert [label.get_text() for label in accuracy.get_xticklabels()][1:-1][:2] == ["0%", "20%"]


def test_the_report_shows_names_as_they_are(tmp_path):
    """As CommonMark reads it: nothing is emphasis, code, a link, HTML or an entity."""
    names = ["*a*", "_b_", "`c`", "<img src=x>", "[d](http://e)", "f|g", "&lt;", "~~h~~", "$i$", "new\nline", "a\\b"]
    write_evaluation(*evaluation(names, ["<b>m</b>", "_n_"]), tmp_path)
    html = MarkdownIt("gfm-like", {"linkify": False}).render(report(tmp_path))
    for name in names:
        assert f"<td>{escape(one_line(name))}</td>" in html
    assert re.findall(r"<h2>(.*)</h2>", html) == ["&lt;b&gt;m&lt;/b&gt;", "_n_", "Differences"]
    assert not re.search(r"<(em|strong|code|a|s|b|img src=.x)\b", html)


def test_thirty_models_have_a_letter_each(tmp_path):
    names = [f"model {index}" for index in range(30)]
    write_evaluation(*evaluation(["de", "sw"], names), tmp_path)
    text = report(tmp_path)
    assert "| AB - A | AC - A | AD - A |" in text
    assert "- AD: model 29" in text.splitlines()
    assert height(tmp_path / "accuracy.png") < 2700
