"""Compare policy-only CAPO with DPO and other methods on the study's test pairs, and draw the README's figure.

    python scripts/research/policy_only.py

It reads the margins in docs/study/runs.tar.gz (bfloat16) and docs/study/runs_policy.tar.gz (policy-only CAPO, float32,
configs/study/policy.yaml), prints a Markdown table, and writes docs/study/accuracy.png. Intervals are bootstraps over
seeds and test pairs; differences are paired by seed and test pair.
"""

import io
import json
import tarfile
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from trl_capo.common.intervals import Estimate, TwoLevelBootstrap, percentile_estimate

FOLDER = Path(__file__).parents[2] / "docs" / "study"
RATES = {"dpo": (3e-4, 1.5e-4), "capo": (3e-4, 3e-4), "capo_reference": (3e-4, 1.5e-4), "dr_dpo": (6e-4, 3e-4)}
STYLES = {  # all on the seeds 0 to 2
    "capo": ("CAPO (default)", "tab:red", "o-", 2.4),
    "capo_reference": ("CAPO, use_reference_margin", "tab:orange", "v-", 1.4),
    "dpo": ("DPO", "0.25", "s--", 1.4),
    "dr_dpo": ("Dr. DPO", "0.6", "^:", 1.4),
}


def read_runs() -> tuple[dict, np.ndarray]:
    """Return {(method, noise, epochs): {seed: (pairs,) whether the margin is positive}} and the pairs' groups."""
    runs, labels = defaultdict(dict), None
    for archive in ("runs.tar.gz", "runs_policy.tar.gz"):
        with tarfile.open(FOLDER / archive) as files:
            for member in files.getmembers():
                if not member.name.endswith("settings.json"):
                    continue
                settings = json.load(files.extractfile(member))
                method, epochs = settings["method"], settings["epochs"]
                if method not in RATES or settings["learning_rate"] != RATES[method][epochs > 1]:
                    continue
                content = files.extractfile(member.name.replace("settings.json", "margins.npz")).read()
                arrays = np.load(io.BytesIO(content))
                labels = arrays["labels"] if labels is None else labels
                assert np.array_equal(labels, arrays["labels"])
                runs[method, settings["noise"], epochs][settings["seed"]] = arrays["margins"] > 0
    return runs, labels


def estimate(bootstrap: TwoLevelBootstrap, ours: dict, theirs: dict | None = None) -> Estimate:
    """Return the accuracy in %, or the difference in points on the seeds that both have."""
    seeds = sorted(ours if theirs is None else ours.keys() & theirs)
    values = 100 * np.array([ours[seed].astype(float) - (0 if theirs is None else theirs[seed]) for seed in seeds])
    return percentile_estimate(values.mean(), bootstrap.draws(values, seeds))


def main() -> None:
    runs, labels = read_runs()
    bootstrap = TwoLevelBootstrap(labels)
    print("| noise | epochs | method | seeds | accuracy, % | minus DPO | worst language minus DPO |")
    print("|---" * 7 + "|")
    for (method, noise, epochs), seeds in sorted(runs.items(), key=lambda item: item[0][1:]):
        own, base = estimate(bootstrap, seeds), runs["dpo", noise, epochs]
        line = f"| {noise} | {epochs} | {method} | {len(seeds)} | {own.value:.1f} [{own.low:.1f}, {own.high:.1f}] |"
        if method != "dpo":
            gain = estimate(bootstrap, seeds, base)
            shared = sorted(seeds.keys() & base)
            by_group = {
                group: 100
                * np.mean([seeds[s][labels == group].mean() - base[s][labels == group].mean() for s in shared])
                for group in sorted(set(labels.tolist()))
            }
            worst = min(by_group, key=by_group.get)
            line += f" {gain.value:+.1f} [{gain.low:+.1f}, {gain.high:+.1f}] | {worst} {by_group[worst]:+.1f} |"
        print(line)

    figure, axes = plt.subplots(figsize=(6.4, 3.8), dpi=150, layout="constrained")
    for offset, (method, (name, colour, style, width)) in enumerate(STYLES.items()):
        points = [(rate, runs.get((method, f"{rate} %", 1), {})) for rate in (0, 20, 40)]
        points = [(rate, {seed: own[seed] for seed in own if seed < 3}) for rate, own in points]
        points = [(rate, estimate(bootstrap, own)) for rate, own in points if own]
        x, y = [rate + 0.6 * (offset - 1) for rate, _ in points], [found.value for _, found in points]
        reach = np.abs(np.array([[found.low, found.high] for _, found in points]).T - y)
        axes.errorbar(
            x, y, yerr=reach, fmt=style, color=colour, label=name, linewidth=width, capsize=3, zorder=3 - offset
        )
    axes.set(xlabel="flipped labels, %", ylabel="reward accuracy, %", xticks=(0, 20, 40))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    axes.legend(frameon=False)
    figure.savefig(FOLDER / "accuracy.png")


if __name__ == "__main__":
    main()
