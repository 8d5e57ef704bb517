"""The audit of a training: which of its pairs are probably labelled wrong. docs/audit.md says how it is known."""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from trl_capo.audit.dynamics import read_dynamics
from trl_capo.audit.judgement import EVIDENCE, judge
from trl_capo.audit.page import write_page
from trl_capo.audit.plots import plot_audit
from trl_capo.audit.remarks import remarks_on
from trl_capo.audit.report import rate_table, report
from trl_capo.audit.source import (
    FOLDER,
    check_data,
    cleaning_commands,
    find_data,
    find_log,
    find_names,
    find_truth,
)
from trl_capo.audit.suspects import Ranking, write_suspects
from trl_capo.pair_log import Log
from trl_capo.paths import output_folder

FILES = ("suspects.parquet", "suspects.csv", "suspects.jsonl", "suspects.html", "report.md", "data_map.png")
FILES += ("noise_rates.png",)


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Parameters:
        ranking: the pairs, worst first; `ranking.rows()` gives them as in suspects.jsonl.
        rates: what the report's table of noise rates says: headings, a row for every group, one for all pairs.
        wrong: (N,) which of the ranked pairs have a wrong label, where the data say so (`is_noisy`, true or false).
        folder: where the files are.
        remarks: what the log lacks, and where its training may have been misled.
    """

    ranking: Ranking
    rates: list[list[str]]
    wrong: np.ndarray | None
    folder: Path
    remarks: list[str]


def audit(
    run: str | Path,
    dataset: Dataset | str | Path | None = None,
    *,
    dataset_config: str | None = None,
    dataset_train_split: str | None = None,
    group_column: str | None = "auto",
    evidence: str = "mean_margin",
    top: int = 200,
    output_dir: str | Path | None = None,
) -> Audit:
    """Rank the pairs of a training by how likely their labels are wrong, and write FILES.

    Args:
        run: the output folder of a training with a pair log, or the folder of a log.
        dataset: the pairs as the training had them, or their name; by default the data set that the log names.
        dataset_config, dataset_train_split: of a data set by name.
        group_column: the column of the groups; "auto" for those of the training, None for none.
        evidence: "mean_margin" judges by the margins of all passes, "first_margin" by the first alone, for trainings
            of many epochs that memorise wrong labels.
        top: how many suspects the CSV, JSONL and HTML files have.
        output_dir: where the files go; by default `audit` beside the log `pair_log`, `X-audit` beside one called X.

    Raises:
        ValueError, OSError: something is missing or does not fit; the message is for the user.
    """
    if not isinstance(top, Integral) or top <= 0:
        raise ValueError(f"top={top!r}: so many suspects are written. Give a whole number above 0.")
    dataset = str(dataset) if isinstance(dataset, Path) else dataset
    if not isinstance(dataset, Dataset | str | None):
        raise ValueError(f"dataset: a {type(dataset).__name__}. Give one split of pairs, or the name of a data set.")
    if evidence not in EVIDENCE:
        raise ValueError(f"score={evidence!r}: there is no such score. Choose one of {', '.join(EVIDENCE)}.")
    log = find_log(run)
    place = log.folder.absolute()
    title = place.parent.name if place.name == FOLDER else place.name
    beside = place.with_name("audit" if place.name == FOLDER else f"{place.name}-audit")
    folder = _check_output(output_folder(beside if output_dir is None else output_dir))
    if isinstance(dataset, Dataset):
        check_data(log, data := dataset)
        put_noise = bool((log.info.source or {}).get("inject_noise"))
    else:
        data, put_noise = find_data(log, dataset, dataset_config, dataset_train_split)
    pairs = read_dynamics(log)
    group_name, names = find_names(log, data, group_column, pairs.pair)
    ranking = Ranking(pairs, judge(pairs, evidence, names), data)
    wrong = find_truth(data, pairs.pair)
    used = {"log": str(log.folder), "data": _name(log, dataset), "judged by": evidence}
    given = {"dataset_config": dataset_config, "dataset_split": dataset_train_split}
    given |= {} if isinstance(dataset, Dataset) else {"dataset_name": dataset}
    commands = cleaning_commands(log, given, put_noise, folder / "suspects.parquet")
    remarks = remarks_on(log, ranking)
    told = {"group_name": group_name, "top": top, "used": used, "title": title, "commands": commands}
    _write(ranking, wrong, log, told, remarks, folder)
    return Audit(ranking, rate_table(ranking, wrong, group_name), wrong, folder, remarks)


def _check_output(folder: Path) -> Path:
    """Refuse a folder that holds anything but an earlier audit."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir={str(folder)!r} is a file. Give a folder.")
    others = [path.name for path in folder.glob("*") if path.name not in FILES or path.is_dir()]
    if others:
        raise ValueError(
            f"output_dir={str(folder)!r}: the folder holds more than an earlier audit ({sorted(others)[0]}). "
            "Give another output_dir."
        )
    return folder


def _name(log: Log, dataset: Dataset | str | None) -> str:
    if isinstance(dataset, Dataset):
        return "a data set in memory"
    name = dataset or (log.info.source or {}).get("dataset_name")
    return name or "unknown: the log does not name them, so there are no texts. Give --dataset_name"


def _write(
    ranking: Ranking,
    wrong: np.ndarray | None,
    log: Log,
    told: Mapping[str, Any],
    remarks: list[str],
    folder: Path,
) -> None:
    """Make the files in a folder of their own first, so that what fails leaves an earlier audit as it was."""
    judgement = ranking.judgement
    true = None
    if wrong is not None:
        true = np.array([wrong[judgement.place == place].mean() for place in range(len(judgement.groups))])
    sizes = np.bincount(judgement.place, minlength=len(judgement.groups)).tolist()
    counts = {name: size for name, size in zip(judgement.groups.tolist(), sizes, strict=True) if name}
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".audit-", dir=folder.parent) as unfinished:
        made = Path(unfinished)
        worst = write_suspects(ranking, told["top"], made)
        write_page(
            made / "suspects.html",
            worst,
            title=f"Audit of {told['title']}",
            fingerprint=log.info.fingerprint,
            group_name=told["group_name"],
            counts=counts or None,
        )
        plots, of_plots = plot_audit(ranking, true, made)
        text = report(ranking, wrong, **told, plots=plots, remarks=[*remarks, *of_plots])
        (made / "report.md").write_text(text, encoding="utf-8")
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
            if (made / name).exists():
                shutil.move(made / name, folder / name)
