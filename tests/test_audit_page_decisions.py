"""Decisions on the page of suspects, in a real browser (`make test-browser` brings one)."""

import json

import pytest
from page_browser import export, line, lines, press, text
from page_data import FINGERPRINT, suspect


def test_decisions_by_keyboard_are_exported(open_page):
    """Keep; flip; drop, undone from the fourth pair, then flip; over the fourth to the fifth; back to the first."""
    page = open_page([suspect(i) for i in range(5)])
    press(page, "k", "f", "d", "u", "F", "ArrowDown", "k")
    assert text(page, "decided") == "decided 4 of 5"
    assert text(page, "name").startswith("#4 ")  # the one that is left
    press(page, "p", "p", "p", "d", "ArrowLeft", "j", "n", "ArrowRight")
    assert export(page) == lines(_0="drop", _10="flip", _20="flip", _40="keep")


def test_buttons_do_the_same(open_page):
    page = open_page([suspect(i) for i in range(4)])
    for button in ("Keep", "Flip", "Drop", "Undo", "Previous", "Previous", "Drop", "Next", "Flip"):
        page.get_by_role("button", name=button).click()
    assert export(page, lambda page: page.get_by_role("button", name="Export").click()) == lines(
        _0="drop", _10="flip", _30="flip"
    )


def test_every_control_is_reached_by_tab_and_shows_its_focus(open_page):
    page = open_page([suspect(0), suspect(1)])
    reached = {}
    for _ in range(25):
        press(page, "Tab")
        focused = page.evaluate_handle("document.activeElement")
        name = focused.evaluate("(element) => element.id || element.dataset.decision")
        reached[name] = focused.evaluate("(element) => getComputedStyle(element).outlineStyle")
    controls = "search group list differences import export help prompt chosen rejected keep flip drop undo next"
    assert {name: reached.get(name) for name in controls.split()} == dict.fromkeys(controls.split(), "solid")


def test_keys_of_another_layout_and_with_control(open_page):
    page = open_page([suspect(0), suspect(1)])
    for key, code, control in (("л", "KeyK", "false"), ("t", "KeyK", "false"), ("d", "KeyD", "true")):
        event = f'new KeyboardEvent("keydown", {{key: "{key}", code: "{code}", ctrlKey: {control}, bubbles: true}})'
        page.evaluate(f"document.body.dispatchEvent({event})")
    assert export(page) == lines(_0="keep")


def test_decisions_stay_with_the_data_set(open_page):
    """A page of the same data finds them, and exports those too on pairs that it does not show; another does not."""
    press(open_page([suspect(i) for i in range(3)]), "f", "d")
    again = open_page([suspect(i) for i in (1, 2)])
    assert (text(again, "decided"), text(again, "name")[:2]) == ("decided 1 of 2", "#3")
    assert export(again) == lines(_0="flip", _10="drop")
    assert text(open_page([suspect(i) for i in range(3)], fingerprint="0" * 64), "decided") == "decided 0 of 3"


def test_without_storage_decisions_are_exported_and_the_reader_told(open_page, tmp_path):
    page = open_page([suspect(0), suspect(1)])
    frame = tmp_path / "frame.html"
    frame.write_text('<iframe sandbox="allow-scripts allow-downloads" src="suspects.html"></iframe>', encoding="utf-8")
    page.goto(frame.as_uri())
    inner = page.frames[1]
    inner.locator("[data-decision=flip]").click()
    assert "does not keep" in inner.locator("#kept").text_content()
    assert export(page, lambda page: inner.locator("#export").click()) == lines(_0="flip")


def test_decisions_are_imported_with_their_notes(open_page, tmp_path):
    file = tmp_path / "earlier.jsonl"
    file.write_text("\n".join([line(10, "keep"), "", line(10, "drop", note="é"), line(990, "flip")]), encoding="utf-8")
    page = open_page([suspect(i) for i in range(3)])
    page.set_input_files("#file", file)
    page.locator("#status", has_text="Imported 3 decisions.").wait_for()
    assert page.evaluate("[...document.querySelectorAll('#rows b')].map((part) => part.textContent)") == [
        "",
        "drop",
        "",
    ]
    press(page, "n", "f")
    noted = {"pair": 10, "fingerprint": FINGERPRINT, "decision": "flip", "note": "é"}
    assert list(map(json.loads, export(page).splitlines())) == [noted, json.loads(line(990, "flip"))]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("{", "is not JSON"),
        ("null", "names no pair"),
        (line(1, "burn"), "has no decision"),
        (line(1, "keep", fingerprint="f" * 64), "is on another data set"),
    ],
)
def test_a_file_with_a_bad_line_is_not_imported(open_page, tmp_path, bad, why):
    file = tmp_path / "bad.jsonl"
    file.write_text(f"{line(0, 'keep')}\n{bad}\n", encoding="utf-8")
    page = open_page([suspect(0)])
    page.set_input_files("#file", file)
    page.locator("#status", has_text=f"line 2 {why}").wait_for()
    assert text(page, "decided") == "decided 0 of 1"
