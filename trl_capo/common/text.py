"""Prepare text of unknown content, such as group names and data, for terminals, reports and spreadsheets."""

import unicodedata
from collections.abc import Iterable
from typing import Any

_UNSAFE = ("Cc", "Cs", "Zl", "Zp", "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
_FORMULA_STARTS = tuple("=+-@＝＋－＠")


def escape(text: str) -> str:
    """Write control characters, bidirectional controls and lone surrogates as escapes; newlines stay."""
    return "\n".join(map(one_line, text.split("\n")))


def one_line(name: str) -> str:
    """Escape a name as `escape` does, line breaks included."""
    kinds = [{unicodedata.category(letter), unicodedata.bidirectional(letter)} for letter in name]
    unsafe = [letter for letter, kind in zip(name, kinds, strict=True) if not kind.isdisjoint(_UNSAFE)]
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
    if isinstance(value, list | tuple):
        value = "; ".join(map(str, value))
    if not isinstance(value, str):
        return value
    text = escape(value.replace("\r\n", "\n"))
    return f"'{text}" if text.lstrip().startswith(_FORMULA_STARTS) else text
