"""What a study leaves behind: the tidy table (results.csv, results.parquet), report.md and the plots."""

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from trl_capo.fonts import one_line
from trl_capo.study import table
from trl_capo.study.config import Run, StudyConfig, Trained
from trl_capo.study.plots import plot_study
from trl_capo.study.rates import Tried, choose_learning_rates
from trl_capo.study.table import Bootstrap, Cell, Estimate, Key

Format = Callable[[Estimate], str]


def write_report(config: StudyConfig, tried: Tried, runs: Mapping[Run, Path], folder: Path) -> None:
    """Write the table, the report and the plots of the grid's runs into the study's folder."""
    cells = table.read_cells(runs)
    rows = table.tidy_rows(cells)
    with (folder / "results.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    Dataset.from_list(rows).to_parquet(folder / "results.parquet")
    bootstrap = Bootstrap(next(iter(cells.values())).labels)
    plots = plot_study(config, cells, bootstrap, folder)
    (folder / "report.md").write_text(report(config, tried, cells, bootstrap, plots), encoding="utf-8")


def report(
    config: StudyConfig,
    tried: Tried,
    cells: Mapping[Key, Cell],
    bootstrap: Bootstrap,
    plots: Mapping[Path, str],
) -> str:
    """The report as Markdown."""
    first = next(iter(cells.values()))
    chosen = choose_learning_rates(config, tried)
    done, planned = sum(len(cell.seeds) for cell in cells.values()), len(config.grid_runs(chosen))
    run = {name for _, noise, method in cells for name in (noise, method)}
    lines = [
        f"# Study: {config.model_name_or_path} on {config.dataset_name}",
        "",
        f"Measured on {len(first.labels):,} test pairs without noise: only training pairs are noisy. In brackets: "
        "95 % intervals, by a bootstrap over seeds and test pairs; with one seed, they say nothing of others. "
        f"Differences and multiples compare with {config.baseline} on the same pairs and seeds; * marks those whose "
        "interval leaves out equality.",
        "",
        *([f"{done} of {planned} runs are done.", ""] if done < planned else []),
        *(f"- {name}: {_options({'method': name} | given)}" for name, given in config.methods.items() if name in run),
        "",
        *(f"- noise {name}: {_options(spec)}" for name, spec in config.noise.items() if name in run),
        "",
    ]
    for epochs in sorted({key[0] for key in cells}):
        part = {key: cell for key, cell in cells.items() if key[0] == epochs}
        lines += [f"## {epochs:g} epoch{'' if epochs == 1 else 's'}", ""]
        for title, cell_text in _measures(config, part, bootstrap).items():
            lines += [f"### {title}", "", *_markdown(config, part, cell_text), ""]
        lines += _noise_rates(part)
    lines += ["## Runs", "", *_run_table(chosen, cells), ""]
    lines += _learning_rates(config, tried, chosen)
    lines += [f"![{caption}]({plot.name})" for plot, caption in plots.items()]
    lines += ["", *_versions(cells)]
    return "\n".join(lines) + "\n"


def _versions(cells: Mapping[Key, Cell]) -> list[str]:
    """A line for every set of versions that runs were made with."""
    made = [result["versions"] for cell in cells.values() for result in cell.results]
    texts = (", ".join(f"{name} {number}" for name, number in versions.items()) for versions in made)
    return [f"Versions: {text}." for text in dict.fromkeys(texts)]


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items())


def _percent(found: Estimate) -> str:
    return f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _points(found: Estimate) -> str:
    star = " *" if found.beyond_zero else ""
    return f"{100 * found.value:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]{star}"


def _factor(found: Estimate) -> str:
    star = " *" if found.low > 1 or found.high < 1 else ""
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]{star}"


def _measures(
    config: StudyConfig, cells: Mapping[Key, Cell], bootstrap: Bootstrap
) -> dict[str, Callable[[Key, Cell], str | None]]:
    """Title -> what a table's cell says; None for an empty cell."""

    def against(compare: Callable[..., Estimate | None], form: Format, by_worst: bool = False) -> Callable:
        def text(key: Key, cell: Cell) -> str | None:
            baseline = cells.get((key[0], key[1], config.baseline))
            if baseline is None or baseline is cell:
                return None
            group = table.worst_group(baseline, bootstrap)[0] if by_worst else None
            found = compare(cell, baseline, bootstrap, group)
            return None if found is None else form(found) + (f" ({group})" if by_worst else "")

        return text

    def worst(key: Key, cell: Cell) -> str:
        group, found = table.worst_group(cell, bootstrap)
        return f"{_percent(found)} ({group})"

    def steps(key: Key, cell: Cell) -> str | None:
        baseline = cells.get((key[0], key[1], config.baseline))
        if baseline is None:
            return None
        found = table.steps_to(cell, max(table.mean_curve(baseline)[1]))
        return "never" if found is None else f"{found:,}"

    measures = {
        "Reward accuracy, % (of how many seeds)": lambda key, cell: (
            f"{_percent(table.accuracy(cell, bootstrap))} ({len(cell.seeds)})"
        ),
        f"Reward accuracy less {config.baseline}'s, points": against(table.difference, _points),
        f"Reward accuracy as a multiple of {config.baseline}'s": against(table.ratio, _factor),
        "Reward gap: the mean margin": lambda key, cell: (
            f"{(found := table.margin(cell, bootstrap)).value:.2f} [{found.low:.2f}, {found.high:.2f}]"
        ),
        f"Reward gap as a multiple of {config.baseline}'s": against(table.margin_ratio, _factor),
        f"Steps to {config.baseline}'s best accuracy on the validation split": steps,
    }
    if len(next(iter(cells.values())).groups) > 1:
        measures["Reward accuracy in the worst group, %"] = worst
        title = f"Reward accuracy in {config.baseline}'s worst group, as a multiple of {config.baseline}'s"
        measures[title] = against(table.ratio, _factor, by_worst=True)
    return measures


