"""How much of what wrong labels cost DPO an audit gives back: training on right, on noisy and on cleaned labels.

    trl-capo study --config configs/study/audit.yaml    # or another study of flips with `pair_log: true`
    python scripts/measure_recovery.py demo/study/audit/runs/capo-*-seed*

Run it where the study was run. It audits the log of every run, cleans the labels by the rules that are given, as
`trl-capo clean` would (by default it flips all scores above 1/2, which are likelier wrong than right), and trains DPO
with the study's model, options and seeds. What was trained before, in the folder `recovery` of the study, on the same
labels and with the same settings, is not trained again. Prints a line for every noise: reward accuracy on the test
pairs, whose labels are right, in percent; what cleaning adds, in points; and the share of the loss that came back,
where there is a loss beyond chance. In brackets: 95 % intervals over seeds and test pairs.
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
from trl_capo.study.files import read_json, write_json
from trl_capo.study.inputs import describe_inputs, refuse_other_inputs
from trl_capo.study.run import MARGINS, RESULT, run
from trl_capo.study.table import Bootstrap, Estimate, estimate
from trl_capo.verdicts import Suspect
from trl_capo.weights import WEIGHT


@dataclass(frozen=True)
class Trained:
    """The test pairs after a training: (pairs,) whether each is ranked as its label says, and their groups."""

    right: np.ndarray
    groups: np.ndarray


@dataclass(frozen=True)
class Training:
    """How DPO is trained, and by which rules its labels are cleaned."""

    rules: Rules
    epochs: float
    learning_rate: float

    def folders(self, audited: Path, settings: dict[str, Any]) -> list[str]:
        """Of the arms, in one of the study: the noisy labels are the same for every method that was audited."""
        rules = " ".join(f"{name}={value}" for name, value in self.rules.given().items())
        seed = f"seed{settings['seed']}"
        arms = [f"right-{seed}", f"noisy-{settings['noise']}-{seed}", f"{rules}-{audited.name}"]
        return [f"{arm.replace('/', '_')}-{self.epochs:g}ep-lr{self.learning_rate:.2e}" for arm in arms]


def labels_of_arms(found: Run, rules: Rules) -> list[Dataset]:
    """The run's pairs with right labels, with its noise, and cleaned of what the log makes likely wrong."""
    scores = judge(found.pairs).scores
    suspects = {int(row): Suspect(float(score), []) for row, score in zip(found.pairs.pair, scores, strict=True)}
    cleaned = clean(found.noisy, suspects=suspects, rules=rules).dataset
    return [found.parts["train"], *(labels.remove_columns(IS_NOISY) for labels in (found.noisy, cleaned))]


def train_dpo(labels: Dataset, found: Run, folder: Path, how: Training) -> Trained:
    """Train on these labels, if that was not done; the folder is the training's own, in one of the study."""
    shared = found.settings["shared"]
    told = {"labels": fingerprint(labels), "learning_rate": how.learning_rate, "epochs": how.epochs}
    told |= {"seed": found.settings["seed"], "weights": labels[WEIGHT][:] if WEIGHT in labels.column_names else None}
    told["shared"] = shared | {"training": {**shared["training"], "pair_log": False}}
    if not (folder / RESULT).is_file() or read_json(folder / RESULT)["told"] != told:
        folder.mkdir(parents=True, exist_ok=True)
        parts = found.parts | {"train": labels}
        DatasetDict({shared[f"{name}_split"]: part for name, part in parts.items()}).save_to_disk(folder / "data")
        own = {"dataset_name": str(folder / "data"), "train_pairs": None}
        settings = {"options": {"method": "dpo"}, "inject": {"kind": "flip", "rate": 0.0}}
        settings |= {name: told[name] for name in ("learning_rate", "seed", "epochs")} | {
            "shared": told["shared"] | own
        }
        with contextlib.redirect_stdout(sys.stderr):  # the table is for a file
            write_json(folder / RESULT, run(settings, folder) | {"told": told})
    with np.load(folder / MARGINS) as arrays:
        return Trained(arrays["margins"] > 0, arrays["labels"])


