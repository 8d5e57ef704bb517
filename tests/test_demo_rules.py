"""Tests of the rules by which `scripts/demo_data.py` reads, groups and pairs messages, on messages made for them."""

from pathlib import Path

import demo_data
import pytest
from demo_support import skip_without


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("Take %(count)d blue apples.", "take blue apples"),
        ("Take {n} <b>blue</b>&nbsp;apples", "take blue apples"),
        ("TAKE 3 blue-apples!", "take blue apples"),
        ("%(a)s %s %5.2f {} 12", None),
        ("Ｔａｋｅ", "take"),
        ("100% juice", "juice"),
    ],
)
def test_words_of(message, words):
    if words is None:
        assert len(demo_data.words_of(message)) < 2
    else:
        assert demo_data.words_of(message) == words


def test_letters_of_keeps_vowel_signs_and_drops_case_and_punctuation():
    assert demo_data.letters_of("Straße, 5!") == demo_data.letters_of("STRASSE 5")
    assert demo_data.letters_of("कि") != demo_data.letters_of("का")


def test_near_twins_are_one_group():
    twins = [
        "Give the 2nd apple to %(name)s",
        "Give the 3rd apple to {name}.",
        "GIVE THE APPLES TO <b>her</b>",
        "Give the apple to",
    ]
    strangers = ["Close the garden gate", "Seven boats sail away"]
    synonym = "Hand over some fruit"
    toy = {message: f"t{i}" for i, message in enumerate(twins + strangers)} | {synonym: "T0!"}
    groups = demo_data.group_near_twins([toy])
    assert len({groups[message] for message in [*twins, synonym]}) == 1
    assert len(set(groups.values())) == 3


TOY = r"""
msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\n"

msgid "Red boat "
msgstr " Rotes Boot"

#, fuzzy
msgid "Old tree"
msgstr "Alter Berg"

msgid "%d pear"
msgid_plural "%d pears"
msgstr[0] "%d Birne"
msgstr[1] "%d Birnen"

msgid "Empty"
msgstr ""

msgid "Radio"
msgstr "Radio."

msgid "%(a)s – {b}"
msgstr "%(a)s bis {b}"

msgctxt "river"
msgid "Bank"
msgstr "Ufer"

#~ msgid "Lost key"
#~ msgstr "Verlorener Schlüssel"
"""


def write_po(root: Path, app: str, locale: str, text: str) -> None:
    folder = root / app / "locale" / locale / "LC_MESSAGES"
    folder.mkdir(parents=True)
    (folder / "django.po").write_text(text, encoding="utf-8")


def test_only_sure_translations_are_read(tmp_path):
    skip_without("polib")
    write_po(tmp_path, "a", "de", TOY)
    write_po(tmp_path, "b", "de", 'msgid "Red boat"\nmsgstr "Roter Kahn"\n')
    catalogue, fate = demo_data.read_catalogue(tmp_path, "de")
    assert catalogue == {"Red boat": "Rotes Boot"}
    reasons = {
        "fuzzy",
        "plural",
        "untranslated",
        "same as English",
        "no words",
        "with context",
        "obsolete",
        "repeated",
    }
    assert fate == dict.fromkeys(reasons | {"kept"}, 1)


def test_script_subtags_name_the_folder(tmp_path):
    skip_without("polib")
    write_po(tmp_path, "a", "zh_Hans", 'msgid "Red boat"\nmsgstr "红船"\n')
    assert demo_data.read_catalogue(tmp_path, "zh-hans")[0] == {"Red boat": "红船"}


def test_negatives_are_what_their_name_says():
    groups = {"near": "g", "twin": "g", "same": "s", "far": "f", "long": "l"}
    pool = {"near": "abcd", "twin": "abce", "same": "AB-CD", "far": "wxyz", "long": "wxyzwxyz"}
    assert demo_data.other_message("near", pool, groups, (0,)) == "wxyz"
    assert demo_data.other_message("near", {"near": "abcd", "same": "ABCD!"}, groups, (0,)) is None
    relatives = {"x": {"near": "ABCD"}, "y": {"far": "q"}, "z": {"near": "abcf"}}
    assert demo_data.wrong_language("near", "abcd", relatives, (0,)) == "abcf"
    assert demo_data.wrong_language("same", "AB-CD", relatives, (0,)) is None


def test_held_out_splits_fill_their_share_without_large_groups():
    sizes = {f"g{i}": 1 for i in range(900)} | {"large": 100}
    split_of = demo_data.assign_groups(sizes, seed=3)
    for split in ("validation", "test"):
        assert sum(sizes[name] for name, own in split_of.items() if own == split) == 80
    assert split_of["large"] == "train"