def _markdown(config: StudyConfig, cells: Mapping[Key, Cell], text: Callable[[Key, Cell], str | None]) -> list[str]:
    epochs = next(iter(cells))[0]
    noises = [noise for noise in config.noise if any(key[1] == noise for key in cells)]
    rows = []
    for method in config.methods:
        entries = [text(key, cells[key]) if (key := (epochs, noise, method)) in cells else None for noise in noises]
        if any(entries):
            rows.append([method, *(entry or "-" for entry in entries)])
    if not rows:
        return ["(nothing to compare)"]
    return _lines([["method", *noises], *rows])


def _noise_rates(cells: Mapping[Key, Cell]) -> list[str]:
    """Estimated and true noise rates, in percent, of the methods that estimate them."""
    rows = []
    names = [table.ALL, *next(iter(cells.values())).groups]
    for (_, noise, method), cell in cells.items():
        if all(result["noise_rates"] for result in cell.results):
            rows.append([f"{method}, {noise}", *(_found_and_true(cell.results, name) for name in names)])
    if not rows:
        return []
    return ["### Noise rate estimated (true), %", "", *_lines([["", *names], *rows]), ""]


def _found_and_true(results: list[dict[str, Any]], name: str) -> str:
    if any(name not in result["noise_rates"] or name not in result["noise_shares"] for result in results):
        return "-"
    found, true = (100 * np.mean([result[key][name] for result in results]) for key in ("noise_rates", "noise_shares"))
    return f"{found:.0f} ({true:.0f})"


def _learning_rates(config: StudyConfig, tried: Tried, chosen: Mapping[Trained, float]) -> list[str]:
    """What the runs that choose the learning rates found."""
    if not tried:
        return []
    rates = sorted(set(config.learning_rates))
    rows = [["method", "epochs", *(f"{rate:g}" for rate in rates)]]
    for (method, epochs), found in tried.items():
        best = chosen[method, epochs]
        texts = (f"{100 * found[rate]:.1f}" + (" (chosen)" if rate == best else "") for rate in rates)
        rows.append([method, f"{epochs:g}", *texts])
    plan = config.tuning
    length = f" of {plan['epochs']:g} epochs" if "epochs" in plan else ""
    noise, seeds = ", ".join(plan["noise"]), ", ".join(map(str, plan["seeds"]))
    note = (
        f"Accuracy on the validation split, %, by learning rate, in the mean of runs{length} with noise {noise} "
        f"(where the grid has it) and seed {seeds}."
    )
    return ["## Learning rates", "", note, "", *_lines(rows), ""]


def _run_table(chosen: Mapping[Trained, float], cells: Mapping[Key, Cell]) -> list[str]:
    rows: list[list[Any]] = [
        ["method", "noise", "epochs", "seeds", "learning rate", "steps", "seconds a run", "peak MB"]
    ]
    for (epochs, noise, method), cell in cells.items():
        seconds = np.mean([result["seconds"] for result in cell.results])
        memory = max(result["peak_memory_bytes"] for result in cell.results) / 2**20
        seeds = ", ".join(map(str, cell.seeds))
        steps = cell.results[0]["steps"]
        rows.append(
            [
                method,
                noise,
                f"{epochs:g}",
                seeds,
                f"{chosen[method, epochs]:g}",
                steps,
                f"{seconds:.0f}",
                f"{memory:.0f}",
            ]
        )
    return _lines(rows)


def _lines(rows: list[list[Any]]) -> list[str]:
    cells = [[one_line(str(cell)).replace("|", "\\|") for cell in row] for row in rows]
    rule = ["---"] + ["---:"] * (len(rows[0]) - 1)
    return ["| " + " | ".join(row) + " |" for row in [cells[0], rule, *cells[1:]]]
