"""Show numbers, tables, and text of unknown content in terminals, Markdown and spreadsheets."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Rows = Sequence[Sequence[str]]  # a table: the first row has the headings, and the first cell of each row is a name
_UNSAFE = {"Cc", "Cs", "Zl", "Zp", "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
_FORMULA_STARTS = tuple("=+-@＝＋－＠")


def escape(text: str) -> str:
    """Write control characters, bidirectional controls and lone surrogates as escapes; newlines stay."""
    return "\n".join(map(one_line, text.split("\n")))


def one_line(name: str) -> str:
    """Escape a name as `escape` does, line breaks included."""
    unsafe = {letter for letter in name if _UNSAFE & {unicodedata.category(letter), unicodedata.bidirectional(letter)}}
    return name.translate({ord(letter): repr(letter)[1:-1] for letter in unsafe})


def shorten(text: str, most: int) -> str:
    """Cut text of more than `most` characters and end it in an ellipsis, so that it has `most` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def first_few(items: Iterable[Any], most: int = 5, separator: str = ", ") -> str:
    """Join the first `most` items, followed by `...` if there are more."""
    items = list(map(str, items))
    return separator.join([*items[:most], *(["..."] if len(items) > most else [])])


def spreadsheet_cell(value: Any) -> Any:
    """Make a value safe for a spreadsheet: join lists by semicolons, escape text, and quote formulas with `'`."""
    value = "; ".join(map(str, value)) if isinstance(value, list | tuple) else value
    if not isinstance(value, str):
        return value
    text = escape(value.replace("\r\n", "\n"))
    return f"'{text}" if text.lstrip().startswith(_FORMULA_STARTS) else text


def percent(value: float | None, interval: Sequence[float] | None = None) -> str:
    """Format a share as a percentage, such as `81.2 [79.9, 82.4]`; None and NaN become `-`."""
    if value is None or value != value:
        return "-"
    return f"{100 * value:.1f}" + (f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else "")


def count(number: int, noun: str = "") -> str:
    """Format a number as `1,234`, or with a noun as `1,234 pairs` or `1 pair`."""
    return f"{number:,}" + (f" {noun}{'' if number == 1 else 's'}" if noun else "")


def text_table(rows: Rows) -> str:
    """Align the cells for a terminal, names on the left and numbers on the right; long names are cut."""
    import pandas as pd

    names, *columns = zip(*rows, strict=True)
    names = [shorten(one_line(name), 40) for name in names]
    frame = pd.DataFrame({column[0]: column[1:] for column in columns}, index=names[1:])
    with pd.option_context("display.unicode.east_asian_width", True):
        return frame.rename_axis(columns=names[0]).to_string()


def escape_markdown(text: str) -> str:
    """Escape what Markdown or HTML would interpret, so that one line of text is shown as it is."""
    return re.sub(r"([\\`*_<>|&~$]|\](?=[(\[]))", r"\\\1", one_line(text))


def markdown_table(rows: Sequence[Sequence[Any]], cell: Callable[[Any], str] = escape_markdown) -> str:
    """Write a Markdown table whose cells `cell` writes, by default as text that is shown as it is."""
    lines = ["| " + " | ".join(map(cell, row)) + " |" for row in rows]
    return "\n".join([lines[0], "| --- |" + " ---: |" * (len(rows[0]) - 1), *lines[1:]])
