"""Plots of a study, as PNG files: shapes and positions tell methods apart, and shades of grey, not hue."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trl_capo import study_table as table
from trl_capo.plots import MARKERS
from trl_capo.study_config import StudyConfig
from trl_capo.study_table import Bootstrap, Cell, Estimate, Key

LINES = ["-", "--", "-.", ":"]
MEASURES = {"accuracy": ("reward accuracy, %", 100, table.accuracy), "margin": ("mean margin", 1, table.margin)}


def plot_study(config: StudyConfig, cells: Mapping[Key, Cell], bootstrap: Bootstrap, folder: Path) -> list[Path]:
    """Draw every plot there are numbers for; returns the files."""
    plots = []
    for epochs in sorted({key[0] for key in cells}):
        part = {key: cell for key, cell in cells.items() if key[0] == epochs}
        ending = f"_{epochs:g}ep.png"
        plots += [
            _over_noise(config, part, bootstrap, "accuracy", folder / f"accuracy{ending}"),
            _over_noise(config, part, bootstrap, "margin", folder / f"reward_gap{ending}"),
            _over_steps(config, part, folder / f"steps{ending}"),
        ]
        if len(next(iter(part.values())).groups) > 1 and any(key[2] != config.baseline for key in part):
            plots.append(_gain_map(config, part, bootstrap, folder / f"gain{ending}"))
    return plots


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
    """A group of marks for every noise, a mark with its 95 % interval for every method."""
    label, unit, measure = MEASURES[what]
    noises, methods = _noises(config, cells), _methods(config, cells)
    epochs = next(iter(cells))[0]
    figure, (axes,) = _figure(1.6 + 1.9 * len(noises), 4.2)
    for index, method in enumerate(methods):
        found: list[tuple[float, Estimate]] = [
            (place + 0.8 * ((index + 0.5) / len(methods) - 0.5), measure(cells[epochs, noise, method], bootstrap))
            for place, noise in enumerate(noises)
            if (epochs, noise, method) in cells
        ]
        centre = np.array([estimate.value for _, estimate in found]) * unit
        low, high = (np.array([getattr(estimate, end) for _, estimate in found]) * unit for end in ("low", "high"))
        axes.errorbar(
            [place for place, _ in found],
            centre,
            yerr=np.abs(np.stack([low, high]) - centre),
            fmt=MARKERS[index % len(MARKERS)],
            color=_shade(index, len(methods)),
            markersize=6,
            capsize=2,
            linewidth=1.2,
            label=method,
        )
    axes.set_xticks(range(len(noises)), noises)
    axes.set_xlim(-0.5, len(noises) - 0.5)
    for place in range(1, len(noises)):
        axes.axvline(place - 0.5, color="0.85", linewidth=0.8)
    axes.set_ylabel(f"{label} (95 % interval)")
    axes.set_xlabel("noise in the training labels")
    return _finish(figure, axes, path)


def _over_steps(config: StudyConfig, cells: Mapping[Key, Cell], path: Path) -> Path:
    """Mean validation accuracy over the steps, a panel a noise."""
    noises, methods = _noises(config, cells), _methods(config, cells)
    epochs = next(iter(cells))[0]
    figure, panels = _figure(1.2 + 2.8 * len(noises), 4.2, len(noises))
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
        axes.set_title(noise, fontsize=10, parse_math=False)
        axes.set_xlabel("step")
    panels[0].set_ylabel("reward accuracy on the validation split, %")
    return _finish(figure, max(panels, key=lambda axes: len(axes.lines)), path)


def _gain_map(config: StudyConfig, cells: Mapping[Key, Cell], bootstrap: Bootstrap, path: Path) -> Path:
    """Gain over the baseline in points: a row a method and noise, a column a group; bold beyond chance."""
    epochs, groups = next(iter(cells))[0], next(iter(cells.values())).groups
    rows, names = [], []
    for noise in _noises(config, cells):
        baseline = cells.get((epochs, noise, config.baseline))
        for method in _methods(config, cells):
            cell = cells.get((epochs, noise, method))
            if cell is None or baseline is None or cell is baseline:
                continue
            found = [table.difference(cell, baseline, bootstrap, group) for group in groups]
            if all(found):
                rows.append(found)
                names.append(f"{noise}: {method}")
    figure, (axes,) = _figure(2.6 + 0.55 * len(groups), 1.2 + 0.3 * max(1, len(rows)))
    values = 100 * np.array([[entry.value for entry in row] for row in rows]).reshape(len(rows), len(groups))
    limit = max(1.0, float(np.abs(values).max(initial=0.0)))
    image = axes.imshow(values, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto")
    for y, row in enumerate(rows):
        for x, entry in enumerate(row):
            dark = abs(values[y, x]) > 0.6 * limit
            weight = "bold" if entry.beyond_zero else "normal"
            axes.text(x, y, f"{values[y, x]:+.0f}", ha="center", va="center", fontsize=7, weight=weight,
                      color="white" if dark else "black")  # fmt: skip
    axes.set_xticks(range(len(groups)), groups, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    for label in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
        label.set_parse_math(False)
    figure.colorbar(image, label=f"accuracy less {config.baseline}'s, points", shrink=0.8)
    figure.savefig(path)
    return path


def _shade(index: int, count: int) -> str:
    return str(round(0.05 + 0.6 * index / max(1, count - 1), 3))


def _finish(figure: Any, axes: Any, path: Path) -> Path:
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    handles, labels = axes.get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside upper center", ncols=5, fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    figure.savefig(path)
    return path
