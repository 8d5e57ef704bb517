"""Measure how well the probe finds flipped labels, and the noise rates that it gives before training.

    python scripts/research/measure_probe.py [--model demo/study/model] [--data demo/study/data] [--seeds 4]

It flips labels of the demo's training pairs, judges them as `trl-capo annotate` does, and prints means over seeds
(lowest to highest): the AUROC for flipped labels, overall and in the worst language; how many noise rates are within 5
points; and the effective amount of data as a multiple of DPO's, by the signal-to-noise ratio of the pairs' weights.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from datasets import load_dataset

from trl_capo.audit.mislabels import auroc
from trl_capo.core.noise_rate import NoiseRateEstimator
from trl_capo.core.pairs import PROBE, read_witness
from trl_capo.data.noise import IS_NOISY, inject_noise
from trl_capo.scoring.annotate import ReferenceArguments, add_probe, read_states

NOISE = {"20 %": 0.2, "10 / 40 %": {"*": 0.1} | dict.fromkeys(("cy", "eu", "hi", "ka", "sw"), 0.4), "40 %": 0.4}
SIZES = (300, 600, 1200, 2400)


def measure(pairs, states: torch.Tensor, prompts: torch.Tensor, rate, seed: int) -> list[float]:
    """Return the measures of the docstring for these pairs, whose labels are right, and their states."""
    noisy = inject_noise(pairs, "flip", rate, seed=seed)
    flipped = np.array(noisy[IS_NOISY][:])
    signs = np.where(flipped, -1.0, 1.0)
    noisy = add_probe(noisy, np.ones(len(pairs), dtype=bool), states * torch.tensor(signs).float()[:, None], prompts)
    names, groups = np.unique(labels := np.array(pairs["language"]), return_inverse=True)
    x, groups = torch.tensor(read_witness(noisy, PROBE), dtype=torch.float32), torch.tensor(groups)
    estimator, none = NoiseRateEstimator(names.tolist(), len(x)), torch.zeros(len(x), dtype=torch.bool)
    estimator.add_witness(groups, none, x)
    weights = 1.0 - 2.0 * estimator.pair_rates(groups, torch.arange(len(x)), none, x)[0].numpy()
    true = np.array([flipped[labels == name].mean() for name in names])
    close = np.abs(estimator.noise_rates[1:].numpy() - true) <= 0.05
    by_language = [auroc(-x.numpy()[labels == name], flipped[labels == name]) for name in names]
    gain = (weights * signs).mean() ** 2 / (weights**2).mean() / signs.mean() ** 2
    return [100 * auroc(-x.numpy(), flipped), 100 * np.nanmin(by_language), close.sum(), gain]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for option, default in (("model", "demo/study/model"), ("data", "demo/study/data"), ("seeds", 4)):
        parser.add_argument(f"--{option}", default=default, type=type(default))
    args = parser.parse_args()
    pairs = load_dataset("json", data_files=str(Path(args.data, "train.jsonl")), split=f"train[:{max(SIZES)}]")
    _, states, prompts = read_states(pairs, ReferenceArguments(args.model, 16, dtype="float32"))
    heads = ["noise", "pairs", "AUROC", "worst language", "rates within 5 points", "effective data"]
    print(f"| {' | '.join(heads)} |\n|---|{'---:|' * 5}")
    for noise, rate in NOISE.items():
        for size in SIZES:
            part = pairs.select(range(size)), states[:size], prompts[:size], rate
            found = np.array([measure(*part, seed) for seed in range(args.seeds)])
            cells = [f"{own.mean():.1f} ({own.min():.1f} to {own.max():.1f})" for own in found.T]
            print(f"| {noise} | {size:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
