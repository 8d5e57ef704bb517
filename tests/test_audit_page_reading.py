"""How the page of suspects shows them, in a real browser (`make test-browser` brings one)."""

import pytest
from page_browser import export, lines, press, text
from page_data import HOSTILE, suspect

from trl_capo.audit.texts import flatten


def test_hostile_texts_are_shown_as_text(open_page):
    rows = [
        suspect(i, group=t, prompt=t, chosen=t, rejected=t + "x", id=t, reasons=[t]) for i, t in enumerate(HOSTILE)
    ]
    page = open_page(rows, title=HOSTILE[1], group_name=HOSTILE[0], counts={HOSTILE[0]: 1})
    for hostile in HOSTILE:
        shown = hostile.translate({0: "␀", 0x1B: "␛", 0x7F: "␡", 0x202E: r"\u202e"})
        assert [text(page, id) for id in ("prompt", "chosen", "rejected", "reasons")] == [
            shown,
            shown,
            shown + "x",
            shown,
        ]
        assert text(page, "name").count(shown) == 2  # id and group
        assert page.locator("#name bdi").all_text_contents() == [shown, shown]  # each with a direction of its own
        press(page, "n")
    assert page.title() == HOSTILE[1]
    assert page.locator(".text img, .text script, #list img, #list script, h1 *").count() == 0


def test_scripts_have_their_direction_and_language(open_page):
    arabic, japanese = "ما هي عاصمة المغرب؟", "直角三角形の斜辺"
    rows = [suspect(0, "ar", arabic, arabic + " Rabat", "Rabat!"), suspect(1, "ja", japanese, japanese, japanese)]
    page = open_page([*rows, suspect(2, "zho_Hant"), suspect(3, "german"), suspect(4, None)])

    def styles(name):
        parts = "[...document.querySelectorAll('.text > div')].map((part) => "
        return page.evaluate(f"{parts} {name})")

    assert styles("getComputedStyle(part).direction") == ["rtl", "rtl", "ltr"]
    assert styles("getComputedStyle(part).unicodeBidi") == ["plaintext"] * 3
    assert page.evaluate("getComputedStyle(document.querySelector('#rows span')).direction") == "rtl"
    languages = []
    for _ in rows + [0] * 3:
        languages.append(styles("part.lang"))
        press(page, "n")
    assert languages == [[tag] * 3 for tag in ("ar", "ja", "zh-Hant", "", "")]


@pytest.mark.parametrize(
    ("chosen", "rejected", "marked"),
    [
        ("Put it in the old fridge now.", "Put it on the fridge now.", [["in", "old"], ["on"]]),
        ("三と四なら七です。", "三と四なら五です。", [["七"], ["五"]]),
        ("Nothing here is the same.", "Totally different words there", [[], []]),
        ("the same", "the same", [[], []]),
        ("", "all of it", [[], []]),
        ("a b " * 3000 + "old end", "c " * 3000 + "a b " * 3000 + "end", [[], []]),
    ],
)
def test_words_of_one_answer_alone_are_marked(open_page, chosen, rejected, marked):
    """Where next to nothing is common, or too much is to be compared, nothing is; no text is changed by it."""
    page = open_page([suspect(0, chosen=chosen, rejected=rejected)])

    def marks():
        return [page.locator(f"#{id} mark").all_text_contents() for id in ("chosen", "rejected")]

    assert marks() == marked
    assert (text(page, "chosen"), text(page, "rejected")) == (chosen, rejected)
    press(page, "m")
    assert marks() == [[], []]


def test_a_message_has_its_own_direction(open_page):
    """The name of a role is Latin, and begins no line of an Arabic message: that ends at the right edge."""
    said = flatten([{"role": "assistant", "content": "- نعم!"}])
    page = open_page([suspect(0, chosen=said, rejected=said)])
    gap = page.evaluate(
        """() => {
            const box = document.getElementById("chosen"), [text] = box.childNodes, range = document.createRange();
            range.setStart(text, text.data.indexOf("-"));
            range.setEnd(text, text.length);
            return box.getBoundingClientRect().right - range.getBoundingClientRect().right;
        }"""
    )
    assert 0 < gap < 30


