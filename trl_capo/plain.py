"""Errors and warnings as a terminal can show them: of a few lines, without characters that it would obey.

A message may quote anything: a value of a hundred thousand characters, a column whose name holds control codes or
marks that turn the reading direction, half of a surrogate pair. They are made fit here, where a message is said, so
that nobody who writes one need think of it.
"""

import re
import sys
from collections.abc import Iterable
from typing import Any

LINES, COLUMNS, WORD = 24, 600, 240
"""The most lines of a message, characters of a line, and characters of what no space divides."""


def plain(text: str) -> str:
    """`text` with what cannot be printed written as escapes, and with the middle left out of what is too long."""
    text = "".join(letter if letter.isprintable() or letter == "\n" else _escape(letter) for letter in text.strip())
    text = re.sub(rf"\S{{{WORD + 1},}}", lambda word: _shorten(word[0], WORD, "characters"), text)
    lines = [_shorten(line, COLUMNS, "characters") for line in text.split("\n") if line.strip()]
    return "\n".join(_shorten(lines, LINES, "lines"))


def first_few(items: Iterable[Any], most: int = 5, separator: str = ", ") -> str:
    """The first of the items, and `...` where there are more."""
    items = list(map(str, items))
    return separator.join([*items[:most], *(["..."] if len(items) > most else [])])


def print_error(program: str, error: BaseException) -> None:
    """Say why the program ends; an error without words by its kind."""
    print(f"{program}: error: {plain(str(error) or type(error).__name__)}", file=sys.stderr)


def _escape(letter: str) -> str:
    return " " if letter == "\t" else repr(letter)[1:-1]


def _shorten(text: str | list[str], most: int, unit: str) -> str | list[str]:
    """The two ends of text, or of a list of lines, that has more than `most` of its unit; the start is the longer."""
    if len(text) <= most:
        return text
    start, end = most * 3 // 4, most // 4 - 1
    left_out = f"... ({len(text) - start - end:,} {unit}) ..."
    return text[:start] + (left_out if isinstance(text, str) else [left_out]) + text[-end:]
