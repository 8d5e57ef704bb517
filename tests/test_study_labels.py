"""Labels and groups of a study that a table, a plot or a formula's reader could stumble over."""

import numpy as np
import pytest
from study_data import plan

from trl_capo.study.config import StudyConfig
from trl_capo.study.plots import plot_study
from trl_capo.study.report import report
from trl_capo.study.table import Bootstrap, Cell

METHODS = {f"{kind} with a name that takes much room": {"method": kind} for kind in ("dpo", "capo", "ipo")}
NOISE = {"$\\frac$ noise": {"kind": "flip", "rate": 0.1}, "10 | 40 %": {"kind": "flip", "rate": 0.2}}
LABELS = np.array(["a\nb|c"] * 3 + ["$\\frac$"] * 3)


@pytest.fixture
def study(tmp_path):
    """A plan with odd labels, and its cells: margins by chance, of groups with odd names."""
    grid = [{"methods": list(METHODS), "noise": list(NOISE), "seeds": [0, 1], "epochs": 1}]
    options = {"methods": METHODS, "noise": NOISE, "grid": grid, "baseline": next(iter(METHODS))}
    config = StudyConfig(**plan("a/model", "data", tmp_path, **options))
    result = {
        "curve": [{"step": 2, "accuracy": 0.5}, {"step": 4, "accuracy": 0.6}],
        "noise_rates": None,
        "versions": {},
    }
    result |= {"steps": 4, "seconds": 1.0, "peak_memory_bytes": 1}
    draws = np.random.default_rng(0)
    cells = {
        (1, noise, method): Cell((0, 1), draws.normal(0.5, 1, (2, len(LABELS))), LABELS, [result] * 2)
        for noise in NOISE
        for method in METHODS
    }
    return config, cells, tmp_path


def test_a_row_of_a_table_stays_one(study):
    config, cells, _ = study
    text = report(config, {}, cells, Bootstrap(LABELS), {})
    assert "10 \\| 40 %" in text
    assert "(a\\nb\\|c)" in text
    assert all(line.endswith("|") for line in text.splitlines() if line.startswith("|"))


def test_labels_in_plots_are_no_formulae_and_have_room(study, monkeypatch):
    config, cells, folder = study
    figures = {}
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path: figures.setdefault(path.stem, figure))
    plot_study(config, cells, Bootstrap(LABELS), folder)
    assert sorted(figures) == ["accuracy_1ep", "gain_1ep", "reward_gap_1ep", "steps_1ep"]
    for name, figure in figures.items():
        figure.draw_without_rendering()
        for legend in figure.legends:
            assert legend.get_window_extent().x0 >= 0, name
            assert legend.get_window_extent().x1 <= figure.bbox.width, name
    cell = figures["gain_1ep"].axes[0].get_window_extent().width / 2
    assert cell > 30  # pixels: there is room for a number of two digits and its sign


def test_without_a_comparison_there_is_no_map(study):
    config, cells, folder = study
    clean, flip = NOISE
    dpo, capo, _ = METHODS
    apart = {key: cells[key] for key in ((1, clean, dpo), (1, flip, capo))}
    assert len(plot_study(config, apart, Bootstrap(LABELS), folder)) == 3
    assert not list(folder.glob("gain*.png"))
