"""Plots of an evaluation, as PNG files.

They use position and shape, not hue, and give every group a line of its own, so that they read in grey and with 30
languages or more. Needs matplotlib (extra `report`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trl_capo.fonts import choose_fonts, one_line
from trl_capo.statistics import ALL_PAIRS

MEASURES = {"accuracy": "reward accuracy", "reference_free_accuracy": "reference-free accuracy"}
MARKERS = "osD^vP*X"
GROUPS, LINES = 30, 60
"""How many groups a plot has room for at least, and roughly how many lines of points, if these are more groups."""


def plot_evaluation(
    figures: dict[str, Any], labels: Sequence[str] | None, margins: dict[str, np.ndarray | None], folder: Path
) -> tuple[list[str], list[str]]:
    """Draw accuracy.png and, with rewards, margins.png of the first model.

    Args:
        figures: in the schema of docs/evaluate.md.
        labels: (N,) the pairs' groups, or None for none.
        margins: of every model, (N,) margins, or None without a reference.
        folder: where the files go.

    Returns:
        The names of the files, and what a reader must know beside them.
    """
    import matplotlib

    models = figures["models"]
    key = "accuracy" if all(model["overall"]["accuracy"] is not None for model in models.values()) else None
    key = key or "reference_free_accuracy"
    data = figures["dataset"]["name"]
    groups, remarks = _choose_groups(models, key)
    known = [*groups, *models, data]
    fonts, undrawable = choose_fonts(known)
    stand_ins = {name: f"#{number}" for number, name in enumerate(known, 1) if undrawable & set(name)}
    if stand_ins:
        listed = ", ".join(f"{stand_in} is {one_line(name)}" for name, stand_in in stand_ins.items())
        remarks.append(f"No installed font has the letters of some names. In the plots, {listed}.")
    names = {name: stand_ins.get(name) or one_line(name) for name in known}
    with matplotlib.rc_context({"font.family": fonts}):
        first, values = next(iter(margins.items()))
        on_data, of_first = _end(names[data], 90), f"{_end(names[first], 90)}\non {_end(names[data], 90)}"
        title = on_data if len(models) > 1 else of_first  # the legend names several
        files = [_plot_accuracy(models, key, groups, names, title, folder / "accuracy.png")]
        if values is not None:
            files.append(_plot_margins(labels, values, groups, names, of_first, folder / "margins.png"))
    return files, remarks


def _choose_groups(models: dict[str, Any], key: str) -> tuple[list[str], list[str]]:
    """The groups to show, in the order of their names: where they are too many, those with the lowest figures."""
    name, first = next(iter(models.items()))
    most = max(GROUPS, int(LINES / _lines_per_group(len(models))))
    known = [group for group, values in first["groups"].items() if values[key] is not None]
    if len(first["groups"]) <= most:
        return list(first["groups"]), []
    lowest = sorted(known, key=lambda group: first["groups"][group][key])[:most]
    shown = f"{len(lowest)} of {len(first['groups'])} groups"
    remark = f"The plots show the {shown} with the lowest {MEASURES[key]} of {one_line(name)}."
    return sorted(lowest), [remark]


def _lines_per_group(models: int) -> float:
    """The points of a group's models stand closer than lines do, and closer still where they are many."""
    return min(max(1.0, 0.6 * models), 3.0)


def _figure(groups: Sequence[str], title: str, lines_per_group: float = 1.0, models: int = 0) -> tuple[Any, Any]:
    """A figure and its axes with a place on the y axis for each group, a rule before the last, room for a legend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = 1.8 + 0.28 * len(groups) * lines_per_group + 0.18 * models
    figure = Figure(figsize=(8, height), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_yticks(range(len(groups)), [group if len(group) <= 30 else group[:29] + "…" for group in groups])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)  # a `$` in a name is a character
    axes.set_title(title, fontsize=9, parse_math=False)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.grid(axis="x", color="0.85")
    axes.axhline(len(groups) - 1.5, color="0.7", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _plot_accuracy(
    models: dict[str, Any], key: str, groups: Sequence[str], names: dict[str, str], title: str, path: Path
) -> str:
    """Accuracy of every model with its 95 % interval, a line a group."""
    from matplotlib.ticker import PercentFormatter

    rows, several = [*(names[group] for group in groups), ALL_PAIRS], len(models) > 1
    figure, axes = _figure(rows, title, _lines_per_group(len(models)), len(models) if several else 0)
    for index, (name, model) in enumerate(models.items()):
        values = [*(model["groups"][group] for group in groups), model["overall"]]
        place = np.arange(len(rows)) + (index - (len(models) - 1) / 2) * 0.6 / len(models)
        known = [row for row, value in enumerate(values) if value[key] is not None]
        centre = np.array([values[row][key] for row in known])
        bounds = np.array([values[row][f"{key}_95"] for row in known])
        shade = str(0.15 + 0.5 * index / max(1, len(models) - 1)) if several else "0.15"
        axes.errorbar(
            centre,
            place[known],
            xerr=np.abs(bounds.T - centre),
            fmt=MARKERS[index % len(MARKERS)],
            color=shade,
            markersize=5,
            capsize=2,
            linewidth=1.2,
            label=_end(names[name], 90),
        )
    axes.axvline(0.5, color="0.4", linestyle=":", linewidth=1)
    axes.set_xlim(-0.02, 1.02)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel(f"{MEASURES[key]} with 95 % interval (dotted: chance)")
    if several:
        legend = figure.legend(loc="outside upper center", fontsize=8, ncols=1, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
    return _save(figure, path)


def _plot_margins(
    labels: Sequence[str] | None,
    values: np.ndarray,
    groups: Sequence[str],
    names: dict[str, str],
    title: str,
    path: Path,
) -> str:
    """Distribution of a model's margins, a box a group (median, quartiles, 5 and 95 %)."""
    labels = np.asarray(labels, dtype=object)
    rows = [*(names[group] for group in groups), ALL_PAIRS]
    figure, axes = _figure(rows, title)
    axes.boxplot(
        [*(values[labels == group] for group in groups), values],
        positions=range(len(rows)),
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
    axes.set_xlabel("margin in units of reward: median, quartiles, 5 to 95 %")
    return _save(figure, path)


def _end(name: str, length: int) -> str:
    """The end of a long name, which tells folders apart."""
    return name if len(name) <= length else f"…{name[1 - length :]}"


def _save(figure: Any, path: Path) -> str:
    figure.savefig(path, format="png")
    return path.name
