"""Print the differences of a study's methods from its baseline by language and by kind of rejected answer.

    python scripts/research/study_details.py [--config configs/study/demo.yaml]

Differences are in points of accuracy, with 95 % intervals over seeds and test pairs. `negative` holds the kinds.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import yaml
from datasets import load_dataset

from trl_capo.common.intervals import TwoLevelBootstrap
from trl_capo.study.plan import StudyPlan
from trl_capo.study.results import ALL, Cell, estimate, read_cells


def text(cell: Cell, group: str, base: Cell | None) -> str:
    """Return the difference from `base`, or the accuracy without one."""
    form = "{:.1f} [{:.1f}, {:.1f}]" if base is None else "{:+.1f} [{:+.1f}, {:+.1f}]"
    return form.format(*(100 * value for value in estimate(cell, "accuracy", group, base)))


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


if __name__ == "__main__":
    main()
