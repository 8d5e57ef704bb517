"""Make preference pairs in 12 languages from the human translations that Python packages such as `django` contain.

The system turn names a language, the user's turn is an English message, `chosen` is the human translation, and
`rejected` is a hard negative: `other_message` is the human translation into the same language of another message of
similar length, `wrong_language` is the right message in a related language, and `english` is the message itself, as if
a model had answered in English. All are fluent human text, so a model cannot win by fluency alone. The data have a
free licence (BSD) and need no model hub.

Messages that nearly agree ("Enter a valid IPv4 address." and "... IPv6 address.") or that share a translation form a
group. A group lies in one split as a whole, and the negatives of a pair come from its split. All draws hash the seed,
so the same seed and the same package versions give the same bytes. Not covered: plural messages, long messages, and
messages with a context, which the prompt could not express. `build_demo.py` calls this module.
"""

import heapq
import importlib.util
import itertools
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

LANGUAGES = {  # Django's code: the English name, and the languages that serve as `wrong_language`
    "ar": ("Arabic", ("fa",)),
    "cy": ("Welsh", ("br", "ga")),
    "de": ("German", ("nl",)),
    "es": ("Spanish", ("it", "pt")),
    "eu": ("Basque", ("es",)),  # Basque has no relatives; Spanish is its neighbour
    "fr": ("French", ("es", "it")),
    "hi": ("Hindi", ("mr", "ne")),
    "ja": ("Japanese", ("ko", "zh-hans")),  # neighbours; Chinese shares characters with it
    "ka": ("Georgian", ("hy",)),  # a neighbour
    "ru": ("Russian", ("bg", "uk")),
    "sw": ("Swahili", ()),
    "zh-hans": ("Simplified Chinese", ("zh-hant",)),
}
COUNTRIES = {"zh-hans": ["zh_CN"], "zh-hant": ["zh_TW"], "uk": ["uk_UA"]}  # what `sphinx` calls them
SPLITS = ("train", "validation", "test")
SOURCES = ("django",)  # packages with translations
HELD_OUT = 0.08  # share of the pairs in each of `validation` and `test`; the rest is `train`
LARGEST_GROUP = 0.05  # of a held-out split, so that it covers many topics
LONGEST_MESSAGE = 50  # letters; longer messages would take most of the time of a run on a CPU
SHORTEST_COMPARED = 4  # letters; shorter messages ("MB", "st") cannot be compared and form one group
NEAR_TWIN = 0.52  # Dice similarity of character trigrams; a lower limit begins to chain different messages
CLOSEST = 10  # `other_message` is drawn from this many messages of the closest length
LENGTH_RATIO = 1.5
PLACEHOLDER = re.compile(r"%\(\w*\)[#0 +-]*[\d.]*[a-zA-Z]|%[a-zA-Z%]|\{[^{}]*\}|</?\w[^<>]*>|&#?\w+;")

Catalogue = dict[str, str]  # English message: translation


def words_of(message: str) -> str:
    """Return the bare lower-case words of a message, without placeholders, markup, numbers and punctuation."""
    text = unicodedata.normalize("NFKC", PLACEHOLDER.sub(" ", message)).casefold()
    return " ".join("".join(c if unicodedata.category(c)[0] in "LM" else " " for c in text).split())


