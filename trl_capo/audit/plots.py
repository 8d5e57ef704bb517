"""Plots of an audit, as PNG files: the data map, and the noise rate of every group. Needs matplotlib."""

from pathlib import Path
from typing import Any

import numpy as np

from trl_capo.audit.suspects import Ranking
from trl_capo.fonts import choose_fonts, one_line
from trl_capo.plots import MARKERS

COLOURS = 20
"""Groups that get a colour, those with the most pairs; the others share a grey."""
POINTS = 20_000
"""The most pairs of a data map; more are drawn at random."""
ROWS = 60
"""The most groups of a plot of rates, those with the highest."""


def plot_audit(ranking: Ranking, true_rates: np.ndarray | None, folder: Path) -> tuple[dict[str, str], list[str]]:
    """Draw data_map.png, if pairs were seen more than once, and noise_rates.png.

    Args:
        ranking: of N pairs in G groups.
        true_rates: (G,) where they are known.
        folder: where the files go.

    Returns:
        The names of the files, each with what it shows, and what a reader must know beside them.
    """
    import matplotlib

    groups = ranking.judgement.groups.tolist()
    fonts, undrawable = choose_fonts(groups)
    stand_ins = {group: f"#{number}" for number, group in enumerate(groups, 1) if undrawable & set(group)}
    names = [_short(stand_ins.get(group) or one_line(group)) or "all pairs" for group in groups]
    listed = ", ".join(f"{name} is {one_line(group)}" for group, name in stand_ins.items())
    remarks = [f"No installed font has the letters of some names. In the plots, {listed}."] if listed else []
    files = {}
    with matplotlib.rc_context({"font.family": fonts}):
        if ranking.pairs.passes > 1:
            figure, shown = data_map(ranking, names)
            figure.savefig(folder / "data_map.png", format="png")
            files["data_map.png"] = f"Data map: mean confidence against variability of {shown}"
        else:
            remarks.append("There is no data map: pairs were seen once, so their confidence does not vary.")
        figure, left_out = rates(ranking, names, true_rates)
        figure.savefig(folder / "noise_rates.png", format="png")
        files["noise_rates.png"] = "Noise rate of every group, with 95 % intervals"
        remarks += [f"The plot of noise rates leaves out {left_out} groups with lower ones."] if left_out else []
    return files, remarks


def _short(name: str) -> str:
    return name if len(name) <= 30 else name[:29] + "…"


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    return figure, axes


def data_map(ranking: Ranking, names: list[str]) -> tuple[Any, str]:
    """A figure with a point a pair, and how many of them it shows."""
    import matplotlib
    from matplotlib.lines import Line2D

    pairs, place = ranking.pairs, ranking.judgement.place
    total = len(place)
    drawn = np.arange(total)
    if total > POINTS:
        drawn = np.sort(np.random.default_rng(0).choice(total, POINTS, replace=False))
    sizes = np.bincount(place, minlength=len(names))
    largest = np.argsort(-sizes, kind="stable")[:COLOURS]
    palette = matplotlib.colormaps["tab20"].colors
    palette = palette[::2] + palette[1::2]  # the strong ones first
    figure, axes = _figure(8.5, 5.5)
    looks = {group: (palette[rank], MARKERS[rank % len(MARKERS)]) for rank, group in enumerate(sorted(largest))}
    for group in range(len(names)):
        member = drawn[place[drawn] == group]
        colour, marker = looks.get(group, ("0.75", "."))
        axes.scatter(
            pairs.variability[member],
            pairs.mean_confidence[member],
            s=9,
            color=[colour],
            marker=marker,
            alpha=0.55,
            linewidths=0,
        )
    handles = []
    for group, (colour, marker) in sorted(looks.items()):
        label = f"{names[group]} ({sizes[group]:,})"
        handles.append(Line2D([], [], linestyle="", color=colour, marker=marker, label=label))
    if len(names) > COLOURS:
        handles.append(Line2D([], [], linestyle="", color="0.75", marker=".", label="other groups"))
    legend = figure.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    axes.set_xlabel("variability: standard deviation of the confidence over the passes")
    axes.set_ylabel("mean confidence that the label is right")
    axes.set_ylim(-0.02, 1.02)
    axes.grid(color="0.92")
    for height, words in ((0.02, "below: hardly believed, probably wrong"), (0.96, "above: always believed")):
        axes.text(0.99, height, words, transform=axes.transAxes, fontsize=8, color="0.35", ha="right")
    return figure, f"{len(drawn):,} of {total:,} pairs" if total > len(drawn) else f"{total:,} pairs"


def rates(ranking: Ranking, names: list[str], true_rates: np.ndarray | None) -> tuple[Any, int]:
    """A figure with a line a group, the highest rate above, and how many groups are left out."""
    from matplotlib.ticker import PercentFormatter

    found = ranking.judgement
    shown = np.argsort(-found.rates, kind="stable")[:ROWS]
    figure, axes = _figure(8, 1.4 + 0.28 * len(shown))
    rows, centre = np.arange(len(shown)), found.rates[shown]
    axes.errorbar(
        centre,
        rows,
        xerr=np.abs(found.intervals[shown].T - centre).clip(0.0),
        fmt="o",
        color="0.15",
        markersize=5,
        capsize=2,
        linewidth=1.2,
        label="estimated, 95 % interval",
    )
    if true_rates is not None:
        axes.plot(true_rates[shown], rows, "x", color="tab:red", markersize=7, label="true")
    axes.axvline(found.overall_rate, color="0.4", linestyle=":", linewidth=1, label="all pairs, estimated")
    axes.set_yticks(rows, [names[group] for group in shown])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(left=0.0)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("share of labels that are wrong")
    axes.grid(axis="x", color="0.88")
    figure.legend(loc="outside upper center", fontsize=8, ncols=3, frameon=False)
    return figure, len(names) - len(shown)
