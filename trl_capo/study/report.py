"""Write the report, the table and the plots of a study into its folder."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from trl_capo.common.figures import MARKERS, new_figure, plot_style, save
from trl_capo.common.text import Rows, count, markdown_table, one_line, percent
from trl_capo.study.plan import StudyPlan
from trl_capo.study.results import ALL, Cell, Key, estimate, read_cells, tidy_table, worst_group

WIDTH, HEIGHT, LETTER = 6.5, 4.2, 0.075  # of plots, in inches
Cells = Mapping[tuple[str, str], Cell]  # of one number of epochs, by noise and method
Styles = Mapping[str, dict[str, str]]  # marker and shade of grey of every method
TABLES = [  # title, measure, format, value that stands for equality with the baseline, whether in the worst group
    ("Reward accuracy, % (number of seeds)", "accuracy", "{:.1f}", None, False),
    ("Reward accuracy minus {}'s, points", "accuracy", "{:+.1f}", 0, False),
    ("Reward accuracy as a multiple of {}'s", "accuracy", "{:.2f}", 1, False),
    ("Reward gap: the mean margin", "margin", "{:.2f}", None, False),
    ("Reward gap as a multiple of {}'s", "margin", "{:.2f}", 1, False),
    ("Reward accuracy in the worst group, %", "accuracy", "{:.1f}", None, True),
]


def write_report(plan: StudyPlan) -> Rows:
    """Write results.csv, report.md and the plots of the finished runs; return a table of them."""
    cells, folder = read_cells(plan), Path(plan.output_dir)
    table = tidy_table(cells)
    table.to_csv(folder / "results.csv", index=False, lineterminator="\r\n")
    finished = sum(len(cell.seeds) for cell in cells.values())
    planned = len(plan.grid_runs(dict.fromkeys(plan.budgets(), 0.0)))
    lines = [
        f"# Study: {plan.model_name_or_path} on {plan.dataset_name}\n",
        f"All methods are evaluated on the same {len(next(iter(cells.values())).labels):,} test pairs, which have no "
        "injected noise. Brackets contain 95 % bootstrap intervals over seeds and test pairs, or only over test pairs "
        f"for one seed. Differences and multiples are relative to {plan.baseline} on the same pairs and seeds, and * "
        f"marks intervals that exclude equality. {finished} of {planned} runs are finished.\n",
    ]
    for label, options in (plan.methods | plan.noise).items():
        if any(label in key for key in cells):
            lines.append(f"- {label}: " + ", ".join(f"{name} {value}" for name, value in options.items()))
    for epochs, part in table.groupby("epochs"):
        lines.append(f"\n## {count(epochs, 'epoch')}\n")
        lines += _tables(plan, {key[1:]: cell for key, cell in cells.items() if key[0] == epochs})
        lines += _noise_rates(part)
    lines += _learning_rates(plan)
    lines += [f"![{caption}]({plot})" for plot, caption in plot_study(plan, cells, folder).items()]
    versions = table.filter(like="version_").drop_duplicates().rename(columns=lambda name: name[len("version_") :])
    lines += ["", *(f"Versions: {', '.join(map(' '.join, row.items()))}." for row in versions.to_dict("records"))]
    (folder / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    has_groups, rows = len(next(iter(cells.values())).groups) > 1, []
    shown = [TABLES[number][1:] for number in (0, 1, 4, 5)][: 4 if has_groups else 3]
    for (epochs, noise, method), cell in cells.items():
        base = cells.get((epochs, noise, plan.baseline))
        texts = [_text(cell, base, *table) or "" for table in shown]
        rows.append([f"{method}, {noise}, {count(epochs, 'epoch')}", *texts])
    headings = ["", "accuracy, % (seeds)", f"minus {plan.baseline}'s", "gap, multiple", "worst group, %"]
    return [headings[: 1 + len(shown)], *rows]


def _tables(plan: StudyPlan, cells: Cells) -> list[str]:
    lines, noises = [], [noise for noise in plan.noise if any(noise == key[0] for key in cells)]
    has_groups = len(next(iter(cells.values())).groups) > 1
    for title, *table in TABLES if has_groups else TABLES[:5]:
        rows = [["method", *noises]]
        for method in plan.methods:
            pairs = [(cells.get((noise, method)), cells.get((noise, plan.baseline))) for noise in noises]
            texts = [_text(cell, base, *table) if cell else None for cell, base in pairs]
            rows += [[method, *(text or "-" for text in texts)]] if any(texts) else []
        lines.append(f"### {title.format(plan.baseline)}\n\n{markdown_table(rows, _cell)}\n")
    return lines


def _text(cell: Cell, base: Cell | None, measure: str, form: str, equality: Any, worst: bool) -> str | None:
    """Format what a table shows of a cell; None if there is nothing to show."""
    if equality is not None and (base is None or base is cell):
        return None
    base = None if equality is None else base
    group = worst_group(base or cell) if worst else ALL
    if (found := estimate(cell, measure, group, base, ratio=equality == 1)) is None:
        return None
    unit = 100 if measure == "accuracy" and equality != 1 else 1
    value, low, high = (form.format(unit * number) for number in (found.value, found.low, found.high))
    star = " *" if base and not found.low <= equality <= found.high else ""
    note = group if worst else len(cell.seeds) if measure == "accuracy" and not base else None
    return f"{value} [{low}, {high}]{star}" + (f" ({note})" if note else "")


def _noise_rates(table: pd.DataFrame) -> list[str]:
    columns, groups = ["noise_rate_estimate", "noise_rate_true"], table["group"].unique()
    rates = table.astype(dict.fromkeys(columns, float)).groupby(["method", "noise", "group"], sort=False)[columns]
    texts = {key: f"{100 * found:.0f} ({100 * true:.0f})" for key, found, true in rates.mean().dropna().itertuples()}
    runs = dict.fromkeys(key[:2] for key in texts)
    rows = [["", *groups], *([", ".join(run), *(texts.get((*run, group), "-") for group in groups)] for run in runs)]
    return ["### Noise rate estimated (true), %\n", markdown_table(rows, _cell), ""] if runs else []


def _learning_rates(plan: StudyPlan) -> list[str]:
    rates, selected = sorted(plan.learning_rates), plan.selected_rates()
    rows = [["method", "epochs", *rates]]
    for budget, found in plan.validation_accuracies().items():
        rows.append([*budget, *(percent(found[r]) + " (chosen)" * (r == selected[budget]) for r in rates)])
    note = f"Mean accuracy on the validation split, %, of the runs that select learning rates (tuning: {plan.tuning})."
    return ["## Learning rates\n", note, "", markdown_table(rows, _cell), ""] if rows[1:] else []


def _cell(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else one_line(str(value))
    return text.replace("|", "\\|")


def plot_study(plan: StudyPlan, cells: Mapping[Key, Cell], folder: Path) -> dict[str, str]:
    """Draw all plots for each number of epochs, and return the caption of each file."""
    captions = {}
    with plot_style([*plan.methods, *plan.noise]):
        for epochs in sorted({key[0] for key in cells}):
            part = {key[1:]: cell for key, cell in cells.items() if key[0] == epochs}
            noises = [noise for noise in plan.noise if any(noise == key[0] for key in part)]
            methods = [method for method in plan.methods if any(method == key[1] for key in part)]
            shades = np.linspace(0.05, 0.55, len(methods)).astype(str)
            styles = {m: {"marker": MARKERS[i % len(MARKERS)], "color": shades[i]} for i, m in enumerate(methods)}
            path = folder / f"accuracy_{epochs:g}ep.png"
            captions[save(_over_noise(part, noises, styles), path)] = f"Reward accuracy, {count(epochs, 'epoch')}"
            for noise in noises:
                own = {method: cell for (label, method), cell in part.items() if label == noise}
                own = {m: cell for m, cell in own.items() if m == plan.baseline or cell.results[0]["noise_rates"]}
                if len(own) > 1 and len(next(iter(own.values())).groups) > 1:
                    path = folder / f"groups_{re.sub(r'[^A-Za-z0-9]+', '_', noise).strip('_')}_{epochs:g}ep.png"
                    captions[save(_by_group(own, styles), path)] = f"Groups, {noise}, {count(epochs, 'epoch')}"
    return captions


def _by_group(cells: Mapping[str, Cell], styles: Styles) -> Any:
    """Draw the accuracy of methods in every group, and beside it the noise rates, estimated and true."""
    groups = [*next(iter(cells.values())).groups, ALL]
    size = {"width": 8.5, "height": 1.3 + (0.12 + 0.13 * len(cells)) * len(groups)}
    figure, (left, right) = new_figure(**size, ncols=2, sharey=True, width_ratios=(3, 2))
    places = np.arange(len(groups))
    for number, (method, cell) in enumerate(cells.items()):
        found = 100 * np.array([estimate(cell, "accuracy", group) for group in groups])
        reach = [found[:, 0] - found[:, 1], found[:, 2] - found[:, 0]]
        shifted = places + 0.7 * ((number + 0.5) / len(cells) - 0.5)
        left.errorbar(found[:, 0], shifted, xerr=reach, linestyle="none", label=one_line(method), **styles[method])
        if cell.results[0]["noise_rates"]:
            rates = [[result["noise_rates"].get(group, np.nan) for group in groups] for result in cell.results]
            right.plot(100 * np.mean(rates, axis=0), shifted, linestyle="none", **styles[method])
    most = max((cell.results for cell in cells.values()), key=len)  # the seeds differ in their noise
    shares = [[result["noise_shares"][group] for group in groups] for result in most]
    right.plot(100 * np.mean(shares, axis=0), places, "x", color="tab:red", label="true rate")
    for axes in (left, right):
        axes.axhline(len(groups) - 1.5, color="0.7", linewidth=0.8)
    left.set_yticks(places, map(one_line, groups))
    left.set(xlabel="reward accuracy, % (95 % interval)", ylim=(len(groups) - 0.5, -0.5))
    right.set(xlabel="noise rate, %", xlim=(0, None))
    figure.legend(loc="outside upper center", ncols=len(cells) + 1)
    return figure


def _over_noise(cells: Cells, noises: Sequence[str], styles: Styles) -> Any:
    """Draw one group of markers per noise, and per method a marker with its 95 % interval; hollow with one seed."""
    figure, axes = new_figure(max(WIDTH, 1.6 + 1.9 * len(noises)), HEIGHT)
    for (noise, method), cell in cells.items():
        place = noises.index(noise) + 0.8 * ((list(styles).index(method) + 0.5) / len(styles) - 0.5)
        value, low, high = (100 * number for number in estimate(cell, "accuracy"))
        fill = {"markerfacecolor": "white"} if len(cell.seeds) == 1 else {}
        axes.errorbar(place, value, yerr=[[value - low], [high - value]], **styles[method], **fill)
    for method, style in styles.items():
        axes.plot([], [], linestyle="none", label=one_line(method), **style)
    axes.set_xticks(range(len(noises)), map(one_line, noises))
    axes.vlines(np.arange(1, len(noises)) - 0.5, 0, 1, color="0.85", transform=axes.get_xaxis_transform())
    axes.grid(axis="x", visible=False)
    axes.set(xlim=(-0.5, len(noises) - 0.5), xlabel="noise in the training labels")
    axes.set_ylabel("reward accuracy, % (95 % interval; hollow: one seed)")
    columns = min(5, max(1, int(figure.get_figwidth() / (LETTER * max(map(len, styles)) + 0.5))))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=columns)
    return figure
