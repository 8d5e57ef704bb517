"""Text that a terminal, a report or a spreadsheet shows as it is, whatever it contains."""

from markdown_it import MarkdownIt

from trl_capo.common import text


def test_controls_become_escapes_and_letters_stay():
    assert text.escape("a\x1b[31m\u202e\ud800 नि\u200dx\nb") == "a\\x1b[31m\\u202e\\ud800 नि\u200dx\nb"
    assert text.one_line("tab\there\nline\u2028") == "tab\\there\\nline\\u2028"


def test_long_text_and_long_lists_are_cut():
    assert (text.shorten("abcdef", 6), text.shorten("abcdefg", 6)) == ("abcdef", "abcde…")
    assert (text.first_few([1, 2], 2), text.first_few(range(9), 2)) == ("1, 2", "0, 1, ...")


def test_spreadsheets_do_not_compute_text_and_keep_other_values():
    for cell in ("=1+1", " @SUM(A1)", "-2", "+x", "\uff1d1"):
        assert text.spreadsheet_cell(cell) == "'" + cell
    assert [text.spreadsheet_cell(value) for value in (3, None, "a=b", ["x", "y"])] == [3, None, "a=b", "x; y"]


def test_numbers_are_formatted_for_readers():
    assert [text.percent(0.5), text.percent(None), text.percent(float("nan"))] == ["50.0", "-", "-"]
    assert text.percent(0.8125, [0.7, 0.9]) == "81.2 [70.0, 90.0]"
    assert [text.count(1234), text.count(1, "pair"), text.count(0, "pair")] == ["1,234", "1 pair", "0 pairs"]


def test_a_terminal_table_aligns_every_script_and_cuts_long_names():
    """Han characters take two columns."""
    table = text.text_table([["language", "pairs"], ["日本", "1"], ["d\x07", "1,000"], ["x" * 100, "12"]])
    assert table.splitlines() == [
        f"{'language':40}  pairs",
        f"{'日本':38}      1",
        f"{'d' + chr(92) + 'x07':40}  1,000",
        "x" * 39 + "…     12",
    ]


def test_markdown_shows_names_as_they_are():
    """CommonMark finds no emphasis, code, link, HTML or entity in them."""
    names = ["*a*", "_b_", "`c`", "<img src=x>", "[d](http://e)", "f|g", "&lt;", "~~h~~", "$i$", "a\\b"]
    table = text.markdown_table([["h", "n"], *([name, "1"] for name in names)])
    html = MarkdownIt("gfm-like", {"linkify": False}).render(table)
    shown = [name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") for name in names]
    assert all(f"<td>{name}</td>" in html for name in shown)
    assert text.escape_markdown("two\nlines") == "two\\\\nlines"
