"""Preference pairs in 12 languages, made from the human translations that the `django` package ships.

What: the system turn asks for a language, the user's turn is an English message, `chosen` is the human translation,
`rejected` a hard negative: `other_message` is the human translation, in the same language, of another message of
similar length; `wrong_language` is the right message in a related but wrong language.

Why so: multilingual preference data under a free licence (BSD) that installs with pip and needs no model hub. Both
kinds of negative are fluent human text, so a model cannot win by fluency alone.

Messages that are nearly the same ("Enter a valid IPv4 address." and "... IPv6 address.", singular and plural, other
numbers or placeholders) or that share a translation form one group, and a group lies in one split as a whole. The
negatives come from the split of their pair. All draws hash the seed: same seed and Django version, same bytes.

Not covered: plural messages, long ones, messages with a context (the prompt could not say it), languages without a
related one in Django (Swahili has `other_message` only), and any claim about translation quality. Run it through
`build_demo.py`.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path

from demo_catalogues import Catalogue, django_locales, letters_of, read_catalogue, words_of

# Language code -> English name and the languages that serve as its `wrong_language`, all as Django names them.
LANGUAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "ar": ("Arabic", ("fa",)),
    "cy": ("Welsh", ("br", "ga")),
    "de": ("German", ("nl",)),
    "es": ("Spanish", ("it", "pt")),
    "eu": ("Basque", ("es",)),  # no relative anywhere: its neighbour
    "fr": ("French", ("es", "it")),
    "hi": ("Hindi", ("mr", "ne")),
    "ja": ("Japanese", ("ko", "zh-hans")),  # neighbours, the second with shared characters
    "ka": ("Georgian", ("hy",)),  # neighbour
    "ru": ("Russian", ("bg", "uk")),
    "sw": ("Swahili", ()),
    "zh-hans": ("Simplified Chinese", ("zh-hant",)),
}
HELD_OUT = 0.08  # share of the pairs in each of `validation` and `test`; the rest is `train`
LARGEST_GROUP = 0.05  # of a held-out split, so that it has many topics
SPLITS = ("train", "validation", "test")
SHORTEST_COMPARED = 4  # letters; shorter ones ("MB", "st") cannot be compared and form one group
NEAR_TWIN = 0.52  # Dice similarity of character trigrams; below, different messages start to chain together
CLOSEST = 10  # `other_message` is drawn from that many messages of the closest length
LENGTH_RATIO = 1.5


def draw(*parts: object) -> int:
    """A pseudo-random number that depends on `parts` only (`hash()` changes from run to run)."""
    return int.from_bytes(sha256("\x1f".join(map(str, parts)).encode()).digest()[:8], "big")


def group_near_twins(catalogues: Iterable[Catalogue]) -> dict[str, str]:
    """Message -> a name for its group; messages that nearly agree, or share a translation, have the same one."""
    catalogues = list(catalogues)
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
    """Group -> split: each held-out split takes groups in the order of a draw, as long as they fit its share."""
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
    """The translation of an unrelated message of similar length, or None."""
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
    """The same message in a related language, or None where that is missing or reads the same."""
    candidates = [
        language
        for language, catalogue in relatives.items()
        if message in catalogue and letters_of(catalogue[message]) != letters_of(chosen)
    ]
    return relatives[min(candidates, key=lambda language: draw(*key, language))][message] if candidates else None


def make_pair(message: str, language: str, pool: Catalogue, relatives: dict, groups: dict, seed: int) -> dict | None:
    """One row of the data, or None if no negative can be had; a coin says which kind of negative is tried first."""
    chosen, key = pool[message], (seed, language, message)
    negatives: dict[str, Callable[[], str | None]] = {
        "other_message": lambda: other_message(message, pool, groups, key),
        "wrong_language": lambda: wrong_language(message, chosen, relatives, key),
    }
    order = sorted(negatives, reverse=draw(*key, "kind") % 2 == 1)
    kind, rejected = next(((kind, text) for kind in order if (text := negatives[kind]())), (None, None))
    if rejected is None:
        return None
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
    root: Path, seed: int = 0, report: Callable[[str], None] = print, held_out: float = HELD_OUT
) -> dict[str, list[dict]]:
    """The rows of `train`, `validation` and `test`, mixed over languages, from the catalogues below `root`."""
    catalogues, fate = {}, Counter()
    for language in sorted({code for own, (_, relatives) in LANGUAGES.items() for code in (own, *relatives)}):
        catalogues[language], language_fate = read_catalogue(root, language)
        if language in LANGUAGES:
            fate += language_fate
    targets = {language: catalogues[language] for language in LANGUAGES}
    report("entries in the translation files: " + ", ".join(f"{n} {reason}" for reason, n in fate.most_common()))

    groups = group_near_twins(targets.values())
    sizes = Counter(groups[message] for catalogue in targets.values() for message in catalogue)
    split_of = assign_groups(sizes, seed, held_out)
    kept_back = sum(split != "train" for split in split_of.values())
    report(f"{len(groups)} English messages in {len(sizes)} groups of near-twins, {kept_back} groups held out")

    splits: dict[str, list[dict]] = defaultdict(list)
    without_negative = 0
    for language, catalogue in targets.items():
        relatives = {code: catalogues[code] for code in LANGUAGES[language][1]}
        for split in SPLITS:
            pool = {m: t for m, t in catalogue.items() if split_of[groups[m]] == split}
            pairs = [make_pair(message, language, pool, relatives, groups, seed) for message in pool]
            splits[split] += [pair for pair in pairs if pair]
            without_negative += pairs.count(None)
    report(f"{without_negative} translations without a negative left out")
    return {name: sorted(rows, key=lambda row: draw(seed, "order", row["id"])) for name, rows in splits.items()}


def write_data(folder: Path, seed: int = 0, report: Callable[[str], None] = print, held_out: float = HELD_OUT) -> None:
    """Writes a `.jsonl` file per split into `folder`."""
    for split, rows in make_splits(django_locales(), seed, report, held_out).items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")


def read_split(file: Path) -> list[dict]:
    """The rows of a written split (lines end at "\\n" only; translations may hold other line separators)."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
