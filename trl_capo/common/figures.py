"""Set up Matplotlib figures whose labels may be in any script (extra `report`)."""

import warnings
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from trl_capo.common.text import shorten

MARKERS = "osD^vP*X"
STYLE = {"axes.axisbelow": True, "axes.grid": True, "axes.spines.right": False, "axes.spines.top": False}
STYLE |= {"axes.titlesize": 9, "errorbar.capsize": 2, "figure.dpi": 120, "grid.color": "0.88", "legend.fontsize": 8}
STYLE |= {"legend.frameon": False, "lines.linewidth": 1.2, "lines.markersize": 5, "text.parse_math": False}


def plot_style(names: Iterable[str]) -> AbstractContextManager[None]:
    """Return a context for plots, with fonts for these names, and in which a `$` is a dollar sign."""
    import matplotlib

    return matplotlib.rc_context(STYLE | {"font.family": choose_fonts(names)})


def new_figure(width: float, height: float, **options: Any) -> tuple[Any, Any]:
    """Return a figure of this size in inches, and its axes; `options` are those of `Figure.subplots`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(**options)


def new_rows(names: Sequence[str], height: float, dotted: float, label: str | None = None) -> tuple[Any, Any]:
    """Return a figure and its axes, with one row per name from top to bottom, and a dotted line at an x."""
    figure, axes = new_figure(8, min(height, 150))  # Matplotlib draws at most 500 inches
    axes.set_yticks(range(len(names)), [shorten(name, 30) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.axvline(dotted, color="0.4", linestyle=":", linewidth=1, label=label)
    return figure, axes


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
