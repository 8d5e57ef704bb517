"""Format numbers, and tables for terminals and Markdown.

The first row of a table contains its headings, and the first cell of each row is a name.
"""

import re
from collections.abc import Sequence

import pandas as pd

from trl_capo.common.text import one_line, shorten

NAME_LENGTH = 40


def percent(value: float | None, interval: Sequence[float] | None = None) -> str:
    """Format a share as a percentage, such as `81.2 [79.9, 82.4]`; None and NaN become `-`."""
    if value is None or value != value:
        return "-"
    return f"{100 * value:.1f}" + (f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else "")


def count(number: int, noun: str = "") -> str:
    """Format a number as `1,234`, or with a noun as `1,234 pairs` or `1 pair`."""
    return f"{number:,}" + (f" {noun}{'' if number == 1 else 's'}" if noun else "")


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Align the cells for a terminal, names on the left and numbers on the right; long names are cut."""
    names, *columns = zip(*rows, strict=True)
    names = [shorten(one_line(name), NAME_LENGTH) for name in names]
    frame = pd.DataFrame({column[0]: column[1:] for column in columns}, index=names[1:])
    with pd.option_context("display.unicode.east_asian_width", True):
        return frame.rename_axis(columns=names[0]).to_string()


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table that shows every cell as it is."""
    cells = [[escape_markdown(cell) for cell in row] for row in rows]
    rule = ["---"] + ["---:"] * (len(rows[0]) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [cells[0], rule, *cells[1:]])


def escape_markdown(text: str) -> str:
    """Escape what Markdown or HTML would interpret, so that one line of text is shown as it is."""
    return re.sub(r"([\\`*_<>|&~$]|\](?=[(\[]))", r"\\\1", one_line(text))
