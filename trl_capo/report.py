"""What an evaluation leaves behind: tables in the terminal (rich), report.md, metrics.json and the plots."""

import importlib.util
import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trl_capo.fonts import one_line
from trl_capo.paths import output_folder
from trl_capo.plots import plot_evaluation
from trl_capo.tables import Table, count_pairs, evaluation_tables, notes

FILES = ("metrics.json", "report.md", "accuracy.png", "margins.png")
NAME_WIDTH = 24
"""Columns of a terminal that a group's name may take before it is folded."""


def check_available() -> None:
    """Raise ValueError with the remedy where rich or matplotlib are not installed."""
    missing = [package for package in ("rich", "matplotlib") if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(f"{' and '.join(missing)} not installed: pip install 'trl-capo[report]'")


def check_output(folder: Path) -> None:
    """Raise ValueError where the files could not be written into the folder; nothing is made."""
    output_folder(folder)
    blocked = [folder / name for name in FILES if (folder / name).is_dir()]
    if blocked:
        raise ValueError(f"output_dir={str(folder)!r}: {blocked[0]} is a folder. Give another output_dir.")


def print_evaluation(figures: dict[str, Any]) -> None:
    """Print the tables to the terminal, or to a file or pipe."""
    from rich.cells import cell_len
    from rich.console import Console
    from rich.measure import Measurement
    from rich.text import Text

    console = Console()
    # A terminal that is too narrow breaks lines, which loses no number; a squeezed table would.
    unbounded = console.options.update(max_width=1_000_000)
    for table in evaluation_tables(figures):
        drawn = _draw(table, cell_len)
        width = max(console.width, Measurement.get(console, unbounded, drawn).minimum)
        Console(width=width).print(drawn)
    for line in notes(figures):
        console.print(Text(line))


def _draw(table: Table, width_of: Callable[[str], int]) -> Any:
    """A table of rich; long names of groups are folded."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(
        title=Text(table.title),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    rows = [table.headings, *table.groups, *table.summaries]
    for index, cells in enumerate(zip(*rows, strict=True)):
        width = max(width_of(line) for cell in cells for line in cell.split("\n"))
        if index == 0:
            drawn.add_column(Text(cells[0]), overflow="fold", min_width=min(width, NAME_WIDTH))
        else:
            drawn.add_column(Text(cells[0]), justify="right", no_wrap=True, min_width=width)
    for index, row in enumerate(rows[1:], start=1):
        drawn.add_row(*map(Text, row), end_section=index == len(table.groups))
    return drawn


def write_evaluation(
    figures: dict[str, Any], labels: Sequence[str] | None, margins: dict[str, np.ndarray | None], folder: Path
) -> list[str]:
    """Write FILES into the folder in place of those of an earlier run; without rewards there is no margins.png.

    Returns what a reader must know beside the plots, which report.md has too.

    They are made in a folder of their own first, so that what fails leaves everything as it was. metrics.json goes
    first and comes last: where it is, the others are of its run.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".evaluation-", dir=folder) as unfinished:
            remarks = _make_files(figures, labels, margins, Path(unfinished))
            for name in FILES:
                (folder / name).unlink(missing_ok=True)
            for name in reversed(FILES):
                if (made := Path(unfinished) / name).exists():
                    os.replace(made, folder / name)
    except OSError as error:
        for path in new:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise OSError(f"output_dir={str(folder)!r}: {error}") from error
    return remarks


def _make_files(
    figures: dict[str, Any], labels: Sequence[str] | None, margins: dict[str, np.ndarray | None], folder: Path
) -> list[str]:
    try:
        plots, remarks = plot_evaluation(figures, labels, margins, folder)
    except (RuntimeError, ValueError) as error:  # of matplotlib; the figures are worth more than their pictures
        plots, remarks = [], [f"There are no plots, because drawing them failed: {error}"]
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
    data = figures["dataset"]
    title = f"Evaluation on {data['name']}, split {data['split']}: {count_pairs(data['pairs'])}"
    lines = [f"# {escape(title)}", ""]
    for table in evaluation_tables(figures):
        rows = [table.headings, *table.groups, *table.summaries]
        lines += [f"## {escape(table.title)}", "", markdown_table(rows), ""]
    lines += [f"- {escape(line)}" for line in notes(figures) + remarks] + [""]
    lines += [f"![{Path(name).stem} per group]({name})" for name in plots]
    lines += ["", "Versions: " + ", ".join(f"{name} {number}" for name, number in figures["versions"].items()) + "."]
    (folder / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    content = json.dumps(figures, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "metrics.json").write_text(content + "\n", encoding="utf-8")
    return remarks


def escape(text: str) -> str:
    """Text that Markdown shows as it is: names may hold what means emphasis, a link, a formula or HTML there."""
    return re.sub(r"([\\`*_<>|&~$]|\](?=[(\[]))", r"\\\1", one_line(text))


def markdown_table(rows: list[list[str]]) -> str:
    """Rows of cells, the first row the headings, the first cell of each a name."""
    cells = [[escape(cell.replace("\n", " ")) for cell in row] for row in rows]
    rule = ["---"] + ["---:"] * (len(rows[0]) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [cells[0], rule, *cells[1:]])
