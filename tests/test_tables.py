"""The tables of an evaluation as printed: nothing is lost, however narrow the terminal is; and cells of a CSV."""

import re

import numpy as np
import pytest
from test_report import evaluation

from trl_capo.report import print_evaluation
from trl_capo.statistics import model_figures
from trl_capo.tables import cell, evaluation_tables, notes

LONG = "a_language_with_30_characters_"


@pytest.fixture
def printed(monkeypatch, capsys):
    """What a terminal, file or pipe of so many columns gets."""

    def show(figures, columns: int) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        capsys.readouterr()
        print_evaluation(figures)
        return capsys.readouterr().out

    return show


def wide_figures() -> dict:
    """Six models; the second is right on every pair, where the first never is."""
    figures, labels, _ = evaluation([LONG, "日本語", "de"], [f"m{index}" for index in range(6)])
    for name, right in (("m0", False), ("m1", True)):
        for part in (figures["models"][name]["overall"], *figures["models"][name]["groups"].values()):
            part |= {"accuracy": float(right), "accuracy_95": [1.0, 1.0], "margin_mean": -1234.5678 + right}
    for part in (figures["differences"]["m1"]["overall"], *figures["differences"]["m1"]["groups"].values()):
        part |= {"difference": 1.0, "interval_95": [-1.0, 1.0], "beyond_chance": True}
    return figures


def numbers(text: str) -> list[str]:
    return sorted(re.findall(r"[+-]?\d+\.\d+", text))


@pytest.mark.parametrize("columns", [60, 80])
def test_every_number_is_in_a_narrow_terminal(printed, columns):
    """The expected numbers are formatted here, from the figures themselves."""
    figures = wide_figures()
    output = printed(figures, columns)
    tables = output[: output.index("m0: rewards")]
    expected = []
    for model in figures["models"].values():
        for part in (model["overall"], *model["groups"].values()):
            shares = [part["accuracy"], *part["accuracy_95"], part["ties"]]
            shares += [part["reference_free_accuracy"], *part["reference_free_accuracy_95"]]
            expected += [f"{100 * share:.1f}" for share in shares]
            expected += [f"{part[key]:.3f}" for key in ("margin_mean", "margin_median")]
        for key in ("accuracy", "reference_free_accuracy"):
            expected += [f"{100 * share:.1f}" for share in (model["macro"][key], model["worst"][key]["value"])]
    for model in figures["differences"].values():
        for part in (model["overall"], model["macro"], *model["groups"].values()):
            expected += [f"{100 * value:+.1f}" for value in (part["difference"], *part["interval_95"])]
    assert numbers(tables) == sorted(expected)
    for heading in ("B - A", "F - A", "accuracy", "reference-free"):
        assert heading in tables
    folded = re.sub(r"\s", "", tables)
    assert folded.count("日本語") >= 7
    assert LONG[:24] in folded


def test_columns_line_up_in_a_narrow_terminal(printed):
    """Every row of the table of differences has its stars and brackets in as many places."""
    output = printed(wide_figures(), 60)
    rows = [line for line in output.splitlines() if line.count("[") == 5]
    assert len(rows) == 5  # three groups, all pairs, the macro mean
    assert len({len(line) for line in rows if line.isascii()}) == 1


def test_groups_named_like_summaries_stand_among_the_groups(printed):
    """Such names are changed where groups are read; a table tells the two apart by their place all the same."""
    figures, _, _ = evaluation(["all pairs", "de", "macro mean"])
    (table,) = evaluation_tables(figures)
    assert [row[0] for row in table.groups] == ["all pairs", "de", "macro mean"]
    assert [row[0] for row in table.summaries] == ["all pairs", "macro mean", "worst group"]
    lines = [line.strip() for line in printed(figures, 200).splitlines()]
    shown = [re.split(r"\s{2,}", line)[0] for line in lines[lines.index("a model") :]]
    start = shown.index("all pairs")
    assert shown[start : start + 7] == ["all pairs", "de", "macro mean", "", "all pairs", "macro mean", "worst group"]


@pytest.mark.parametrize(("pairs", "words"), [(1, "1 pair."), (2, "2 pairs."), (1234, "1,234 pairs.")])
def test_pairs_and_groups_that_were_left_out_are_said(pairs, words):
    figures, _, _ = evaluation(["de"])
    figures |= {"dropped_pairs": pairs, "dropped_groups": ["sw", "a\tb"]}
    first, second, *_ = notes(figures)
    assert first.endswith(f"max_length: {words}")
    assert second == "No pair is left of: sw, a\\tb."


def test_groups_of_ties_only_are_named():
    """As where the answers of a group differ only behind the place at which they are cut."""
    labels, margins = ["de", "de", "sw", "sw"], np.array([1.0, -1.0, 0.0, 0.0])
    figures, _, _ = evaluation(["de"])
    figures["models"] = {"m": model_figures(labels, {}, margins=margins, normalised=margins, reference="r")}
    assert "m: nothing but ties, which count as no success, in: sw." in notes(figures)


@pytest.mark.parametrize("start", "=+-@＝＋－＠")
@pytest.mark.parametrize("before", ["", " ", "\n", "\u3000", "a;", "a; ", "a\n"])
def test_no_cell_is_a_formula(before, start):
    assert cell(f"{before}{start}cmd|' /C calc'!A0") == f"{before}'{start}cmd|' /C calc'!A0"


def test_cells_keep_what_is_harmless():
    assert cell("a\nb = c; d") == "a\nb = c; d"
    assert cell("a\r\nb") == "a\nb"
    assert cell("a\tb\x00\x1b[2J") == "a\\tb\\x00\\x1b[2J"
    assert cell("می\u200cخواهم \u200fא") == "می\u200cخواهم \u200fא"
    assert cell(-1.5) == -1.5
    assert cell(None) is None


@pytest.mark.parametrize("code", [*range(0x202A, 0x202F), *range(0x2066, 0x206A)], ids=hex)
def test_cells_show_turns_of_the_reading_direction(code):
    assert cell(f"a{chr(code)}b\nc") == f"a\\u{code:04x}b\nc"
