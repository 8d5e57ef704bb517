"""Print differences of a study's methods from its baseline by language and by kind, and what they win back of noise.

    python scripts/research/study_details.py [--config configs/study/demo.yaml]

Differences are in points of accuracy, with 95 % intervals over seeds and test pairs. `negative` holds the kinds. The
share won back is a method's gain over the baseline, divided by what the noise "0 %" leaves the baseline to gain.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import yaml
from datasets import load_dataset

from trl_capo.common.intervals import TwoLevelBootstrap, percentile_estimate
from trl_capo.study.plan import StudyPlan
from trl_capo.study.results import ALL, Cell, estimate, read_cells


def text(cell: Cell, group: str, base: Cell | None) -> str:
    """Return the difference from `base`, or the accuracy without one."""
    form = "{:.1f} [{:.1f}, {:.1f}]" if base is None else "{:+.1f} [{:+.1f}, {:+.1f}]"
    return form.format(*(100 * value for value in estimate(cell, "accuracy", group, base)))


def won_back(cell: Cell, base: Cell, right: Cell) -> str:
    """Return the share of the loss from noise that a method wins back, over the seeds that all three have."""
    seeds = sorted({*cell.seeds} & {*base.seeds} & {*right.seeds})
    ours, noisy, best = (c.values("accuracy")[[c.seeds.index(s) for s in seeds]] for c in (cell, base, right))
    gain, loss = (cell.bootstrap.draws(values, seeds) for values in (ours - noisy, best - noisy))
    shares = np.divide(gain, loss, out=np.where(gain > 0, np.inf, -np.inf), where=loss > 0)
    found = percentile_estimate((ours - noisy).mean() / (best - noisy).mean(), shares)
    return f"{len(seeds)} | " + "{:.2f} [{:.2f}, {:.2f}]".format(*found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/study/demo.yaml")
    plan = StudyPlan(**yaml.safe_load(Path(parser.parse_args().config).read_text(encoding="utf-8")))
    cells = read_cells(plan)
    kinds = np.array(load_dataset(plan.dataset_name, split="test")["negative"])
    bootstrap = TwoLevelBootstrap(kinds)
    by_kind = {key: dataclasses.replace(cell, labels=kinds, bootstrap=bootstrap) for key, cell in cells.items()}
    for title, found in (("language", cells), ("kind", by_kind)):
        groups = [ALL, *next(iter(found.values())).groups]
        print(f"\n| {title}, minus {plan.baseline} | seeds | " + " | ".join(groups))
        print("|---" * (len(groups) + 2) + "|")
        for (epochs, noise, method), cell in found.items():
            base = found.get((epochs, noise, plan.baseline))
            values = [text(cell, group, None if base is cell else base) for group in groups]
            print(f"| {noise}, {epochs:g} ep., {method} | {len(cell.seeds)} | {' | '.join(values)} |")
    print("\n| what is won back | seeds | share |\n|---|---|---|")
    for (epochs, noise, method), cell in cells.items():
        base, right = (cells.get((epochs, own, plan.baseline)) for own in (noise, "0 %"))
        if base and right and noise != "0 %" and cell is not base:
            print(f"| {noise}, {epochs:g} ep., {method} | {won_back(cell, base, right)} |")


if __name__ == "__main__":
    main()
