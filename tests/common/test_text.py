"""Text that a terminal, a report or a spreadsheet shows as it is, whatever it contains."""

import pytest
from markdown_it import MarkdownIt

from trl_capo.common.text import (
    count,
    escape,
    escape_markdown,
    first_few,
    markdown_table,
    one_line,
    percent,
    shorten,
    spreadsheet_cell,
    text_table,
)


def test_controls_become_escapes_and_letters_stay():
    assert escape("a\x1b[31m\u202e\ud800 नि\u200dx\nb") == "a\\x1b[31m\\u202e\\ud800 नि\u200dx\nb"
    assert one_line("tab\there\nline\u2028") == "tab\\there\\nline\\u2028"


def test_long_text_and_long_lists_are_cut():
    assert (shorten("abcdef", 6), shorten("abcdefg", 6)) == ("abcdef", "abcde…")
    assert (first_few([1, 2], 2), first_few(range(9), 2)) == ("1, 2", "0, 1, ...")


@pytest.mark.parametrize("text", ["=1+1", " @SUM(A1)", "-2", "+x", "\uff1d1"])
def test_spreadsheets_do_not_compute_text(text):
    assert spreadsheet_cell(text) == "'" + text


def test_spreadsheet_cells_keep_other_values():
    assert [spreadsheet_cell(value) for value in (3, None, "a=b", ["x", "y"])] == [3, None, "a=b", "x; y"]


def test_numbers_are_formatted_for_readers():
    assert [percent(0.5), percent(None), percent(float("nan"))] == ["50.0", "-", "-"]
    assert percent(0.8125, [0.7, 0.9]) == "81.2 [70.0, 90.0]"
    assert [count(1234), count(1, "pair"), count(0, "pair")] == ["1,234", "1 pair", "0 pairs"]


def test_a_terminal_table_aligns_every_script_and_cuts_long_names():
    """Han characters take two columns."""
    table = text_table([["language", "pairs"], ["日本", "1"], ["d\x07", "1,000"], ["x" * 100, "12"]])
    assert table.splitlines() == [
        f"{'language':40}  pairs",
        f"{'日本':38}      1",
        f"{'d' + chr(92) + 'x07':40}  1,000",
        "x" * 39 + "…     12",
    ]


def test_markdown_shows_names_as_they_are():
    """CommonMark finds no emphasis, code, link, HTML or entity in them."""
    names = ["*a*", "_b_", "`c`", "<img src=x>", "[d](http://e)", "f|g", "&lt;", "~~h~~", "$i$", "a\\b"]
    html = MarkdownIt("gfm-like", {"linkify": False}).render(markdown_table([["h", "n"], *([n, "1"] for n in names)]))
    shown = [name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") for name in names]
    assert all(f"<td>{name}</td>" in html for name in shown)
    assert escape_markdown("two\nlines") == "two\\\\nlines"