def test_the_one_other_word_of_a_book_is_marked(open_page):
    """More words than a call can have arguments."""
    book = "word " * 150_000
    page = open_page([suspect(0, chosen=f"{book}yes", rejected=f"{book}no")])
    assert page.locator("#chosen mark").all_text_contents() == ["yes"]
    assert text(page, "rejected") == f"{book}no"


def test_filters_by_text_and_group(open_page):
    """Any case, composed or not; decisions move within what passes."""
    rows = [suspect(i, "ab"[i % 2], chosen="CAFE\u0301" if i < 4 else "tea") for i in range(6)]
    page = open_page(rows, counts={"a": 1000, "b": 1})
    assert page.locator("#group option").all_text_contents() == [
        "Every language  (g)",
        "a: 3 of 1,000 pairs",
        "b: 3 of 1 pair",
    ]
    press(page, "/")
    page.keyboard.insert_text("café")
    page.locator("#decided", has_text="4 in view").wait_for()
    press(page, "Escape", "g")
    page.select_option("#group", label="b: 3 of 1 pair")
    assert text(page, "decided") == "decided 0 of 6 · 2 in view"
    press(page, "Escape", "f", "f")
    assert text(page, "status") == "Pair 30: flip. No pair in view is left undecided."
    assert export(page) == lines(_10="flip", _30="flip")
    page.fill("#search", "nowhere")
    page.wait_for_selector("#empty:visible")
    press(page, "Tab", "Escape", "k", "u", "n", "m")
    assert export(page) == lines(_10="flip", _30="flip")


def test_thousands_of_long_pairs_are_a_few_elements(open_page):
    words = [f"word{i} " * 250 for i in range(7)]
    rows = [suspect(i, prompt=words[i % 5], chosen=words[i % 7], rejected=words[i % 3]) for i in range(5000)]
    page = open_page(rows)
    assert page.locator("*").count() < 300
    page.evaluate("document.getElementById('list').scrollTop = 1e9")
    page.locator("[role=option] >> text=#5000").click()
    assert text(page, "name").startswith("#5000 · pair 49990")
    press(page, "d")
    assert text(page, "name").startswith("#1 ")
    assert page.locator("[aria-selected=true]").get_attribute("aria-posinset") == "1"


@pytest.mark.parametrize(("width", "stacked"), [(1280, False), (400, True)])
def test_nothing_is_cut_off_and_answers_stand_side_by_side_where_there_is_room(open_page, width, stacked):
    page = open_page([suspect(0, chosen="x" * 5000, rejected="y " * 5000, prompt="p" * 3000, group="g" * 300)])
    page.set_viewport_size({"width": width, "height": 800})
    chosen, rejected = (page.locator(f"#{id}").bounding_box() for id in ("chosen", "rejected"))
    assert (rejected["y"] >= chosen["y"] + chosen["height"]) == stacked
    assert (rejected["x"] >= chosen["x"] + chosen["width"]) != stacked
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator("[data-decision=drop]").bounding_box()["y"] < 800


def test_pairs_without_texts_can_be_decided_on(open_page):
    """As of a log that does not name its data."""
    page = open_page([suspect(i, prompt=None, chosen=None, rejected=None) for i in range(3)])
    assert text(page, "name").startswith("#1 · pair 0")
    assert not page.is_visible("#chosen")
    page.fill("#search", "null")
    page.get_by_text("No pair passes the filter.").wait_for()
    page.fill("#search", "")
    page.locator("#row-2").wait_for()
    press(page, "Escape", "f", "m", "d")
    assert export(page) == lines(_0="flip", _10="drop")


def test_a_page_without_suspects_says_so(open_page):
    page = open_page([])
    press(page, "k", "u", "n", "m", "e")
    assert (text(page, "empty"), text(page, "status")) == ("No suspects.", "There is no decision to export yet.")
