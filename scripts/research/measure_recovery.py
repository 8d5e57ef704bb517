"""Measure how much of the loss from wrong labels an audit recovers: train DPO on right, noisy and cleaned labels.

    trl-capo study --config configs/study/audit.yaml    # or another study of flips with `pair_log: true`
    python scripts/research/measure_recovery.py demo/study/audit/runs/capo-*-seed* --flip_above 0.5

Run it where the study was run. For every run it audits the log, cleans the labels by the rules, and trains DPO with
the study's model and options, unless the study's folder `recovery` holds that run already. It prints one line per
noise: reward accuracy on the test pairs in percent, the gain from cleaning in points, and the share of the loss that
is recovered, if there is a loss beyond chance. 95 % intervals over seeds and test pairs are in brackets.
"""

import contextlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from compare_audit_scores import AuditedRun, read_run
from datasets import Dataset, DatasetDict, disable_progress_bars
from transformers import HfArgumentParser

from trl_capo.audit.mislabels import estimate_label_errors
from trl_capo.common.fingerprint import fingerprint
from trl_capo.common.intervals import TwoLevelBootstrap, percentile_estimate
from trl_capo.core.pairs import WEIGHT
from trl_capo.data.clean import CleanArguments, clean
from trl_capo.data.noise import IS_NOISY
from trl_capo.study.plan import RESULT
from trl_capo.study.results import MARGINS
from trl_capo.study.run import run

Accuracy = tuple[np.ndarray, np.ndarray]  # (pairs,) whether each test pair is ranked as labelled, (pairs,) groups


@dataclass
class RecoveryArguments:
    """Options of the script, besides the folders of the runs and the rules of `trl-capo clean`."""

    learning_rate: float = 3e-4
    epochs: float = 1


def train_dpo(labels: Dataset, found: AuditedRun, folder: Path, args: RecoveryArguments) -> Accuracy:
    """Train on these labels, unless the folder already holds such a run."""
    shared = found.settings["shared"]
    settings = {"learning_rate": args.learning_rate, "epochs": args.epochs, "seed": found.settings["seed"]}
    settings |= {"options": {"method": "dpo"}, "inject": {"kind": "flip", "rate": 0.0}}
    settings["shared"] = shared | {"training": {**shared["training"], "pair_log": False}, "train_pairs": None}
    settings["shared"]["dataset_name"] = str(folder / "data")
    weights = labels[WEIGHT][:] if WEIGHT in labels.column_names else None
    made_from = {"settings": settings, "labels": fingerprint(labels), "weights": weights}
    result = folder / RESULT
    if not result.is_file() or json.loads(result.read_text(encoding="utf-8"))["made_from"] != made_from:
        folder.mkdir(parents=True, exist_ok=True)
        parts = found.parts | {"train": labels}
        DatasetDict({shared[f"{name}_split"]: part for name, part in parts.items()}).save_to_disk(folder / "data")
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for the table
            content = run(settings, folder) | {"made_from": made_from}
        result.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    with np.load(folder / MARGINS) as arrays:
        return arrays["margins"] > 0, arrays["labels"]


def train_all(folder: Path, found: AuditedRun, rules: CleanArguments, args: RecoveryArguments) -> list[Accuracy]:
    """Train DPO on right, noisy and cleaned labels of a run; the first two are the same for every audited method."""
    given = " ".join(f"{name}={value}" for name, value in vars(rules).items() if value)
    seed, recovery = f"seed{found.settings['seed']}", folder.parent.parent / "recovery"
    recovery.mkdir(exist_ok=True)
    if not (recovery / "memory").exists():  # cached sequences of the same model
        (folder.parent.parent / "memory").mkdir(exist_ok=True)
        (recovery / "memory").symlink_to(Path("..", "memory"))
    names = [f"right-{seed}", f"noisy-{found.settings['noise']}-{seed}", f"{given}-{folder.name}"]
    names = [f"{name.replace('/', '_')}-{args.epochs:g}ep-lr{args.learning_rate:.2e}" for name in names]
    suspects = estimate_label_errors(found.dynamics, found.noisy).pairs[["score"]]
    cleaned, _ = clean(found.noisy, suspects=suspects, rules=rules)
    labels = [found.parts["train"], *(part.remove_columns(IS_NOISY) for part in (found.noisy, cleaned))]
    return [train_dpo(part, found, recovery / "runs" / name, args) for name, part in zip(names, labels, strict=True)]


def table_line(noise: str, runs: list[list[Accuracy]]) -> str:
    """Return a line of the table, given the three runs of every seed."""
    bootstrap, seeds = TwoLevelBootstrap(runs[0][0][1]), list(range(len(runs)))
    ranked = [np.stack([trainings[place][0] for trainings in runs]).astype(float) for place in range(3)]
    draws = [bootstrap.draws(values, seeds) for values in ranked]
    right, noisy, cleaned = (values.mean() for values in ranked)
    gain, loss = draws[2] - draws[1], draws[0] - draws[1]
    cells = [_cell(100 * value.mean(), 100 * drawn, ".1f") for value, drawn in zip(ranked, draws, strict=True)]
    cells += [_cell(100 * (cleaned - noisy), 100 * gain, "+.1f"), "-"]
    if percentile_estimate(right - noisy, loss).low > 0:
        shares = np.divide(gain, loss, out=np.where(gain > 0, np.inf, -np.inf), where=loss > 0)
        cells[-1] = _cell((cleaned - noisy) / (right - noisy), shares, ".2f")
    return f"| {noise} | {len(runs)} | {' | '.join(cells)} |"


def _cell(value: float, draws: np.ndarray, digits: str) -> str:
    found = percentile_estimate(value, draws)
    return f"{found.value:{digits}} [{found.low:{digits}}, {found.high:{digits}}]"


def main() -> None:
    parser = HfArgumentParser((RecoveryArguments, CleanArguments), description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of a study's runs with pair logs")
    args, rules, others = parser.parse_args_into_dataclasses()
    if rules.decisions or rules.suspects:
        parser.error("the suspects are those of the runs: give rules, but neither decisions nor suspects")
    disable_progress_bars()
    rules = rules if any(vars(rules).values()) else CleanArguments(flip_above=0.5)
    runs = {folder: read_run(folder) for folder in others.runs}
    settings = [found.settings for found in runs.values()]
    kinds = {json.dumps([own[name] for name in ("shared", "options", "epochs", "learning_rate")]) for own in settings}
    cells = {(own["noise"], own["seed"]) for own in settings}
    if len(kinds) > 1 or len(cells) < len(runs) or any(own["inject"]["kind"] != "flip" for own in settings):
        parser.error("give runs with flipped labels that differ only in noise or seed, and each of them once")
    by_noise: dict[str, list[list[Accuracy]]] = {}
    for folder, found in runs.items():
        by_noise.setdefault(found.settings["noise"], []).append(train_all(folder, found, rules, args))
    heads = ["noise", "seeds", "right labels", "noisy", "cleaned", "cleaned - noisy", "share of the loss"]
    print(f"| {' | '.join(heads)} |\n|---|{'---:|' * (len(heads) - 1)}")
    for noise, trainings in by_noise.items():
        print(table_line(noise, trainings))


if __name__ == "__main__":
    main()
