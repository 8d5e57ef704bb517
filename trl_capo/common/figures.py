"""Set up Matplotlib figures whose labels may be in any script (extra `report`)."""

import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from trl_capo.common.text import shorten

MARKERS = "osD^vP*X"


def new_figure(width: float, height: float, columns: int = 1) -> tuple[Any, Sequence[Any]]:
    """Return a figure of this size in inches, and its axes from left to right, which share the y axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=120)
    panels = figure.subplots(1, columns, squeeze=False, sharey=True)[0]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    return figure, panels


def label_rows(axes: Any, names: Sequence[str]) -> None:
    """Give the y axis one row per name, from top to bottom."""
    axes.set_yticks(range(len(names)), [shorten(name, 30) for name in names], parse_math=False)
    axes.set_ylim(len(names) - 0.5, -0.5)


def add_legend(figure: Any, loc: str = "outside upper center", **options: Any) -> None:
    """Add a legend outside the axes; a `$` in its texts is shown as a dollar sign."""
    legend = figure.legend(loc=loc, fontsize=8, frameon=False, **options)
    for text in legend.get_texts():
        text.set_parse_math(False)


def save(figure: Any, path: Path) -> str:
    """Write the figure as PNG and return the file's name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # no installed font has it; a box is drawn
        figure.savefig(path, format="png")
    return path.name


def choose_fonts(names: Iterable[str]) -> list[str]:
    """Return families for `font.family`, Matplotlib's default first, with the letters of as many names as possible."""
    import matplotlib
    from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

    families = list(matplotlib.rcParams["font.family"])
    missing = set(map(ord, "".join(names))) - set(get_font(findfont(FontProperties(family=families))).get_charmap())
    # The other fonts that come with Matplotlib are for formulas.
    fonts = [font for font in fontManager.ttflist if not font.fname.startswith(matplotlib.get_data_path())]
    for font in sorted(fonts, key=lambda font: (font.style != "normal", font.weight not in (400, "normal"))):
        if not missing or "LastResort" in font.name or "Emoji" in font.name:  # Matplotlib would draw boxes
            continue
        with suppress(OSError, RuntimeError):  # a font that was removed or that FreeType cannot read
            found = missing & set(get_font(font.fname).get_charmap())
            families += [font.name] if found else []
            missing -= found
    return families
