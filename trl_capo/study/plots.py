"""Plots of a study, as PNG files: shapes and positions tell methods apart, and shades of grey, not hue."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trl_capo.fonts import choose_fonts, one_line
from trl_capo.plots import MARKERS
from trl_capo.study import table
from trl_capo.study.config import StudyConfig
from trl_capo.study.table import Bootstrap, Cell, Key

WIDTH = 6.5  # inches, that the legend has room
LETTER = 0.075  # inches, of the labels' size
LINES = ["-", "--", "-.", ":"]
MEASURES = {"accuracy": ("reward accuracy, %", 100, table.accuracy), "margin": ("mean margin", 1, table.margin)}


def plot_study(config: StudyConfig, cells: Mapping[Key, Cell], bootstrap: Bootstrap, folder: Path) -> dict[Path, str]:
    """Draw every plot there are numbers for; returns the files, each with what it shows."""
    import matplotlib

    groups = next(iter(cells.values())).groups
    fonts, undrawable = choose_fonts([*config.methods, *config.noise, *groups])
    names = {group: f"#{number}" for number, group in enumerate(groups, 1) if undrawable & set(group)}
    with matplotlib.rc_context({"font.family": fonts}):
        return dict(_plots(config, cells, bootstrap, names, folder))


def _plots(
    config: StudyConfig, cells: Mapping[Key, Cell], bootstrap: Bootstrap, names: Mapping[str, str], folder: Path
) -> Iterator[tuple[Path, str]]:
    for epochs in sorted({key[0] for key in cells}):
        part = {key: cell for key, cell in cells.items() if key[0] == epochs}
        ending, told = f"_{epochs:g}ep.png", f"{epochs:g} epoch{'' if epochs == 1 else 's'}"
        path = folder / f"accuracy{ending}"
        yield _over_noise(config, part, bootstrap, "accuracy", path), f"Reward accuracy under noise, {told}"
        path = folder / f"reward_gap{ending}"
        yield _over_noise(config, part, bootstrap, "margin", path), f"Reward gap under noise, {told}"
        yield _over_steps(config, part, folder / f"steps{ending}"), f"Reward accuracy over the steps, {told}"
        compared = {key[1] for key in part if key[2] == config.baseline}
        beside = any(key[1] in compared and key[2] != config.baseline for key in part)
        if len(next(iter(part.values())).groups) > 1 and beside:
            path = folder / f"gain{ending}"
            listed = "".join(f"; {name} is {one_line(group)}" for group, name in names.items())
            caption = f"Gain in reward accuracy over {config.baseline} in every group, {told}{listed}"
            yield _gain_map(config, part, bootstrap, names, path), caption


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns, squeeze=False, sharey=True)[0]


def _noises(config: StudyConfig, cells: Mapping[Key, Cell]) -> list[str]:
    return [noise for noise in config.noise if any(key[1] == noise for key in cells)]


def _methods(config: StudyConfig, cells: Mapping[Key, Cell]) -> list[str]:
    return [method for method in config.methods if any(key[2] == method for key in cells)]


def _over_noise(config: StudyConfig, cells: Mapping[Key, Cell], bootstrap: Bootstrap, what: str, path: Path) -> Path:
    """A group of marks for every noise, a mark with its 95 % interval for every method; hollow with a single seed."""
    label, unit, measure = MEASURES[what]
    noises, methods = _noises(config, cells), _methods(config, cells)
    epochs = next(iter(cells))[0]
    figure, (axes,) = _figure(max(WIDTH, 1.6 + 1.9 * len(noises)), 4.2)
    for index, method in enumerate(methods):
        own = {place: cells[key] for place, noise in enumerate(noises) if (key := (epochs, noise, method)) in cells}
        places = np.array(list(own)) + 0.8 * ((index + 0.5) / len(methods) - 0.5)
        found = [measure(cell, bootstrap) for cell in own.values()]
        centre, low, high = (unit * np.array([getattr(e, end) for e in found]) for end in ("value", "low", "high"))
        style = {"fmt": MARKERS[index % len(MARKERS)], "color": _shade(index, len(methods)), "markersize": 6}
        axes.errorbar(
            places,
            centre,
            yerr=np.abs(np.stack([low, high]) - centre),
            capsize=2,
            linewidth=1.2,
            label=method,
            **style,
        )
        single = np.array([len(cell.seeds) == 1 for cell in own.values()])
        axes.errorbar(places[single], centre[single], markerfacecolor="white", linestyle="none", **style)
    axes.set_xticks(range(len(noises)), noises, parse_math=False)
    axes.set_xlim(-0.5, len(noises) - 0.5)
    for place in range(1, len(noises)):
        axes.axvline(place - 0.5, color="0.85", linewidth=0.8)
    axes.set_ylabel(f"{label} (95 % interval; hollow: one seed)")
    axes.set_xlabel("noise in the training labels")
    return _finish(figure, axes, path)


def _over_steps(config: StudyConfig, cells: Mapping[Key, Cell], path: Path) -> Path:
    """Mean validation accuracy over the steps, a panel a noise."""
    noises, methods = _noises(config, cells), _methods(config, cells)
    epochs = next(iter(cells))[0]
    figure, panels = _figure(max(WIDTH, 1.2 + 2.8 * len(noises)), 4.2, len(noises))
    for axes, noise in zip(panels, noises, strict=True):
        for index, method in enumerate(methods):
            if (epochs, noise, method) not in cells:
                continue
            steps, values = table.mean_curve(cells[epochs, noise, method])
            axes.plot(
                steps,
                100 * np.array(values),
                LINES[index % len(LINES)],
                marker=MARKERS[index % len(MARKERS)],
                markersize=4,
                color=_shade(index, len(methods)),
                linewidth=1.2,
                label=method,
            )
        axes.grid(axis="y", color="0.9")
        axes.set_title(noise, fontsize=10, parse_math=False)
        axes.set_xlabel("step")
    panels[0].set_ylabel("reward accuracy on the validation split, %")
    return _finish(figure, max(panels, key=lambda axes: len(axes.lines)), path)


def _gain_map(
    config: StudyConfig, cells: Mapping[Key, Cell], bootstrap: Bootstrap, names: Mapping[str, str], path: Path
) -> Path:
    """Gain over the baseline in points: a row a method and noise, a column a group; bold beyond chance.

    Args:
        names: of groups whose own no font can draw.
    """
    epochs, groups = next(iter(cells))[0], next(iter(cells.values())).groups
    rows, titles, ends = [], [], []
    for noise in _noises(config, cells):
        baseline = cells.get((epochs, noise, config.baseline))
        for method in _methods(config, cells):
            cell = cells.get((epochs, noise, method))
            if cell is None or baseline is None or cell is baseline:
                continue
            found = [table.difference(cell, baseline, bootstrap, group) for group in groups]
            if all(found):
                rows.append(found)
                seeds, *_ = table.common_seeds(cell, baseline)
                titles.append(f"{noise}: {method}, {len(seeds)} seed{'' if len(seeds) == 1 else 's'}")
        ends.append(len(rows))
    room = 1.9 + LETTER * max(map(len, titles), default=0)  # for the bar of colours and the titles
    figure, (axes,) = _figure(room + 0.55 * len(groups), max(3.6, 1.2 + 0.3 * len(rows)))
    values = 100 * np.array([[entry.value for entry in row] for row in rows]).reshape(len(rows), len(groups))
    limit = max(1.0, float(np.abs(values).max(initial=0.0)))
    image = axes.imshow(values, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto")
    for y, row in enumerate(rows):
        for x, entry in enumerate(row):
            dark = abs(values[y, x]) > 0.6 * limit
            weight = "bold" if entry.beyond_zero else "normal"
            axes.text(x, y, f"{values[y, x]:+.0f}", ha="center", va="center", fontsize=7, weight=weight,
                      color="white" if dark else "black")  # fmt: skip
    for end in ends[:-1]:
        axes.axhline(end - 0.5, color="black", linewidth=1)
    shown = [names.get(group, one_line(group)) for group in groups]
    axes.set_xticks(range(len(groups)), shown, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(len(titles)), titles, fontsize=8)
    for label in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
        label.set_parse_math(False)
    label = f"reward accuracy less {config.baseline}'s, points\n(bold: the 95 % interval leaves out 0)"
    figure.colorbar(image, label=label, shrink=0.8)
    figure.savefig(path)
    return path


def _shade(index: int, count: int) -> str:
    return str(round(0.05 + 0.5 * index / max(1, count - 1), 3))


def _finish(figure: Any, axes: Any, path: Path) -> Path:
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    handles, labels = axes.get_legend_handles_labels()
    columns = int(figure.get_figwidth() / (LETTER * max(map(len, labels)) + 0.5))  # 0.5: the mark, and space
    columns = min(5, max(1, columns))
    legend = figure.legend(handles, labels, loc="outside upper center", ncols=columns, fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    figure.savefig(path)
    return path
