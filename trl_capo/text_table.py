"""Tables for a terminal without rich: names on the left in whatever script, numbers on the right."""

from collections.abc import Sequence
from unicodedata import bidirectional, category, combining, east_asian_width

from trl_capo.fonts import one_line

NAME_WIDTH = 28
LEFT_TO_RIGHT = "\u200e"


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Lines of aligned cells: the first of each row a name, which is cut if it is long; the first row the headings."""
    names = [_short(one_line(row[0])) for row in rows]
    first = max(map(width, names))
    others = [max(width(cell) for cell in column) + 2 for column in list(zip(*rows, strict=True))[1:]]
    lines = []
    for name, row in zip(names, rows, strict=True):
        # Behind a name that is written from the right, a terminal would put the numbers in that order too.
        mark = LEFT_TO_RIGHT if any(bidirectional(character) in ("R", "AL") for character in name) else ""
        cells = "".join(" " * (size - width(cell)) + cell for cell, size in zip(row[1:], others, strict=True))
        lines.append((name + mark + " " * (first - width(name)) + cells).rstrip())
    return "\n".join(lines)


def width(text: str) -> int:
    """How many columns a terminal gives it."""
    shown = [character for character in text if not combining(character) and category(character) not in ("Cf", "Me")]
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in shown)


def _short(name: str) -> str:
    if width(name) <= NAME_WIDTH:
        return name
    while width(name) >= NAME_WIDTH:
        name = name[:-1]
    return name + "…"