@cache
def letters_of(text: str) -> str:
    """Return what must differ between `chosen` and `rejected`: letters, marks and digits, without case."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in text if unicodedata.category(c)[0] in "LMN")


def package_folder(name: str) -> Path:
    """Find the folder of an installed package without importing it."""
    return Path(importlib.util.find_spec(name).submodule_search_locations[0])


def is_usable(entry: Any) -> bool:
    """Return whether a `polib` entry is a reliable translation of a short sentence or word."""
    message, translation = entry.msgid.strip(), entry.msgstr.strip()
    marked = entry.obsolete or entry.fuzzy or entry.msgid_plural or entry.msgctxt
    short = len(message) <= LONGEST_MESSAGE and len(words_of(message)) >= 2
    return not marked and short and bool(words_of(translation)) and letters_of(message) != letters_of(translation)


def read_catalogue(roots: Iterable[Path], language: str) -> Catalogue:
    """Read all usable translations into `language` below `roots`; the first file wins where a message repeats."""
    import polib

    base, _, script = language.partition("-")
    names = [f"{base}_{script.title()}" if script else base, *COUNTRIES.get(language, [])]
    catalogue: Catalogue = {}
    for root, name in itertools.product(roots, names):
        for path in sorted(root.glob(f"**/locale/{name}/LC_MESSAGES/*.po")):
            for entry in filter(is_usable, polib.pofile(str(path))):
                catalogue.setdefault(entry.msgid.strip(), entry.msgstr.strip())
    return catalogue


def draw(*parts: object) -> int:
    """Return a pseudo-random number that depends on `parts` only (`hash()` changes from run to run)."""
    return int.from_bytes(sha256("\x1f".join(map(str, parts)).encode()).digest()[:8], "big")


def group_near_twins(catalogues: Collection[Catalogue]) -> dict[str, str]:
    """Map each message to the name of its group, which near-twins and messages with a shared translation share."""
    messages = sorted({message for catalogue in catalogues for message in catalogue})
    parent = {message: message for message in messages}

    def root(message: str) -> str:
        while parent[message] != message:
            message = parent[message]
        return message

    def join(one: str, other: str) -> None:
        first, second = sorted((root(one), root(other)))
        parent[second] = first

    words = {message: words_of(message) for message in messages}
    short = [message for message in messages if len(words[message]) < SHORTEST_COMPARED]
    for message in short:
        join(short[0], message)
    padded = [f"  {words[message]} " for message in messages]
    trigrams = [{text[i : i + 3] for i in range(len(text) - 2)} for text in padded]
    for i, one in enumerate(trigrams):
        for j, other in enumerate(trigrams[:i]):
            if 2 * len(one & other) >= NEAR_TWIN * (len(one) + len(other)):
                join(messages[i], messages[j])
    for catalogue in catalogues:
        first_with: dict[str, str] = {}
        for message, translation in catalogue.items():
            join(message, first_with.setdefault(letters_of(translation), message))
    return {message: root(message) for message in messages}


def assign_groups(sizes: dict[str, int], seed: int, held_out: float = HELD_OUT) -> dict[str, str]:
    """Map each group to a split; the held-out splits take groups in a drawn order while these fit their share."""
    split_of = dict.fromkeys(sizes, "train")
    order = sorted(sizes, key=lambda name: (draw(seed, "split", name), name))
    for split in SPLITS[1:]:
        room = round(held_out * sum(sizes.values()))
        largest = LARGEST_GROUP * room
        for group in order:
            if split_of[group] == "train" and sizes[group] <= min(room, largest):
                split_of[group] = split
                room -= sizes[group]
    return split_of


def other_message(message: str, pool: Catalogue, groups: dict[str, str], key: tuple) -> str | None:
    """Draw the translation of an unrelated message of similar length; None if there is none."""
    chosen = pool[message]
    candidates = [
        other
        for other, translation in pool.items()
        if groups[other] != groups[message]
        and letters_of(translation) != letters_of(chosen)
        and max(len(translation), len(chosen)) <= LENGTH_RATIO * min(len(translation), len(chosen))
    ]
    closest = heapq.nsmallest(CLOSEST, candidates, key=lambda other: (abs(len(pool[other]) - len(chosen)), other))
    return pool[min(closest, key=lambda other: draw(*key, other))] if closest else None


def wrong_language(message: str, chosen: str, relatives: dict[str, Catalogue], key: tuple) -> str | None:
    """Draw the same message in a related language; None where it is missing or reads the same."""
    candidates = [
        language
        for language, catalogue in relatives.items()
        if message in catalogue and letters_of(catalogue[message]) != letters_of(chosen)
    ]
    return relatives[min(candidates, key=lambda language: draw(*key, language))][message] if candidates else None


def make_pair(
    message: str, language: str, pool: Catalogue, relatives: dict, groups: dict, seed: int, english: bool
) -> dict:
    """Make one row, with the kind `english` or one that is drawn from those that exist for the message."""
    chosen, key = pool[message], (seed, language, message)
    negatives = {
        "english": message,
        "other_message": other_message(message, pool, groups, key),
        "wrong_language": wrong_language(message, chosen, relatives, key),
    }
    kinds = [kind for kind, text in negatives.items() if text]
    kind = "english" if english else min(kinds, key=lambda kind: draw(*key, "kind", kind))
    rejected = negatives[kind]
    return {
        "prompt": [
            {"role": "system", "content": f"Translate into {LANGUAGES[language][0]}."},
            {"role": "user", "content": message},
        ],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "language": language,
        "negative": kind,
        "id": f"{language}-{sha256(message.encode()).hexdigest()[:12]}",
    }


def make_splits(
    roots: Collection[Path],
    seed: int = 0,
    held_out: float = HELD_OUT,
    languages: Collection[str] = LANGUAGES,
    english: bool = False,
) -> dict[str, list[dict]]:
    """Make the rows of every split, mixed over `languages`; with `english` all rejected answers are of this kind."""
    codes = sorted({code for own, (_, relatives) in LANGUAGES.items() for code in (own, *relatives)})
    catalogues = {code: read_catalogue(roots, code) for code in codes}
    targets = {language: catalogues[language] for language in languages}
    groups = group_near_twins(targets.values())
    split_of = assign_groups(Counter(groups[message] for own in targets.values() for message in own), seed, held_out)
    splits: dict[str, list[dict]] = defaultdict(list)
    for language, catalogue in targets.items():
        relatives = {code: catalogues[code] for code in LANGUAGES[language][1]}
        for split in SPLITS:
            pool = {m: t for m, t in catalogue.items() if split_of[groups[m]] == split}
            splits[split] += [make_pair(message, language, pool, relatives, groups, seed, english) for message in pool]
    return {name: sorted(rows, key=lambda row: draw(seed, "order", row["id"])) for name, rows in splits.items()}


def write_data(folder: Path, sources: Iterable[str], pairs: list[int] | None = None, **options: Any) -> None:
    """Write a `.jsonl` file per split into `folder`, each of at most as many rows as `pairs` says."""
    splits = make_splits([package_folder(name) for name in sources], **options)
    for (split, rows), most in zip(splits.items(), pairs or 3 * [None], strict=True):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows[:most]]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")


def read_split(file: Path) -> list[dict]:
    """Read a written split; only "\\n" ends a line, since translations may contain other line separators."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
