"""`trl-capo audit`: rank the pairs of a run by how likely their labels are wrong."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, disable_progress_bars

from trl_capo.audit.mislabels import Dynamics, LabelErrors, estimate_label_errors, read_dynamics
from trl_capo.audit.report import plot_rates, rate_table, report
from trl_capo.audit.suspects import list_suspects, write_page, write_suspects
from trl_capo.callbacks.pair_log import INFO, Log, read_log
from trl_capo.common.command import need, parse, processes, run, versions
from trl_capo.common.fingerprint import fingerprint
from trl_capo.common.text import Rows, count, escape, text_table
from trl_capo.core.pairs import DEFAULT_COLUMN, find_groups, parse_column
from trl_capo.data.load import load_pairs, select_split
from trl_capo.data.noise import IS_NOISY, inject_noise

PROG, FOLDER = "trl-capo audit", "pair_log"
# Options that name the data of the log, and the same options of `trl-capo clean`.
SOURCE = {"dataset_name": "dataset_name", "dataset_config": "dataset_config", "dataset_train_split": "dataset_split"}


@dataclass
class AuditArguments:
    """Options of `trl-capo audit`, and of `audit` in Python."""

    run: str = field(metadata={"help": "output folder of a run with a pair log, or the folder of a log"})
    dataset_name: str | None = field(default=None, metadata={"help": "the training pairs; default: as logged"})
    dataset_config: str | None = field(default=None, metadata={"help": "configuration of a hub data set"})
    dataset_train_split: str | None = field(default=None, metadata={"help": "split that was trained on"})
    group_column: str | None = field(default="auto", metadata={"help": "auto: as in training; none: no groups"})
    top: int = field(default=200, metadata={"help": "number of suspects in the CSV, JSONL and HTML files"})
    output_dir: str | None = field(default=None, metadata={"help": "default: the folder `audit` beside the log"})


class Audit(NamedTuple):
    """Result of an audit: label errors, the table of noise rates, the folder of the files, and warnings."""

    errors: LabelErrors
    rates: Rows
    folder: Path
    warnings: list[str]


def audit(args: AuditArguments, dataset: Dataset | None = None) -> Audit:
    """Rank the pairs of a run and write suspects.*, report.md and noise_rates.png.

    `dataset` holds the training pairs; by default it is the data set that `args` or the log names. Raises
    ValueError or OSError if the log or its data are missing, or the data are not those of the log.
    """
    if args.top < 1:
        raise ValueError(f"top={args.top}: it is the number of suspects to write. Give at least 1.")
    place = Path(args.run).expanduser().absolute()
    log = read_log(place / FOLDER if (place / FOLDER / INFO).is_file() else place)
    source = (log.info.source or {}) | {name: vars(args)[name] for name in SOURCE if vars(args)[name]}
    data = _find_data(log, source, dataset)
    dynamics = read_dynamics(log)
    group_name, groups = _find_groups(parse_column(args.group_column), source, data, dynamics)
    errors = estimate_label_errors(dynamics, groups=groups)
    truth = [None] if data is None or IS_NOISY not in data.column_names else data[IS_NOISY][:]
    if all(isinstance(value, bool) for value in truth):
        errors.pairs["wrong"] = np.array(truth)[errors.pairs.index]

    is_usual = log.folder.name == FOLDER
    run_name = log.folder.parent.name if is_usual else log.folder.name
    folder = Path(args.output_dir or log.folder.with_name("audit" if is_usual else f"{run_name}-audit")).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    title, rates = f"Audit of {run_name}", rate_table(errors, group_name)
    worst = write_suspects(list_suspects(errors, data, log.info.fingerprint), args.top, folder)
    sizes = errors.pairs["group"].value_counts().drop("", errors="ignore").to_dict()
    words = [f"--{option}={source[name]}" for name, option in SOURCE.items() if source.get(name)]
    words = ["trl-capo", "clean", *(words or ["--dataset_name=PAIRS"]), "--output_dir=cleaned"]
    command = shlex.join([*words, "--decisions=decisions.jsonl"])
    shown = {"title": title, "fingerprint": log.info.fingerprint, "groupName": group_name, "counts": sizes}
    write_page(folder / "suspects.html", worst, **shown, command=command)
    plot_rates(errors, folder / "noise_rates.png")
    unseen = log.info.pairs - len(dynamics.pairs)
    cautions = {
        f"{count(unseen, 'pair')} of {log.info.pairs:,} not ranked: too long, not reached, or not logged.": unseen,
        "The log names no data set, so the files have no texts. Give dataset_name.": data is None,
    }
    warnings = [text for text, applies in cautions.items() if applies]
    packages = ", ".join(map(" ".join, versions().items()))
    note = f"Log: {args.run}. Data: {source.get('dataset_name')}. Versions: {packages}."
    (folder / "report.md").write_text(report(errors, rates, [*warnings, note], command, title), encoding="utf-8")
    return Audit(errors, rates, folder, warnings)


def _find_data(log: Log, source: dict[str, Any], data: Dataset | None) -> Dataset | None:
    """Return the data set of the log, with the noise that the run injected; None if nothing names it."""
    if data is None:
        if not source.get("dataset_name"):
            return None
        splits = load_pairs(source["dataset_name"], config=source.get("dataset_config"))
        data = select_split(splits, source.get("dataset_train_split") or "train", "dataset_train_split")
    if fingerprint(data) == log.info.fingerprint:
        return data
    if source.get("inject_noise") and IS_NOISY not in data.column_names:
        options = {name: source[f"inject_{name}"] for name in ("rate", "seed", "score_column")}
        noisy = inject_noise(data, source["inject_noise"], group_column=source["group_column"], **options)
        if fingerprint(noisy) == log.info.fingerprint:
            return noisy
    raise ValueError(
        f"dataset_name={source.get('dataset_name')!r}: these {len(data):,} pairs are not the {log.info.pairs:,} of "
        "the log, or not in its order (the fingerprints differ). Give the data set and the split of the run."
    )


def _find_groups(column: str | None, source: dict[str, Any], data: Dataset | None, dynamics: Dynamics) -> tuple:
    """Return what a group is called, and the groups of the logged pairs; None stands for those of the run."""
    if column is None:
        return "group", [""] * len(dynamics.pairs)
    if column == "auto":
        logged = source.get("group_column") or "group"
        named = data is not None and DEFAULT_COLUMN in data.column_names
        return (DEFAULT_COLUMN if named else "group") if logged == "auto" else logged, None
    if data is None:
        raise ValueError(f"group_column={column!r}: the log names no data set with columns. Give dataset_name.")
    return column, np.array(find_groups(data, column, "the data set")[1], dtype=object)[dynamics.pairs.index]


def main(argv: Sequence[str]) -> int:
    return run(PROG, _run, argv)


def _run(argv: Sequence[str]) -> None:
    words = ["--run", *argv] if argv and not argv[0].startswith("-") else argv
    (args,) = parse(words, (AuditArguments,), PROG, usage=f"{PROG} RUN_OR_LOG [options]")
    need("matplotlib", "scipy")
    processes()
    disable_progress_bars()
    found = audit(args)
    print(text_table(found.rates))
    print(escape("\n".join([*found.warnings, f"Report: {found.folder / 'report.md'}"])))
