"""Plain tables in every script: columns by hand."""

from trl_capo.text_table import LEFT_TO_RIGHT, text_table, width


def test_widths_are_those_of_a_terminal():
    for text, columns in {"abc": 3, "日本": 4, "é": 1, "e\u0301": 1, "a\u200eb": 2, "हिन्दी": 5, "": 0}.items():
        assert width(text) == columns, text


def test_numbers_are_aligned_behind_names_of_every_script():
    lines = text_table([["name", "n"], ["de", "1"], ["日本語", "1,000"], ["עברית", "20"], ["x\ny", ""]]).splitlines()
    assert lines == [
        "name        n",
        "de          1",
        "日本語  1,000",
        f"עברית{LEFT_TO_RIGHT}      20",
        "x\\ny",
    ]


def test_long_names_are_cut_to_their_columns():
    short, long = text_table([["日" * 40, "1"], ["a" * 28, "2"]]).splitlines()
    assert short == "日" * 13 + "…" + " " + "  1"
    assert long == "a" * 28 + "  2"
    assert width(short) == width(long)
