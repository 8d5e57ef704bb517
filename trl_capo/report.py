"""What an evaluation leaves behind: tables in the terminal (rich), report.md, metrics.json and the plots."""

import importlib.util
import itertools
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np

from trl_capo.plots import MEASURES, plot_evaluation

logger = logging.getLogger(__name__)

FILES = ("metrics.json", "report.md", "accuracy.png", "margins.png")
SUMMARIES = {"overall": "all pairs", "macro": "macro mean"}


def _percent(value: float | None, interval: Sequence[float] | None = None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f}" + (f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else "")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _letters(count: int) -> list[str]:
    """Names of models in a table: A, B, ..., Z, AA, AB, ..."""
    words = ("".join(word) for size in itertools.count(1) for word in itertools.product(ascii_uppercase, repeat=size))
    return list(itertools.islice(words, count))


def model_table(model: dict[str, Any], group_name: str) -> list[list[str]]:
    """Rows of a model's table, the header first: one a group, then all pairs, the macro mean and the worst group."""
    header = [group_name, "pairs", "accuracy\n% [95 %]", "ties\n%", "mean\nmargin", "median\nmargin"]
    header.append("reference-free\n% [95 %]")

    def row(name: str, values: dict[str, Any]) -> list[str]:
        return [
            name,
            f"{values['pairs']:,}",
            _percent(values["accuracy"], values["accuracy_95"]),
            _percent(values["ties"]),
            _number(values["margin_mean"]),
            _number(values["margin_median"]),
            _percent(values["reference_free_accuracy"], values["reference_free_accuracy_95"]),
        ]

    rows = [header, *(row(group, values) for group, values in model["groups"].items())]
    for column, groups in model["also_by"].items():
        rows += [row(f"{column}: {group}", values) for group, values in groups.items()]
    rows.append(row("all pairs", model["overall"]))
    macro, worst = model["macro"], model["worst"]
    if not model["groups"]:
        return rows
    rows.append(
        ["macro mean", "", _percent(macro.get("accuracy")), "", "", "", _percent(macro.get("reference_free_accuracy"))]
    )

    def name_worst(key: str) -> str:
        return f"{_percent(worst[key]['value'])} ({worst[key]['group']})" if key in worst else "-"

    rows.append(["worst group", "", name_worst("accuracy"), "", "", "", name_worst("reference_free_accuracy")])
    return rows


def difference_table(differences: dict[str, Any], group_name: str) -> list[list[str]]:
    """Rows of the comparison, the header first: a column a model, `*` behind what is beyond chance."""
    first = next(iter(differences.values()))
    rows = [[group_name, *(f"{letter} - A" for letter in _letters(1 + len(differences))[1:])]]

    def cell(found: dict[str, Any]) -> str:
        low, high = found["interval_95"]
        star = " *" if found["beyond_chance"] else ""
        return f"{100 * found['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]{star}"

    for group in first["groups"]:
        rows.append([group, *(cell(found["groups"][group]) for found in differences.values())])
    for summary, name in SUMMARIES.items():
        if summary in first:
            rows.append([name, *(cell(found[summary]) for found in differences.values())])
    return rows


def notes(figures: dict[str, Any]) -> list[str]:
    """What a reader must know beside the numbers."""
    lines = []
    if figures["dropped_pairs"]:
        lines.append(f"{figures['dropped_pairs']:,} pairs were left out: their prompt alone fills max_length.")
    for name, model in figures["models"].items():
        if model["reference"] is None:
            lines.append(
                f"{name}: no reference was given (ref_model), so there are no rewards, only log-probabilities."
            )
        elif model["overall"]["ties"] == 1:
            lines.append(
                f"{name}: every pair is a tie, because the model and its reference ({model['reference']}) give the "
                "same log-probabilities. There is no reward accuracy to speak of."
            )
        else:
            lines.append(f"{name}: rewards against {model['reference']}, beta {figures['beta']:g}.")
    lines.append(
        "accuracy: share of pairs with a positive margin (Wilson interval); margin: reward of chosen less rejected; "
        "reference-free: share of pairs whose chosen answer has the higher log-probability per token."
    )
    if figures["differences"]:
        measure = MEASURES[next(iter(figures["differences"].values()))["measure"]]
        lines.append(
            f"Differences: {measure}, in points, on the same pairs; * beyond chance: the 95 % interval excludes 0 "
            "and, but for the macro mean, the sign test gives p < 0.05."
        )
        letters = _letters(len(figures["models"]))
        lines += [f"{letter}: {name}" for letter, name in zip(letters, figures["models"], strict=True)]
    return lines


