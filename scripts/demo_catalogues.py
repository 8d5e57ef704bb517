"""Reads the translations that the installed `django` package ships, and keeps those that are sure and short.

Used by `demo_data.py`. Not covered: plural messages, messages with a context, fuzzy or missing translations.
"""

from __future__ import annotations

import importlib.util
import re
import unicodedata
from collections import Counter
from functools import cache
from pathlib import Path

LONGEST_MESSAGE = 50  # letters of English: longer ones would take most of the time of a training on a CPU
PLACEHOLDER = re.compile(r"%\(\w*\)[#0 +-]*[\d.]*[a-zA-Z]|%[a-zA-Z%]|\{[^{}]*\}|</?\w[^<>]*>|&#?\w+;")

Catalogue = dict[str, str]  # English message -> translation


def words_of(message: str) -> str:
    """The bare lower-case words of a message: no placeholders, markup, numbers or punctuation."""
    text = unicodedata.normalize("NFKC", PLACEHOLDER.sub(" ", message)).casefold()
    return " ".join("".join(c if unicodedata.category(c)[0] in "LM" else " " for c in text).split())


@cache
def letters_of(text: str) -> str:
    """What must differ between `chosen` and `rejected`: letters, marks and digits, without case."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in text if unicodedata.category(c)[0] in "LMN")


def django_locales() -> Path:
    """The folder of the installed `django` package, found without importing it."""
    spec = importlib.util.find_spec("django")
    if spec is None:
        raise ModuleNotFoundError("No module named 'django'", name="django")
    return Path(spec.submodule_search_locations[0])


def why_dropped(entry) -> str | None:
    """Why a `polib` entry is no sure translation of a sentence or word, None if it is one."""
    if entry.obsolete:
        return "obsolete"
    if entry.msgid_plural:
        return "plural"
    if not entry.msgstr.strip():
        return "untranslated"
    if entry.fuzzy:
        return "fuzzy"
    if entry.msgctxt:
        return "with context"
    if len(entry.msgid.strip()) > LONGEST_MESSAGE:
        return "long"
    if len(words_of(entry.msgid)) < 2 or not words_of(entry.msgstr):
        return "no words"
    if letters_of(entry.msgid) == letters_of(entry.msgstr):
        return "same as English"
    return None


def read_catalogue(root: Path, language: str) -> tuple[Catalogue, Counter[str]]:
    """All usable translations into `language` below `root`, and how many entries were dropped for which reason."""
    import polib

    base, _, script = language.partition("-")
    locale = f"{base}_{script.title()}" if script else base
    catalogue: Catalogue = {}
    fate: Counter[str] = Counter()
    for path in sorted(root.glob(f"**/locale/{locale}/LC_MESSAGES/*.po")):
        for entry in polib.pofile(str(path)):
            message, reason = entry.msgid.strip(), why_dropped(entry)
            if reason is None and message in catalogue:
                reason = "repeated"  # the first app wins, so that a prompt occurs once
            if reason is None:
                catalogue[message] = entry.msgstr.strip()
            fate[reason or "kept"] += 1
    return catalogue, fate