def train_all(folder: Path, found: Run, how: Training) -> list[Trained]:
    """DPO trained on the labels of every arm of the run in the folder."""
    study = folder.parent.parent
    refuse_other_inputs(study, describe_inputs(found.parts, found.settings["shared"]["model_name_or_path"]))
    recovery = study / "recovery"
    recovery.mkdir(exist_ok=True)
    if not (recovery / "memory").exists():  # of the same model and sequences
        (study / "memory").mkdir(exist_ok=True)
        (recovery / "memory").symlink_to(Path("..", "memory"))
    names, labels = how.folders(folder, found.settings), labels_of_arms(found, how.rules)
    return [train_dpo(part, found, recovery / "runs" / name, how) for name, part in zip(names, labels, strict=True)]


def line(noise: str, runs: list[list[Trained]]) -> str:
    """A line of the table, of the arms of every seed."""
    bootstrap, seeds = Bootstrap(runs[0][0].groups), list(range(len(runs)))
    ranked = [np.stack([trained[arm].right for trained in runs]).astype(float) for arm in range(3)]
    means, draws = [values.mean() for values in ranked], [bootstrap.draws(values, seeds) for values in ranked]
    found = [estimate(100 * mean, 100 * drawn) for mean, drawn in zip(means, draws, strict=True)]
    (right, noisy, cleaned), gain, cost = means, draws[2] - draws[1], draws[0] - draws[1]
    added, share = estimate(100 * (cleaned - noisy), 100 * gain), "-"
    if estimate(right - noisy, cost).low > 0:
        safe = np.divide(gain, cost, out=np.where(gain > 0, np.inf, -np.inf), where=cost > 0)
        share = _told(estimate((cleaned - noisy) / (right - noisy), safe), ".2f")
    cells = [*(_told(part, ".1f") for part in found), _told(added, "+.1f"), share]
    return f"| {noise} | {len(runs)} | {' | '.join(cells)} |"


def _told(found: Estimate, digits: str) -> str:
    return f"{found.value:{digits}} [{found.low:{digits}}, {found.high:{digits}}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of a study's runs, each with a pair log")
    parser.add_argument("--learning_rate", type=float, default=3e-4, help="DPO's")
    parser.add_argument("--epochs", type=float, default=1, help="DPO's")
    for name in ("flip_above", "drop_above"):
        parser.add_argument(f"--{name}", type=float, help="as of `trl-capo clean`")
    parser.add_argument("--weight", action="store_true", help="as of `trl-capo clean`")
    args = parser.parse_args()
    rules = Rules(flip_above=args.flip_above, drop_above=args.drop_above, weight=args.weight)
    how = Training(rules if rules.given() else Rules(flip_above=0.5), args.epochs, args.learning_rate)
    if how.rules.problems() or not args.epochs > 0:
        parser.error(" ".join(how.rules.problems()) or f"--epochs {args.epochs}: give a number above 0.")
    disable_progress_bars()
    runs = {folder: read_run(folder) for folder in args.runs}
    told = [found.settings for found in runs.values()]
    kinds = {json.dumps([own[name] for name in ("shared", "options", "epochs", "learning_rate")]) for own in told}
    single = len({(own["noise"], own["seed"]) for own in told}) == len(args.runs)
    if len(kinds) > 1 or not single or any(own["inject"]["kind"] != "flip" for own in told):
        parser.error("give runs under flips that differ in noise or seed, and in nothing else")
    by_noise: dict[str, list[list[Trained]]] = {}
    for folder, found in runs.items():
        by_noise.setdefault(found.settings["noise"], []).append(train_all(folder, found, how))
    heads = ["noise", "seeds", "right labels", "noisy", "cleaned", "cleaned less noisy", "share of the loss"]
    print(f"| {' | '.join(heads)} |\n|---|{'---:|' * (len(heads) - 1)}")
    for noise, trained in by_noise.items():
        print(line(noise, trained))


if __name__ == "__main__":
    main()
