"""Plots of an evaluation, as PNG files.

They use position and shape, not hue, and give every group a line of its own, so that they read in grey and with 30
languages or more. Needs matplotlib (extra `report`).
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

MEASURES = {"accuracy": "reward accuracy", "reference_free_accuracy": "reference-free accuracy"}
MARKERS = "osD^vP*X"


def _figure(groups: Sequence[str], lines_per_group: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.4 + 0.28 * len(groups) * max(1.0, lines_per_group)), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_yticks(range(len(groups)), [group if len(group) <= 30 else group[:29] + "…" for group in groups])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)  # a `$` in a name is a character
    axes.xaxis.label.set_parse_math(False)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.grid(axis="x", color="0.85")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def plot_accuracy(figures: dict[str, Any], path: Path) -> list[Path]:
    """Accuracy of every model with its 95 % interval, a line a group; returns the file, or nothing without numbers."""
    models = figures["models"]
    key = "accuracy" if all(model["overall"]["accuracy"] is not None for model in models.values()) else None
    key = key or "reference_free_accuracy"
    groups = [*next(iter(models.values()))["groups"], "all pairs"]
    figure, axes = _figure(groups, 0.6 * len(models))
    for index, (name, model) in enumerate(models.items()):
        values = [*model["groups"].values(), model["overall"]]
        place = np.arange(len(groups)) + (index - (len(models) - 1) / 2) * 0.6 / len(models)
        known = [row for row, value in enumerate(values) if value[key] is not None]
        centre = np.array([values[row][key] for row in known])
        bounds = np.array([values[row][f"{key}_95"] for row in known])
        shade = str(0.15 + 0.5 * index / max(1, len(models) - 1)) if len(models) > 1 else "0.15"
        axes.errorbar(
            centre,
            place[known],
            xerr=np.abs(bounds.T - centre),
            fmt=MARKERS[index % len(MARKERS)],
            color=shade,
            markersize=5,
            capsize=2,
            linewidth=1.2,
            label=name,
        )
    axes.axvline(0.5, color="0.4", linestyle=":", linewidth=1)
    axes.axhline(len(groups) - 1.5, color="0.7", linewidth=0.8)
    axes.set_xlabel(f"{MEASURES[key]} with 95 % interval (dotted: chance)")
    if len(models) > 1:
        legend = figure.legend(loc="outside upper center", fontsize=8, ncols=1, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
    return [_save(figure, path)]


def plot_margins(labels: Sequence[str] | None, margins: dict[str, np.ndarray | None], path: Path) -> list[Path]:
    """Distribution of the first model's margins, a box a group (median, quartiles, 5 and 95 %)."""
    name, values = next(iter(margins.items()))
    if values is None:
        return []
    labels = labels or ["all pairs"] * len(values)
    groups = sorted(set(labels))
    figure, axes = _figure(groups, 1.0)
    labels = np.asarray(labels, dtype=object)
    axes.boxplot(
        [values[labels == group] for group in groups],
        positions=range(len(groups)),
        orientation="horizontal",
        whis=(5, 95),
        showfliers=False,
        widths=0.55,
        manage_ticks=False,
        medianprops={"color": "0.1", "linewidth": 1.6},
        boxprops={"color": "0.4"},
        whiskerprops={"color": "0.4"},
        capprops={"color": "0.4"},
    )
    axes.axvline(0, color="0.4", linestyle=":", linewidth=1)
    shown = name if len(name) <= 60 else f"…{name[-59:]}"
    axes.set_xlabel(f"margin in units of reward: median, quartiles, 5 to 95 %\n{shown}", fontsize=9)
    return [_save(figure, path)]


def _save(figure: Any, path: Path) -> Path:
    unfinished = path.with_name(path.name + ".part")
    figure.savefig(unfinished, format="png")
    os.replace(unfinished, path)
    return path
