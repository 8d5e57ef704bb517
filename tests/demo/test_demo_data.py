"""The demo's data, built from the installed `django`, and the rules by which messages are read, grouped and paired."""

import gettext
import hashlib
import re
from collections import defaultdict
from itertools import chain, combinations, product

import demo_data
import pytest

pytest.importorskip("polib")
pytest.importorskip("django")


@pytest.fixture(scope="module")
def splits(data) -> dict[str, list[dict]]:
    return {split: demo_data.read_split(data / f"{split}.jsonl") for split in demo_data.SPLITS}


def english(row: dict) -> str:
    return row["prompt"][-1]["content"]


def answer(row: dict, name: str) -> str:
    return row[name][0]["content"]


def test_the_same_seed_gives_the_same_bytes_in_every_process(data):
    """The digest is recorded, and every test process hashes strings in its own way."""
    content = b"".join((data / f"{split}.jsonl").read_bytes() for split in demo_data.SPLITS)
    assert hashlib.sha256(content).hexdigest() == "603ed528b587b9b9ce1b2528ef52d34c54fe38700d70fdf35a323873fd0fd924"


def test_every_split_has_every_language_and_every_kind_of_negative(splits):
    for rows in splits.values():
        kinds = {(row["language"], row["negative"]) for row in rows}
        every = set(product(demo_data.LANGUAGES, ("english", "other_message", "wrong_language")))
        assert kinds == every - {("sw", "wrong_language")}  # Django has no language related to Swahili


def test_chosen_is_what_django_itself_would_show(splits):
    """Oracle: `gettext` on the compiled .mo files, which the script does not read."""
    shown: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for file in demo_data.package_folder("django").glob("**/LC_MESSAGES/*.mo"):
        with file.open("rb") as stream:
            catalogue = gettext.GNUTranslations(stream)._catalog
        for message, translation in catalogue.items():
            if isinstance(message, str):  # plural forms are tuples
                shown[file.parts[-3].replace("_", "-").lower()][message.strip()].add(translation.strip())
    for row in chain(*splits.values()):
        language, message = row["language"], english(row)
        assert answer(row, "chosen") in shown[language][message]
        if row["negative"] == "wrong_language":
            relatives = demo_data.LANGUAGES[language][1]
            assert any(answer(row, "rejected") in shown[code].get(message, ()) for code in relatives)


def test_answers_differ_and_prompts_are_unique(splits):
    rows = list(chain(*splits.values()))
    assert len({str(row["prompt"]) for row in rows}) == len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        texts = [english(row), answer(row, "chosen"), answer(row, "rejected")]
        assert len({re.sub(r"[\s.,:;!?…。、！？¿¡\"'“”„«»()_-]", "", text.lower()) for text in texts}) == 3 - (
            texts[0] == texts[2]
        )
        assert (texts[0] == texts[2]) == (row["negative"] == "english")
        if row["negative"] == "other_message":
            assert max(map(len, texts[1:])) <= 1.5 * min(map(len, texts[1:]))


def plain_words(message: str) -> frozenset[str]:
    """Oracle, cruder than the script's: the set of words that contain no placeholder and no digit."""
    words = re.sub(r"<.*?>|%\(.*?\)\w|\{.*?\}", " ", message.lower()).split()
    return frozenset(word.strip(".,:;!?()“”\"'").rstrip("s") for word in words if not re.search(r"[%\d&]", word))


def test_no_near_twins_and_no_answers_are_in_two_splits(splits):
    for one, other in combinations(splits.values(), 2):
        words = [{plain_words(english(row)) for row in rows} for rows in (one, other)]
        assert not words[0] & words[1]
        chosen = [{(row["language"], answer(row, "chosen")) for row in rows} for rows in (one, other)]
        assert not chosen[0] & chosen[1]


def test_splits_depend_on_the_seed_and_held_out_splits_fill_their_share_without_large_groups():
    sizes = {f"g{i}": 1 for i in range(900)} | {"large": 100}
    split_of = demo_data.assign_groups(sizes, seed=3)
    for split in ("validation", "test"):
        assert sum(sizes[name] for name, own in split_of.items() if own == split) == 80
    assert split_of["large"] == "train"
    assert split_of != demo_data.assign_groups(sizes, seed=4)


def test_near_twins_and_synonyms_are_one_group():
    twins = ["Give the 2nd apple to %(name)s", "Give the 3rd apple to {name}.", "GIVE THE APPLES TO <b>her</b>"]
    strangers, synonym = ["Close the garden gate", "Seven boats sail away"], "Hand over some fruit"
    toy = {message: f"t{i}" for i, message in enumerate(twins + strangers)} | {synonym: "T0!"}
    groups = demo_data.group_near_twins([toy])
    assert len({groups[message] for message in [*twins, synonym]}) == 1
    assert len(set(groups.values())) == 3


def test_only_sure_translations_are_read(tmp_path):
    entries = [
        'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\n"',
        'msgid "Red boat "\nmsgstr " Rotes Boot"',
        '#, fuzzy\nmsgid "Old tree"\nmsgstr "Alter Berg"',
        'msgid "%d pear"\nmsgid_plural "%d pears"\nmsgstr[0] "%d Birne"\nmsgstr[1] "%d Birnen"',
        'msgid "Empty"\nmsgstr ""',
        'msgid "Radio"\nmsgstr "Radio."',
        'msgctxt "river"\nmsgid "Bank"\nmsgstr "Ufer"',
        '#~ msgid "Lost key"\n#~ msgstr "Verlorener Schlüssel"',
    ]
    for app, text in (("a", "\n\n".join(entries)), ("b", 'msgid "Red boat"\nmsgstr "Roter Kahn"\n')):
        folder = tmp_path / app / "locale" / "zh_Hans" / "LC_MESSAGES"
        folder.mkdir(parents=True)
        (folder / "django.po").write_text(text, encoding="utf-8")
    assert demo_data.read_catalogue([tmp_path], "zh-hans") == {"Red boat": "Rotes Boot"}