def check_available() -> None:
    """Raise ValueError with the remedy where rich or matplotlib are not installed."""
    missing = [package for package in ("rich", "matplotlib") if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(f"{' and '.join(missing)} not installed: pip install 'trl-capo[report]'")


def check_output(folder: Path) -> None:
    """Raise ValueError where the files could not be written into the folder; nothing is made."""
    place = next(path for path in (folder, *folder.parents) if path.exists())
    blocked = [folder / name for name in FILES if (folder / name).is_dir()]
    if blocked:
        raise ValueError(f"output_dir={str(folder)!r}: {blocked[0]} is a folder. Give another output_dir.")
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise ValueError(
            f"output_dir={str(folder)!r}: {place} cannot be written to ({error.strerror}). Give another output_dir."
        ) from error


def print_evaluation(figures: dict[str, Any]) -> None:
    """Print the tables to the terminal."""
    from rich import box
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for title, rows in _tables(figures):
        table = Table(
            title=Text(title),
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            pad_edge=False,
        )
        longest = max(len(row[0]) for row in rows)
        table.add_column(Text(rows[0][0]), overflow="fold", min_width=min(longest, 24))
        for heading, *cells in list(zip(*rows, strict=True))[1:]:
            width = max(len(line) for cell in (heading, *cells) for line in cell.split("\n"))
            table.add_column(Text(heading), justify="right", no_wrap=True, min_width=width)
        summaries = {"all pairs", "macro mean", "worst group"}
        for index, row in enumerate(rows[1:], start=1):
            last_group = row[0] not in summaries and index + 1 < len(rows) and rows[index + 1][0] == "all pairs"
            table.add_row(*map(Text, row), end_section=last_group)
        # A terminal that is too narrow breaks lines, which loses no number; a squeezed table would.
        width = max(console.width, Measurement.get(console, console.options, table).minimum)
        Console(width=width).print(table)
    for line in notes(figures):
        console.print(Text(line))


def _tables(figures: dict[str, Any]) -> list[tuple[str, list[list[str]]]]:
    group_name = figures["group_column"] or "group"
    tables = [(name, model_table(model, group_name)) for name, model in figures["models"].items()]
    if figures["differences"]:
        tables.append(("Differences", difference_table(figures["differences"], group_name)))
    return tables


def write_evaluation(
    figures: dict[str, Any], labels: Sequence[str] | None, margins: dict[str, np.ndarray | None], folder: Path
) -> None:
    """Write FILES into the folder in place of those of an earlier run; without rewards there is no margins.png.

    They are made in a folder of their own first, so that what fails leaves everything as it was. metrics.json goes
    first and comes last: where it is, the others are of its run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".evaluation-", dir=folder) as unfinished:
        _make_files(figures, labels, margins, Path(unfinished))
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        for name in reversed(FILES):
            if (made := Path(unfinished) / name).exists():
                os.replace(made, folder / name)


def _make_files(
    figures: dict[str, Any], labels: Sequence[str] | None, margins: dict[str, np.ndarray | None], folder: Path
) -> None:
    try:
        plots, remarks = plot_evaluation(figures, labels, margins, folder)
    except (RuntimeError, ValueError) as error:  # of matplotlib; the figures are worth more than their pictures
        plots, remarks = [], [f"There are no plots, because drawing them failed: {error}"]
        logger.warning(remarks[0])
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
    data = figures["dataset"]
    lines = [f"# Evaluation on {data['name']}, split {data['split']}: {data['pairs']:,} pairs", ""]
    for title, rows in _tables(figures):
        lines += [f"## {title}", "", _markdown(rows), ""]
    lines += [f"- {line}" for line in notes(figures) + remarks] + [""]
    lines += [f"![{Path(name).stem} per group]({name})" for name in plots]
    lines += ["", "Versions: " + ", ".join(f"{name} {number}" for name, number in figures["versions"].items()) + "."]
    (folder / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    content = json.dumps(figures, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "metrics.json").write_text(content + "\n", encoding="utf-8")


def _markdown(rows: list[list[str]]) -> str:
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    rule = ["---"] + ["---:"] * (len(rows[0]) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [cells[0], rule, *cells[1:]])
