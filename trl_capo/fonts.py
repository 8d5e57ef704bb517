"""How the names of groups and models can be shown, in whatever script these are, and which installed fonts draw them.

Matplotlib draws a letter with the first of several fonts that has it, and as a box where none has. Needs matplotlib.
"""

import unicodedata
from collections.abc import Iterable

INVISIBLE = ("Cc", "Cf", "Zs")  # control and joining characters, spaces: no font need have them


def one_line(name: str) -> str:
    """The name with its control characters, such as tabs, line breaks and turns of direction, written as escapes."""
    return "".join(repr(letter)[1:-1] if _breaks(letter) else letter for letter in name)


def _breaks(letter: str) -> bool:
    turns = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    return unicodedata.category(letter) in ("Cc", "Zl", "Zp") or unicodedata.bidirectional(letter) in turns


def choose_fonts(names: Iterable[str]) -> tuple[list[str], set[str]]:
    """Families to give to Matplotlib, its default first, and the characters of the names that none of them has."""
    import matplotlib
    from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

    default = matplotlib.rcParams["font.family"]
    have = {chr(code) for code in get_font(findfont(FontProperties(family=default))).get_charmap()}
    missing = {character for name in names for character in name if unicodedata.category(character) not in INVISIBLE}
    missing -= have
    families = list(default)
    # The fonts that come with Matplotlib beside its default are for formulae, or draw boxes on purpose.
    bundled = matplotlib.get_data_path()
    installed = [font for font in fontManager.ttflist if not font.fname.startswith(bundled)]
    for font in sorted(installed, key=lambda font: (font.style != "normal", font.weight not in (400, "normal"))):
        if not missing:
            break
        if "LastResort" in font.name or "Emoji" in font.name:  # boxes again, and bitmaps that Matplotlib cannot draw
            continue
        try:
            found = missing & {chr(code) for code in get_font(font.fname).get_charmap()}
        except (OSError, RuntimeError):  # a file that is gone, or in a format that FreeType does not read
            continue
        if found:
            families.append(font.name)
            missing -= found
    return families, missing
