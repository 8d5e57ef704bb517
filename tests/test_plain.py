"""Messages fit a terminal, whatever they quote."""

import pytest
from broken_data import CONTROLS, HUGE, RIGHT_TO_LEFT
from hypothesis import given
from hypothesis import strategies as st

from trl_capo.plain import COLUMNS, LINES, plain, print_error


@given(st.text(st.characters(exclude_categories=())) | st.text("\x1b\u202e\ud800\n x", max_size=3000))
def test_any_text_becomes_short_and_printable(text):
    lines = plain(text).split("\n")
    assert len(lines) <= LINES
    assert all(len(line) <= COLUMNS + 40 and line.isprintable() for line in lines)


@pytest.mark.parametrize("text", ["", "a 'b' c", "日本語 and नमस्ते", "two\nlines", "x" * 240, " ".join("ab" * 3) * 20])
def test_what_fits_stays_as_it_is(text):
    assert plain(text) == text


def test_what_a_terminal_would_obey_is_escaped():
    assert plain(CONTROLS) == r"\x1b[31m\x07\x00\x9b2J"
    assert plain(RIGHT_TO_LEFT + "\ud800\u2028.") == r"\u202e\u200f\u2067\ud800\u2028."


def test_of_what_is_huge_both_ends_are_left_and_the_size_is_told():
    """A word keeps 180 and 59 of its characters, of which 3 and 2 are not x here, so that 99,766 are left out."""
    assert plain(f"a='{HUGE}': why.") == f"a='{'x' * 177}... (99,766 characters) ...{'x' * 57}': why."
    assert plain("\n".join(map(str, range(100)))).split("\n") == [
        *map(str, range(18)),
        "... (77 lines) ...",
        *map(str, range(95, 100)),
    ]


def test_an_error_without_words_is_named_by_its_kind(capfd):
    print_error("trl-capo train", ValueError("no\x07"))
    print_error("trl-capo train", EOFError())
    assert capfd.readouterr() == ("", "trl-capo train: error: no\\x07\ntrl-capo train: error: EOFError\n")
