"""Draw the accuracy of a study's methods over the number of training pairs, and print it.

    python scripts/research/scale_figure.py [--config configs/study/scale.yaml] [--pairs 2400 4800 9600]

The runs with N pairs are in the plan's `output_dir` with N at its end. The figure goes to docs/study/scale.png. 95 %
intervals are over test pairs (and seeds). The last column is the number of pairs that the baseline needs for what a
method reaches with the fewest, by a line between points over the logarithm of the number.
"""

import argparse
from pathlib import Path

import numpy as np
import yaml

from trl_capo.common.figures import MARKERS, new_figure, plot_style, save
from trl_capo.study.plan import StudyPlan
from trl_capo.study.results import estimate, read_cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/study/scale.yaml")
    parser.add_argument("--pairs", nargs="+", type=int, default=[2400, 4800, 9600])
    args, cells = parser.parse_args(), {}
    options = yaml.safe_load(Path(args.config).read_text(encoding="utf-8"))
    stem = options.pop("output_dir").rpartition("-")[0]
    for pairs in args.pairs:
        plan = StudyPlan(**options | {"train_pairs": pairs, "output_dir": f"{stem}-{pairs}"})
        for (_, noise, method), cell in read_cells(plan).items():
            found = [100 * value for value in estimate(cell, "accuracy")]
            cells.setdefault(noise, {}).setdefault(method, {})[pairs] = found
    print("| noise | method | " + " | ".join(f"{pairs:,}" for pairs in args.pairs) + " | pairs of the baseline |")
    print("|---|---|" + "---:|" * (len(args.pairs) + 1))
    with plot_style([]):
        figure, all_axes = new_figure(8, 3.4, ncols=len(cells), sharey=True, squeeze=False)
        for axes, (noise, methods) in zip(all_axes[0], cells.items(), strict=True):
            base = methods[plan.baseline]
            for number, (method, found) in enumerate(methods.items()):
                sizes, values = list(found), np.array(list(found.values()))
                bars = [values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]]
                axes.errorbar(sizes, values[:, 0], yerr=bars, marker=MARKERS[number], label=method)
                reached = values[0, 0] if sizes[0] == args.pairs[0] and method != plan.baseline else np.nan
                logs = np.interp(reached, [own[0] for own in base.values()], np.log(list(base)), np.nan, np.inf)
                needed = "-" if np.isnan(reached + logs) else "more" if np.isinf(logs) else f"{np.exp(logs):,.0f}"
                shown = {pairs: "{:.1f} [{:.1f}, {:.1f}]".format(*own) for pairs, own in found.items()}
                print(f"| {noise} | {method} | {' | '.join(shown.get(n, '-') for n in args.pairs)} | {needed} |")
            axes.set(xscale="log", xlabel="training pairs", title=f"{noise} flipped")
            axes.set_xticks(args.pairs, [f"{pairs:,}" for pairs in args.pairs], minor=False)
            axes.minorticks_off()
        all_axes[0][0].set_ylabel("reward accuracy, % (95 % interval)")
        figure.legend(*all_axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
        save(figure, Path("docs/study/scale.png"))


if __name__ == "__main__":
    main()
