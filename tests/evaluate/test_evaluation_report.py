"""Tables, report and plots of invented models, whatever groups and models are called."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.font_manager import fontManager
from PIL import Image

from trl_capo.common.figures import choose_fonts, save
from trl_capo.evaluate import report
from trl_capo.evaluate.report import render_text, write_evaluation
from trl_capo.evaluate.summary import compare_models, summarise_model

pytestmark = pytest.mark.filterwarnings("error")
"""Matplotlib warns of glyphs that no font has, and of layouts that fail."""
FILES = ["accuracy.png", "metrics.json", "report.md"]


def evaluation(groups: list[str], models=("a model",), reference="a reference") -> dict:
    """What `evaluate` returns, of invented models: four pairs per group."""
    labels, generator = [group for group in groups for _ in range(4)], np.random.default_rng(0)
    scores = {}
    for name in models:
        values = generator.normal(0.3, 1.0, len(labels))
        scores[name] = {"margins": values if reference else None, "per_token": values, "reference": reference}
    return {
        "dataset": {"name": "data", "split": "test", "pairs": len(labels)},
        "dropped_pairs": 1,
        "dropped_groups": ["fr"],
        "group_column": "language",
        "models": {name: summarise_model(labels, {}, score) for name, score in scores.items()},
        "differences": compare_models(labels, scores),
        "versions": {"trl": "1"},
    }


def test_an_evaluation_without_rewards_replaces_the_last_one_and_leaves_other_files(tmp_path):
    write_evaluation(evaluation(["de", "sw"]), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    (tmp_path / "margins.csv").write_text("mine")
    write_evaluation(evaluation(["it"], reference=None), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["accuracy.png", "margins.csv", *FILES[1:]]
    assert "without a reference" in (tmp_path / "report.md").read_text()


def test_tables_show_every_figure_with_its_interval():
    figures = evaluation(["de", "sw"], ["m0", "m1"])
    text = render_text(figures)
    for model in figures["models"].values():
        for part in (model["overall"], *model["groups"].values()):
            low, high = part["accuracy_95"]
            shown = f"{100 * part['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
            assert re.search(rf" (4|8)  +{re.escape(shown)} .* {part['margin_mean']:.3f} ", text)
        worst = model["worst"]["accuracy"]
        assert f"{100 * worst['value']:.1f} ({worst['group']})" in text
    part = figures["differences"]["m1"]["macro"]
    low, high = part["interval_95"]
    shown = f"{100 * part['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
    assert re.search(rf"macro mean  +{re.escape(shown)}", text)
    assert all(note in text for note in ("fills max_length: 1 pair.", "no pair left: fr.", "Model 1: m0\nModel 2: m1"))
    assert "m1: its rewards are relative to the reference a reference.\n" in text


@pytest.mark.parametrize("models", [["one\tmodel$"], ["a", "b"]])
def test_plots_name_what_they_show(tmp_path, monkeypatch, models):
    """A `$` starts no formula; accuracies are on the whole scale."""
    figures = {}
    monkeypatch.setattr(report, "save", lambda figure, path: save(figures.setdefault(path.name, figure), path))
    write_evaluation(evaluation(["$\\frac{$", "line\nbreak", "de"], models), tmp_path)
    accuracy = figures["accuracy.png"].axes[0]
    labels = [label.get_text() for label in accuracy.get_yticklabels()]
    assert labels == ["$\\frac{$", "de", r"line\nbreak", "all pairs"]
    first = models[0].replace("\t", r"\t")
    assert accuracy.get_title() == (f"{first}\non data" if len(models) == 1 else "data")
    assert accuracy.get_xlim() == (-2, 102)


@pytest.mark.parametrize(("groups", "models"), [(30, 1), (30, 8)])
def test_plots_of_many_groups_fit(tmp_path, groups, models):
    names = [f"Language_{index:03} (Script)" for index in range(groups)]
    write_evaluation(evaluation(names, [f"m{index}" for index in range(models)]), tmp_path)
    with Image.open(tmp_path / "accuracy.png") as image:
        grey = np.asarray(image.convert("L"))
    assert (np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]]) == 255).all()
    rows = re.findall(r"^\| Language\\_\d{3} ", (tmp_path / "report.md").read_text(), re.MULTILINE)
    assert len(rows) == groups * (models + (models > 1))


def test_an_installed_font_with_the_letters_is_used(tmp_path, monkeypatch):
    """A copy of a font for formulas, which comes with Matplotlib, stands for one that was installed."""
    font = next(font for font in fontManager.ttflist if font.fname.endswith("STIXNonUni.ttf"))
    copy = replace(font, fname=shutil.copy(font.fname, tmp_path))
    monkeypatch.setattr(fontManager, "ttflist", [copy, *fontManager.ttflist])
    assert choose_fonts(["de", "\ue000"]) == [*choose_fonts(["de"]), "STIXNonUnicode"]
