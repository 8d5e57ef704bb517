"""The output of an evaluation: tables, metrics.json, report.md, and a plot that also works in grey."""

import json
from pathlib import Path

import numpy as np

from trl_capo.common.figures import MARKERS, new_rows, plot_style, save
from trl_capo.common.text import count, escape_markdown, markdown_table, one_line, percent, text_table
from trl_capo.evaluate.summary import ALL_PAIRS, MACRO, MEASURES, WORST, Figures

HEADINGS = ["pairs", "accuracy, %", "ties, %", "margin", "median", "reference-free, %"]
NAME_LENGTH = 90  # in the plots, which show the end of a longer name, since it distinguishes folders


def render_text(figures: Figures) -> str:
    """Return the tables and notes for a terminal."""
    tables = [f"{one_line(name)}\n{text_table(rows)}\n" for name, rows in evaluation_tables(figures).items()]
    return "\n".join([*tables, *notes(figures)])


def write_evaluation(figures: Figures, folder: Path) -> None:
    """Write metrics.json, report.md and accuracy.png; `figures` are what `evaluate` returns."""
    content = json.dumps(figures, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "metrics.json").write_text(content + "\n", encoding="utf-8")
    data = figures["dataset"]
    title = f"Evaluation on {data['name']}, split {data['split']}: {count(data['pairs'], 'pair')}"
    lines = [f"# {escape_markdown(title)}", ""]
    for name, rows in evaluation_tables(figures).items():
        lines += [f"## {escape_markdown(name)}", "", markdown_table(rows), ""]
    lines += [f"- {escape_markdown(line)}" for line in notes(figures)] + [""]
    lines += [f"![accuracy per group]({plot_accuracy(figures, folder)})"]
    lines += ["", f"Versions: {', '.join(map(' '.join, figures['versions'].items()))}."]
    (folder / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def evaluation_tables(figures: Figures) -> dict[str, list[list[str]]]:
    """Return by its title one table per model, and with several models one of the differences (*: beyond chance)."""
    group_name = figures["group_column"] or "group"
    tables = {name: [[group_name, *HEADINGS], *_rows(model)] for name, model in figures["models"].items()}
    if figures["differences"]:
        headings = [f"model {number} - 1" for number in range(2, len(figures["models"]) + 1)]
        found = figures["differences"].values()
        parts = [model["groups"] | {ALL_PAIRS: model["overall"], MACRO: model.get("macro")} for model in found]
        rows = [[name, *(_difference(part[name]) for part in parts)] for name in parts[0] if parts[0][name]]
        tables["Differences"] = [[group_name, *headings], *rows]
    return tables


def _rows(model: Figures) -> list[list[str]]:
    rows, parts = [], dict(model["groups"])
    for column, groups in model["also_by"].items():
        parts |= {f"{column}: {group}": part for group, part in groups.items()}
    for name, part in [*parts.items(), (ALL_PAIRS, model["overall"])]:
        margins = ["-" if part[key] is None else f"{part[key]:.3f}" for key in ("margin_mean", "margin_median")]
        accuracy, free = (percent(part[key], part[f"{key}_95"]) for key in MEASURES)
        rows.append([name, count(part["pairs"]), accuracy, percent(part["ties"]), *margins, free])
    if model["groups"]:
        means = [percent(model["macro"].get(key)) for key in MEASURES]
        found = [model["worst"].get(key) for key in MEASURES]
        worst = [f"{percent(entry['value'])} ({one_line(entry['group'])})" if entry else "-" for entry in found]
        rows += [[name, "", a, "", "", "", free] for name, (a, free) in ((MACRO, means), (WORST, worst))]
    return rows


def _difference(part: Figures) -> str:
    value, low, high = (f"{100 * number:+.1f}" for number in (part["difference"], *part["interval_95"]))
    return f"{value} [{low}, {high}]{' *' if part['beyond_chance'] else ''}"


def notes(figures: Figures) -> list[str]:
    """Return what a reader of the tables must know."""
    lines, names = [], [one_line(name) for name in figures["models"]]
    if figures["dropped_pairs"]:
        lines.append(f"Left out because the prompt alone fills max_length: {count(figures['dropped_pairs'], 'pair')}.")
    if figures["dropped_groups"]:
        lines.append(f"Groups with no pair left: {', '.join(map(one_line, figures['dropped_groups']))}.")
    for name, model in zip(names, figures["models"].values(), strict=True):
        if model["reference"] is None:
            lines.append(f"{name}: without a reference (ref_model) there are no rewards, only log-probabilities.")
            continue
        ties = "; all pairs are ties, because the model equals it" if model["overall"]["ties"] == 1 else ""
        lines.append(f"{name}: its rewards are relative to the reference {one_line(model['reference'])}{ties}.")
    lines.append(
        "accuracy: share of pairs with a positive margin [95 % Wilson interval], so a tie is no success; margin: mean "
        "and median reward of the chosen answer minus that of the rejected one; reference-free: share of pairs whose "
        "chosen answer has the higher log-probability per token."
    )
    if figures["differences"]:
        measure = MEASURES[next(iter(figures["differences"].values()))["measure"]]
        lines.append(
            f"Differences: {measure}, in percentage points, on the same pairs; * beyond chance: the 95 % interval "
            "excludes 0 and the sign test gives p < 0.05."
        )
        lines += [f"Model {number}: {name}" for number, name in enumerate(names, 1)]
    return lines


def plot_accuracy(figures: Figures, folder: Path) -> str:
    """Draw accuracy.png, with room in every row for the points of all models; return the file's name."""
    names, models = [one_line(name)[-NAME_LENGTH:] for name in figures["models"]], list(figures["models"].values())
    data, groups = one_line(figures["dataset"]["name"])[-NAME_LENGTH:], list(models[0]["groups"])
    key = "reference_free_accuracy" if None in [model["overall"]["accuracy"] for model in models] else "accuracy"
    rows, title = [*map(one_line, groups), ALL_PAIRS], f"{names[0]}\non {data}"
    with plot_style([*rows, *names, data]):
        height = 1.6 + 0.28 * len(rows) * min(max(1.0, 0.6 * len(models)), 3.0) + 0.18 * len(models)
        figure, axes = new_rows(rows, height, 50)
        axes.set_title(data if len(models) > 1 else title)
        axes.axhline(len(rows) - 1.5, color="0.7", linewidth=0.8)
        for index, (name, model) in enumerate(zip(names, models, strict=True)):
            parts = [*model["groups"].values(), model["overall"]]
            centre, bounds = (100 * np.array([part[entry] for part in parts]) for entry in (key, f"{key}_95"))
            places = np.arange(len(rows)) + (index - (len(models) - 1) / 2) * 0.6 / len(models)
            style = {"fmt": MARKERS[index % len(MARKERS)], "color": str(0.15 + 0.5 * index / len(models))}
            axes.errorbar(centre, places, xerr=np.abs(bounds.T - centre), label=name, **style)
        axes.set(xlim=(-2, 102), xlabel=f"{MEASURES[key]} in %, with 95 % interval (dotted: chance)")
        if len(models) > 1:
            figure.legend(loc="outside upper center")
        return save(figure, folder / "accuracy.png")
