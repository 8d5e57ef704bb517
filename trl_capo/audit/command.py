"""`trl-capo audit`: rank the pairs of a run, or of annotated data, by how likely their labels are wrong."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from datasets import Dataset, disable_progress_bars

from trl_capo.audit.mislabels import Dynamics, LabelErrors, estimate_label_errors, read_dynamics
from trl_capo.audit.report import plot_rates, rate_table, report
from trl_capo.audit.suspects import list_suspects, write_page, write_suspects
from trl_capo.callbacks.pair_log import INFO, Log, LogInfo, read_log
from trl_capo.common.command import need, parse, processes, run, versions
from trl_capo.common.fingerprint import fingerprint
from trl_capo.common.text import Rows, count, escape, text_table
from trl_capo.core.pairs import DEFAULT_COLUMN, PROBE, find_groups, parse_column
from trl_capo.data.load import load_pairs, select_split
from trl_capo.data.noise import IS_NOISY, inject_noise

PROG, FOLDER = "trl-capo audit", "pair_log"
# Options that name the data of the log, and the same options of `trl-capo clean`.
SOURCE = {"dataset_name": "dataset_name", "dataset_config": "dataset_config", "dataset_train_split": "dataset_split"}


@dataclass
class AuditArguments:
    """Options of `trl-capo audit`, and of `audit` in Python."""

    run: str | None = field(default=None, metadata={"help": "output folder of a run with a pair log, or of a log"})
    dataset_name: str | None = field(default=None, metadata={"help": "the pairs; default: those that the log names"})
    dataset_config: str | None = field(default=None, metadata={"help": "configuration of a hub data set"})
    dataset_train_split: str | None = field(default=None, metadata={"help": "default: the run's, or train"})
    group_column: str | None = field(default="auto", metadata={"help": "auto: as in training; none: no groups"})
    top: int = field(default=200, metadata={"help": "number of suspects in the CSV, JSONL and HTML files"})
    output_dir: str | None = field(default=None, metadata={"help": "default: a folder beside the log or data"})


class Audit(NamedTuple):
    """Result of an audit: label errors, the table of noise rates, the folder of the files, and warnings."""

    errors: LabelErrors
    rates: Rows
    folder: Path
    warnings: list[str]


def audit(args: AuditArguments, dataset: Dataset | None = None) -> Audit:
    """Rank the pairs of a run, or of annotated data, and write suspects.*, report.md and noise_rates.png.

    `dataset`, by default what `args` or the log names, holds the pairs. Raises ValueError or OSError without log and
    probe, and for data that are missing or not those of the log.
    """
    if args.top < 1:
        raise ValueError(f"top={args.top}: it is the number of suspects to write. Give at least 1.")
    place = Path(args.run or args.dataset_name or "data").expanduser().absolute()
    log = read_log(place / FOLDER if (place / FOLDER / INFO).is_file() else place) if args.run else None
    source = (log and log.info.source or {}) | {name: vars(args)[name] for name in SOURCE if vars(args)[name]}
    data = _find_data(log, source, dataset)
    columns = [] if data is None else data.column_names
    if not log and f"{PROBE}_chosen" not in columns:
        raise ValueError(
            f"dataset_name={args.dataset_name!r}: no log and no column {PROBE}_chosen. Run `trl-capo annotate`."
        )
    info = log.info if log else LogInfo(len(data), fingerprint(data))
    dynamics = read_dynamics(log) if log else Dynamics(pd.DataFrame({"group": ""}, index=range(info.pairs)), {})
    group_name, dynamics = _find_groups(parse_column(args.group_column), log, source, data, dynamics)
    errors = estimate_label_errors(dynamics, data)
    evidence = [f"the log {args.run}"] if log else []
    evidence += [f"the probe (column {PROBE}_chosen)"] if "probe" in errors.pairs else []
    truth = data[IS_NOISY][:] if IS_NOISY in columns else [None]
    if all(isinstance(value, bool) for value in truth):
        errors.pairs["wrong"] = np.array(truth)[errors.pairs.index]

    is_usual = log is not None and log.folder.name == FOLDER
    place = log.folder.parent if is_usual else place
    name = place.stem if place.is_file() else place.name
    beside = place / "audit" if is_usual else place.with_name(f"{name}-audit")
    folder = Path(args.output_dir or (beside if place.exists() else "audit")).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    worst = write_suspects(list_suspects(errors, data, info.fingerprint), args.top, folder)
    sizes = errors.pairs["group"].value_counts().drop("", errors="ignore").to_dict()
    words = [f"--{option}={source[name]}" for name, option in SOURCE.items() if source.get(name)]
    words = ["trl-capo", "clean", *(words or ["--dataset_name=PAIRS"]), "--output_dir=cleaned"]
    command = shlex.join([*words, "--decisions=decisions.jsonl"])
    title, rates = f"Audit of {name}", rate_table(errors, group_name)
    shown = {"title": title, "fingerprint": info.fingerprint, "groupName": group_name, "counts": sizes}
    write_page(folder / "suspects.html", worst, **shown, command=command)
    plot_rates(errors, folder / "noise_rates.png")
    unseen = info.pairs - len(errors.pairs)
    fault = f"{count(unseen, 'pair')} of {info.pairs:,} not ranked: too long, not reached, or not logged."
    warnings = [fault] if unseen else []
    warnings += ["The log names no data set, so the files have no texts. Give dataset_name."] if data is None else []
    if not log and errors.pairs.query("score > 1e-6").groupby("group")["log_odds"].nunique().max() == 1:  # untrusted
        warnings.append("The probe knows nothing about these labels, so neither order nor rates mean anything.")
    packages = ", ".join(map(" ".join, versions().items()))
    note = f"Evidence: {' and '.join(evidence)}. Data: {source.get('dataset_name')}. Versions: {packages}."
    (folder / "report.md").write_text(report(errors, rates, [*warnings, note], command, title), encoding="utf-8")
    return Audit(errors, rates, folder, warnings)


def _find_data(log: Log | None, source: dict[str, Any], data: Dataset | None) -> Dataset | None:
    """Return the data set that is given or named, with the noise that the run injected; None if there is none."""
    if data is None and source.get("dataset_name"):
        splits = load_pairs(source["dataset_name"], config=source.get("dataset_config"))
        data = select_split(splits, source.get("dataset_train_split") or "train", "dataset_train_split")
    if data is None or log is None or fingerprint(data) == log.info.fingerprint:
        return data
    if source.get("inject_noise") and IS_NOISY not in data.column_names:
        options = {name: source[f"inject_{name}"] for name in ("rate", "seed", "score_column")}
        noisy = inject_noise(data, source["inject_noise"], group_column=source["group_column"], **options)
        if fingerprint(noisy) == log.info.fingerprint:
            return noisy
    fault = f"these {len(data):,} pairs are not the {log.info.pairs:,} of the log, or not in its order"
    raise ValueError(f"dataset_name={source.get('dataset_name')!r}: {fault}. Give the data set and split of the run.")


def _find_groups(column: str | None, log: Log | None, source: dict, data: Dataset | None, dynamics: Dynamics) -> tuple:
    """Return what a group is called, and the dynamics by groups of `column`; with a log, "auto" keeps the log's."""
    if column == "auto" and log:
        logged = source.get("group_column") or "group"
        named = data is not None and DEFAULT_COLUMN in data.column_names
        return (DEFAULT_COLUMN if named else "group") if logged == "auto" else logged, dynamics
    if column and data is None:
        raise ValueError(f"group_column={column!r}: the log names no data set with columns. Give dataset_name.")
    column, labels = find_groups(data, column, "the data set") if column else (None, None)
    pairs = dynamics.pairs.assign(group=np.array(labels, dtype=object)[dynamics.pairs.index] if labels else "")
    same = pairs["group"].equals(dynamics.pairs["group"])  # otherwise, CAPO's rates are of other pairs
    return column or "group", Dynamics(pairs, dynamics.training_rates if same else {})


def main(argv: Sequence[str]) -> int:
    return run(PROG, _run, argv)


def _run(argv: Sequence[str]) -> None:
    words = ["--run", *argv] if argv and not argv[0].startswith("-") else argv
    (args,) = parse(words, (AuditArguments,), PROG, usage=f"{PROG} [RUN_OR_LOG] [options]")
    need("matplotlib", "scipy")
    processes()
    disable_progress_bars()
    found = audit(args)
    lines = [*found.warnings, f"Report: {found.folder / 'report.md'}"]
    print(text_table(found.rates), *map(escape, lines), sep="\n")
