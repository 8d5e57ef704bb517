"""Tests of the demo's data as `scripts/build_demo.py` really builds them from the installed `django`."""

import difflib
import os
import re
import subprocess
import sys
from collections import defaultdict
from functools import cache
from itertools import chain, combinations

import demo_data
import pytest
from demo_support import SCRIPTS, answer, english


@pytest.fixture(scope="module")
def splits(data) -> dict[str, list[dict]]:
    return {split: demo_data.read_split(data / f"{split}.jsonl") for split in demo_data.SPLITS}


def test_datasets_reads_two_conversational_splits(data, splits, tmp_path):
    from datasets import load_dataset

    loaded = load_dataset(str(data), cache_dir=str(tmp_path))
    assert {split: len(rows) for split, rows in loaded.items()} == {split: len(rows) for split, rows in splits.items()}
    assert loaded["train"].column_names == ["prompt", "chosen", "rejected", "language", "negative", "id"]
    for row in loaded["test"]:
        assert [turn["role"] for turn in row["prompt"] + row["chosen"] + row["rejected"]] == [
            "system",
            "user",
            "assistant",
            "assistant",
        ]


def test_sizes_are_those_of_a_useful_demo(splits):
    assert 5000 <= len(splits["train"]) <= 9000
    assert 450 <= len(splits["validation"]) <= 900
    assert 450 <= len(splits["test"]) <= 900


def test_every_language_and_kind_of_negative_is_in_both_splits(splits):
    for rows in splits.values():
        kinds = defaultdict(list)
        for row in rows:
            kinds[row["language"]].append(row["negative"])
        assert set(kinds) == {"de", "fr", "es", "ru", "zh-hans", "ja", "ar", "hi", "sw", "cy", "eu", "ka"}
        assert set(kinds.pop("sw")) == {"other_message"}  # Django has no language related to Swahili
        for language, names in kinds.items():
            assert 0.3 < names.count("wrong_language") / len(names) < 0.7, language


def test_chosen_is_what_django_itself_would_show(splits):
    """Oracle: `gettext` on the compiled .mo files, which the script does not read."""
    import gettext

    shown: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for file in demo_data.django_locales().glob("**/LC_MESSAGES/*.mo"):
        with file.open("rb") as stream:
            catalogue = gettext.GNUTranslations(stream)._catalog
        for message, translation in catalogue.items():
            if isinstance(message, str):  # plural forms have tuples
                shown[file.parts[-3].replace("_", "-").lower()][message.strip()].add(translation.strip())
    everything = {language: set().union(*by_message.values()) for language, by_message in shown.items()}
    for row in chain(*splits.values()):
        language, message = row["language"], english(row)
        assert answer(row, "chosen") in shown[language][message]
        if row["negative"] == "other_message":
            assert answer(row, "rejected") in everything[language]
        else:
            relatives = demo_data.LANGUAGES[language][1]
            assert any(answer(row, "rejected") in shown[code].get(message, ()) for code in relatives)


def test_rejected_differs_from_chosen_beyond_case_and_punctuation(splits):
    def bare(text: str) -> str:
        return re.sub(r"[\s.,:;!?…。、！？¿¡\"'“”„«»()_-]", "", text.lower())

    for row in chain(*splits.values()):
        chosen, rejected = answer(row, "chosen"), answer(row, "rejected")
        assert len({bare(english(row)), bare(chosen), bare(rejected)}) == 3
        assert [chosen, rejected] == [chosen.strip(), rejected.strip()]


def test_other_messages_have_similar_length(splits):
    for row in chain(*splits.values()):
        if row["negative"] == "other_message":
            lengths = sorted((len(answer(row, "chosen")), len(answer(row, "rejected"))))
            assert lengths[1] <= 1.5 * lengths[0]


def test_no_prompt_and_no_id_occurs_twice(splits):
    rows = list(chain(*splits.values()))
    assert len({str(row["prompt"]) for row in rows}) == len(rows)
    assert len({row["id"] for row in rows}) == len(rows)


@cache
def plain(message: str) -> str:
    """An own, cruder normal form than the one in the script: words that hold no placeholder and no digit."""
    words = re.sub(r"<.*?>|%\(.*?\)\w|\{.*?\}", " ", message.lower()).split()
    return " ".join(word.strip(".,:;!?()“”\"'") for word in words if not re.search(r"[%\d&]", word))


def near_twins(messages: list[str], others: list[str]) -> list[tuple[str, str]]:
    """Oracle: pairs with more than 80 % edit similarity of characters, or with the same set of words."""
    word_sets = {other: {word.rstrip("s") for word in plain(other).split()} for other in others}
    twins = []
    for message in messages:
        matcher = difflib.SequenceMatcher(None, "", plain(message), autojunk=False)
        words = {word.rstrip("s") for word in plain(message).split()}
        for other in others:
            matcher.set_seq1(plain(other))
            close = matcher.real_quick_ratio() > 0.8 and matcher.quick_ratio() > 0.8 and matcher.ratio() > 0.8
            if close or words == word_sets[other]:
                twins.append((message, other))
    return twins


def test_no_near_twin_across_the_split(splits):
    messages = [sorted({english(row) for row in rows}) for rows in splits.values()]
    for one, other in combinations(messages, 2):
        assert near_twins(other, one) == []


def test_no_near_twin_across_groups_so_none_across_the_split_of_any_seed(data):
    root = demo_data.django_locales()
    groups = demo_data.group_near_twins(demo_data.read_catalogue(root, code)[0] for code in demo_data.LANGUAGES)
    messages = sorted(message for message in groups if len(plain(message)) > 3)
    for i, message in enumerate(messages):
        strangers = [other for other in messages[:i] if groups[other] != groups[message]]
        assert near_twins([message], strangers) == []


def test_no_answer_of_a_language_is_in_both_splits(splits):
    answers = {
        split: {
            (row["language"], answer(row, name))
            for row in rows
            for name in ("chosen", "rejected")
            if name == "chosen" or row["negative"] == "other_message"
        }
        for split, rows in splits.items()
    }
    for one, other in combinations(answers.values(), 2):
        assert not one & other


def test_same_seed_same_bytes_in_another_process_other_seed_other_split(data, splits, tmp_path):
    code = "import sys; sys.path.insert(0, sys.argv[1]); import build_demo as b, pathlib\n"
    code += "[b.build_data(pathlib.Path(sys.argv[2]) / str(seed), seed) for seed in (0, 1)]"
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    subprocess.run([sys.executable, "-c", code, str(SCRIPTS), str(tmp_path)], check=True, env=environment)
    for split in demo_data.SPLITS:
        assert (tmp_path / "0" / f"{split}.jsonl").read_bytes() == (data / f"{split}.jsonl").read_bytes()
    other = demo_data.read_split(tmp_path / "1" / "test.jsonl")
    assert 450 <= len(other) <= 900
    assert {english(row) for row in other} != {english(row) for row in splits["test"]}
