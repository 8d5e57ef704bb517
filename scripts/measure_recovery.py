"""How much of what wrong labels cost DPO an audit gives back: training on right, on noisy and on cleaned labels.

    trl-capo study --config configs/study/audit.yaml    # or another study of flips with `pair_log: true`
    python scripts/measure_recovery.py demo/study/audit/runs/capo-*-seed*

Run it where the study was run. It audits the log of every run, flips all labels with a score above 1/2, which are
likelier wrong than right, and trains DPO for an epoch, with the study's model, options and seeds. What was trained
before, in the folder `recovery` of the study, on the same labels and with the same settings, is not trained again.
Prints a line for every noise: reward accuracy on the test pairs, whose labels are right, in percent; what cleaning
adds, in points; and the share of the loss that came back, where there is a loss beyond chance. In brackets: 95 %
intervals over seeds and test pairs.
"""

import argparse
import contextlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from compare_audit_scores import Run, read_run
from datasets import Dataset, DatasetDict, disable_progress_bars

from trl_capo.audit.judgement import judge
from trl_capo.cleaning import Rules, clean
from trl_capo.noise_checks import IS_NOISY
from trl_capo.pair_log import fingerprint
from trl_capo.study.data import read_parts
from trl_capo.study.files import read_json, write_json
from trl_capo.study.inputs import describe_inputs, refuse_other_inputs
from trl_capo.study.run import MARGINS, RESULT, run
from trl_capo.study.table import Bootstrap, Estimate, estimate
from trl_capo.verdicts import Suspect

ARMS = ("right", "noisy", "cleaned")


@dataclass(frozen=True)
class Trained:
    """The test pairs after a training: (pairs,) whether each is ranked as its label says, and their groups."""

    right: np.ndarray
    groups: np.ndarray


def cleaned_labels(found: Run) -> Dataset:
    """The run's pairs, and all labels flipped that its log makes likelier wrong than right."""
    scores = judge(found.pairs).scores
    suspects = {int(row): Suspect(float(score), []) for row, score in zip(found.pairs.pair, scores, strict=True)}
    return clean(found.noisy, suspects=suspects, rules=Rules(flip_above=0.5)).dataset


def train_dpo(labels: Dataset, found: Run, folder: Path, learning_rate: float) -> Trained:
    """Train on these labels, if that was not done; the folder is the training's own, in one of the study."""
    shared = found.settings["shared"]
    told = {"labels": fingerprint(labels), "learning_rate": learning_rate, "seed": found.settings["seed"]}
    told["shared"] = shared | {"training": {**shared["training"], "pair_log": False}}
    if not (folder / RESULT).is_file() or read_json(folder / RESULT)["told"] != told:
        folder.mkdir(parents=True, exist_ok=True)
        parts = read_parts(shared) | {"train": labels.remove_columns(IS_NOISY)}
        DatasetDict({shared[f"{name}_split"]: part for name, part in parts.items()}).save_to_disk(folder / "data")
        own = {"dataset_name": str(folder / "data"), "train_pairs": None}
        settings = {"options": {"method": "dpo"}, "inject": {"kind": "flip", "rate": 0.0}, "epochs": 1}
        settings |= {name: told[name] for name in ("learning_rate", "seed")} | {"shared": told["shared"] | own}
        with contextlib.redirect_stdout(sys.stderr):  # the table is for a file
            write_json(folder / RESULT, run(settings, folder) | {"told": told})
    with np.load(folder / MARGINS) as arrays:
        return Trained(arrays["margins"] > 0, arrays["labels"])


def train_all(folder: Path, learning_rate: float) -> tuple[dict[str, Any], list[Trained]]:
    """The settings of the run in the folder, and DPO trained on the labels of every arm."""
    found, study = read_run(folder), folder.parent.parent
    shared = found.settings["shared"]
    parts = read_parts(shared)
    refuse_other_inputs(study, describe_inputs(parts, shared["model_name_or_path"]))
    recovery = study / "recovery"
    recovery.mkdir(exist_ok=True)
    if not (recovery / "memory").exists():  # of the same model and sequences
        (study / "memory").mkdir(exist_ok=True)
        (recovery / "memory").symlink_to(Path("..", "memory"))
    right = parts["train"].add_column(IS_NOISY, [False] * len(parts["train"]))
    labels = {"right": right, "noisy": found.noisy, "cleaned": cleaned_labels(found)}
    names = {arm: f"{arm}-{folder.name}" for arm in ARMS} | {"right": f"right-seed{found.settings['seed']}"}
    return found.settings, [
        train_dpo(labels[arm], found, recovery / "runs" / names[arm], learning_rate) for arm in ARMS
    ]


def line(noise: str, runs: list[list[Trained]]) -> str:
    """A line of the table, of the arms of every seed."""
    seeds = list(range(len(runs)))
    right, noisy, cleaned = (np.stack([trained[arm].right for trained in runs]).astype(float) for arm in range(3))
    bootstrap = Bootstrap(runs[0][0].groups)
    draws = {id(values): bootstrap.draws(values, seeds) for values in (right, noisy, cleaned)}
    found = [estimate(100 * values.mean(), 100 * draws[id(values)]) for values in (right, noisy, cleaned)]
    gain, cost = draws[id(cleaned)] - draws[id(noisy)], draws[id(right)] - draws[id(noisy)]
    added = estimate(100 * (cleaned.mean() - noisy.mean()), 100 * gain)
    share = "-"
    if estimate(0.0, cost).low > 0:
        back = (cleaned.mean() - noisy.mean()) / (right.mean() - noisy.mean())
        safe = np.divide(gain, cost, out=np.where(gain > 0, np.inf, -np.inf), where=cost > 0)
        share = _told(estimate(back, safe), ".2f")
    cells = [*(_told(part, ".1f") for part in found), _told(added, "+.1f"), share]
    return f"| {noise} | {len(runs)} | {' | '.join(cells)} |"


def _told(found: Estimate, digits: str) -> str:
    return f"{found.value:{digits}} [{found.low:{digits}}, {found.high:{digits}}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of a study's runs, each with a pair log")
    parser.add_argument("--learning_rate", type=float, default=3e-4, help="DPO's")
    args = parser.parse_args()
    disable_progress_bars()
    by_noise: dict[str, dict[int, list[Trained]]] = {}
    kinds = set()
    for folder in args.runs:
        settings, trained = train_all(folder, args.learning_rate)
        own = by_noise.setdefault(settings["noise"], {})
        kinds.add(json.dumps([settings[name] for name in ("shared", "options", "epochs", "learning_rate")]))
        if settings["inject"]["kind"] != "flip" or settings["seed"] in own or len(kinds) > 1:
            parser.error(f"{folder}: give runs under flips that differ in noise or seed, and in nothing else")
        own[settings["seed"]] = trained
    heads = ["noise", "seeds", "right labels", "noisy", "cleaned", "cleaned less noisy", "share of the loss"]
    print(f"| {' | '.join(heads)} |\n|---|{'---:|' * (len(heads) - 1)}")
    for noise, runs in by_noise.items():
        print(line(noise, list(runs.values())))


if __name__ == "__main__":
    main()
