"""How much of what wrong labels cost DPO an audit gives back: training on right, on noisy and on cleaned labels.

    trl-capo study --config configs/study/audit.yaml    # or another study with `pair_log: true` under `training`
    python scripts/measure_recovery.py demo/study/audit/runs/capo-*-seed*

Run it where the study was run. For every run it audits the log, flips all labels with a score above 1/2, which is
where a label is likelier wrong than right, and trains DPO, one epoch with the run's model, options and seed. What is
done in --output_dir is not done again. Prints a line for every noise: reward accuracy on the test pairs, which have
right labels, in percent, and the share of the loss that came back, with 95 % intervals over seeds and test pairs.
"""

import argparse
import contextlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from compare_audit_scores import read_run
from datasets import DatasetDict, disable_progress_bars

from trl_capo.audit.judgement import judge
from trl_capo.cleaning import Rules, clean
from trl_capo.noise_checks import IS_NOISY
from trl_capo.study.data import read_parts, with_noise
from trl_capo.study.run import MARGINS, RESULT, run
from trl_capo.study.table import Bootstrap, estimate
from trl_capo.verdicts import Suspect

ARMS = ("right", "noisy", "cleaned")
NO_NOISE = {"kind": "flip", "rate": 0.0}


def clean_data(folder: Path, settings: dict[str, Any], into: Path) -> str:
    """The study's data with the run's noise, and what an audit of the run finds flipped; returns its folder."""
    if not into.is_dir():
        shared = settings["shared"]
        parts = read_parts(shared)
        noisy = with_noise(parts["train"], settings["inject"], settings["seed"], shared["group_column"])
        pairs = read_run(folder)[1]
        scores = judge(pairs).scores
        suspects = {int(row): Suspect(float(score), []) for row, score in zip(pairs.pair, scores, strict=True)}
        cleaned = clean(noisy, suspects=suspects, rules=Rules(flip_above=0.5)).dataset.remove_columns(IS_NOISY)
        names = {name: shared[f"{name}_split"] for name in parts}
        splits = {names[name]: part for name, part in parts.items()} | {names["train"]: cleaned}
        DatasetDict(splits).save_to_disk(into)
    return str(into)


def train_dpo(arm: str, folder: Path, output: Path, learning_rate: float) -> np.ndarray:
    """(2, pairs) margins and groups of the test pairs after training on the labels of this arm."""
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    name = f"seed{settings['seed']}" if arm == "right" else folder.name
    shared = settings["shared"] | {"training": {**settings["shared"]["training"], "pair_log": False}}
    if arm == "cleaned":
        shared |= {"dataset_name": clean_data(folder, settings, output / "data" / name), "train_pairs": None}
    settings |= {"options": {"method": "dpo"}, "epochs": 1, "learning_rate": learning_rate, "shared": shared}
    settings |= {} if arm == "noisy" else {"inject": NO_NOISE}
    made = output / "runs" / f"{arm}-{name}"
    if not (made / RESULT).is_file():
        made.mkdir(parents=True, exist_ok=True)
        with contextlib.redirect_stdout(sys.stderr):  # the table is for a file
            result = run(settings, made)
        (made / RESULT).write_text(json.dumps(result, indent=1, ensure_ascii=False), encoding="utf-8")
    with np.load(made / MARGINS) as arrays:
        return arrays["margins"], arrays["labels"]


def print_row(noise: str, seeds: list[int], right: dict[str, np.ndarray], labels: np.ndarray) -> None:
    """A line of the table; `right` has (seeds, pairs) of every arm: whether the pair is ranked as its label says."""
    bootstrap = Bootstrap(labels)
    draws = {arm: bootstrap.draws(values, seeds) for arm, values in right.items()}
    found = {arm: estimate(values.mean(), draws[arm]) for arm, values in right.items()}
    cells = [f"{100 * e.value:.1f} [{100 * e.low:.1f}, {100 * e.high:.1f}]" for e in found.values()]
    cost = draws["right"] - draws["noisy"]
    share = np.divide(draws["cleaned"] - draws["noisy"], cost, out=np.full_like(cost, np.inf), where=cost > 0)
    means = [right[arm].mean() for arm in ARMS]
    back = estimate((means[2] - means[1]) / (means[0] - means[1]), share)
    print(f"| {noise} | {len(seeds)} | {' | '.join(cells)} | {back.value:.2f} [{back.low:.2f}, {back.high:.2f}] |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, each with a pair log")
    parser.add_argument("--output_dir", type=Path, default=Path("demo/study/recovery"))
    parser.add_argument("--learning_rate", type=float, default=3e-4, help="DPO's")
    args = parser.parse_args()
    disable_progress_bars()
    memory = args.runs[0].parent.parent / "memory"
    if memory.is_dir() and not (args.output_dir / "memory").is_dir():  # the model and the sequences are the same
        shutil.copytree(memory, args.output_dir / "memory")
    by_noise: dict[str, list[Path]] = {}
    for folder in args.runs:
        by_noise.setdefault(json.loads((folder / "settings.json").read_text(encoding="utf-8"))["noise"], []).append(
            folder
        )
    found = {}
    for noise, folders in by_noise.items():
        for arm in ARMS:
            found[noise, arm] = [train_dpo(arm, folder, args.output_dir, args.learning_rate) for folder in folders]
    print("| noise | seeds | right labels | noisy | cleaned | recovered |\n|---|" + "---:|" * 5)
    for noise, folders in by_noise.items():
        right = {arm: np.stack([margins > 0 for margins, _ in found[noise, arm]]).astype(float) for arm in ARMS}
        print_row(noise, list(range(len(folders))), right, found[noise, "right"][0][1])


if __name__ == "__main__":
    main()
