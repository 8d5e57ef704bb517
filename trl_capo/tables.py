"""The tables and remarks of an evaluation, as text: what the terminal and report.md show of its figures."""

import itertools
import re
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any, NamedTuple

from trl_capo.fonts import one_line
from trl_capo.plots import MEASURES
from trl_capo.statistics import ALL_PAIRS, MACRO, WORST

_FORMULA = re.compile(r"(^|[;\n])(\s*)(?=[-=+@＝＋－＠])")
"""Where a formula may begin: also behind what ends a cell for a spreadsheet that separates them by semicolons."""


class Table(NamedTuple):
    """A title, the columns' headings, a row a group, and the rows of what is taken over the groups."""

    title: str
    headings: list[str]
    groups: list[list[str]]
    summaries: list[list[str]]


def evaluation_tables(figures: dict[str, Any]) -> list[Table]:
    """A table a model, and one of the differences where there are several; figures as in docs/evaluate.md."""
    group_name = figures["group_column"] or "group"
    tables = [_model_table(name, model, group_name) for name, model in figures["models"].items()]
    if figures["differences"]:
        tables.append(_difference_table(figures["differences"], group_name))
    return tables


def count_pairs(number: int) -> str:
    return f"{number:,} pair" + ("" if number == 1 else "s")


def _percent(value: float | None, interval: Sequence[float] | None = None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f}" + (f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else "")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _letters(count: int) -> list[str]:
    """Names of models in a table: A, B, ..., Z, AA, AB, ..."""
    words = ("".join(word) for size in itertools.count(1) for word in itertools.product(ascii_uppercase, repeat=size))
    return list(itertools.islice(words, count))


def _model_table(name: str, model: dict[str, Any], group_name: str) -> Table:
    headings = [group_name, "pairs", "accuracy\n% [95 %]", "ties\n%", "mean\nmargin", "median\nmargin"]
    headings.append("reference-free\n% [95 %]")

    def row(name: str, values: dict[str, Any]) -> list[str]:
        return [
            one_line(name),
            f"{values['pairs']:,}",
            _percent(values["accuracy"], values["accuracy_95"]),
            _percent(values["ties"]),
            _number(values["margin_mean"]),
            _number(values["margin_median"]),
            _percent(values["reference_free_accuracy"], values["reference_free_accuracy_95"]),
        ]

    groups = [row(group, values) for group, values in model["groups"].items()]
    for column, others in model["also_by"].items():
        groups += [row(f"{column}: {group}", values) for group, values in others.items()]
    summaries = [row(ALL_PAIRS, model["overall"])]
    if model["groups"]:
        macro, worst = model["macro"], model["worst"]

        def name_worst(key: str) -> str:
            return f"{_percent(worst[key]['value'])} ({one_line(worst[key]['group'])})" if key in worst else "-"

        means = [_percent(macro.get(key)) for key in MEASURES]
        summaries.append([MACRO, "", means[0], "", "", "", means[1]])
        lowest = [name_worst(key) for key in MEASURES]
        summaries.append([WORST, "", lowest[0], "", "", "", lowest[1]])
    return Table(one_line(name), headings, groups, summaries)


def _difference_table(differences: dict[str, Any], group_name: str) -> Table:
    """A column a model, `*` behind what is beyond chance."""
    models = list(differences.values())
    headings = [group_name, *(f"{letter} - A" for letter in _letters(1 + len(models))[1:])]

    def cell(found: dict[str, Any]) -> str:
        low, high = found["interval_95"]
        star = " *" if found["beyond_chance"] else ""
        return f"{100 * found['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]{star}"

    groups = [[one_line(group), *(cell(model["groups"][group]) for model in models)] for group in models[0]["groups"]]
    summaries = [
        [name, *(cell(model[key]) for model in models)]
        for key, name in (("overall", ALL_PAIRS), ("macro", MACRO))
        if key in models[0]
    ]
    return Table("Differences", headings, groups, summaries)


def notes(figures: dict[str, Any]) -> list[str]:
    """What a reader must know beside the numbers."""
    lines = []
    if figures["dropped_pairs"]:
        lines.append(f"Left out, because the prompt alone fills max_length: {count_pairs(figures['dropped_pairs'])}.")
    if figures["dropped_groups"]:
        lines.append(f"No pair is left of: {', '.join(map(one_line, figures['dropped_groups']))}.")
    for name, model in zip(map(one_line, figures["models"]), figures["models"].values(), strict=True):
        if model["reference"] is None:
            lines.append(
                f"{name}: no reference was given (ref_model), so there are no rewards, only log-probabilities."
            )
        elif model["overall"]["ties"] == 1:
            lines.append(
                f"{name}: every pair is a tie, because the model and its reference ({model['reference']}) give the "
                "same log-probabilities. There is no reward accuracy to speak of."
            )
        else:
            lines.append(f"{name}: rewards against {model['reference']}, beta {figures['beta']:g}.")
            tied = [group for group, values in model["groups"].items() if values["ties"] == 1]
            if tied:
                lines.append(
                    f"{name}: nothing but ties, which count as no success, in: {', '.join(map(one_line, tied))}."
                )
    lines.append(
        "accuracy: share of pairs with a positive margin (Wilson interval); margin: reward of chosen less rejected; "
        "reference-free: share of pairs whose chosen answer has the higher log-probability per token."
    )
    if figures["differences"]:
        measure = MEASURES[next(iter(figures["differences"].values()))["measure"]]
        lines.append(
            f"Differences: {measure}, in points, on the same pairs; * beyond chance: the 95 % interval excludes 0 "
            "and the sign test gives p < 0.05."
        )
        letters = _letters(len(figures["models"]))
        lines += [f"{letter}: {one_line(name)}" for letter, name in zip(letters, figures["models"], strict=True)]
    return lines


def cell(value: Any) -> Any:
    """A value as a spreadsheet takes it for what it is: text never as a formula, unseen characters as escapes."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = "; ".join(value)
    if not isinstance(value, str):
        return value
    text = "\n".join(map(one_line, value.replace("\r\n", "\n").split("\n")))
    return _FORMULA.sub(r"\1\2'", text)
