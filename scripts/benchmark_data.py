"""Measure how long `trl dpo` and `trl-capo train` take to their first step, and their memory, on a large JSONL file.

    python scripts/benchmark_data.py [--pairs 200000] [--rounds 3] [--checkout FOLDER]

The commands take turns on the same file with the same settings, one process on the CPU, a tiny random model and an
empty cache of `datasets`. Time is from the start of the command to the first logged loss. Memory is the peak of the
resident sets of all its processes together. `--checkout` adds the `trl-capo train` of another checkout.
"""

import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from benchmark import save_random_model

OPTIONS = {"max_steps": 1, "logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True}
OPTIONS |= {"bf16": False, "per_device_train_batch_size": 4, "gradient_checkpointing": False}


def write_pairs(file: Path, pairs: int) -> None:
    """Write pairs with prompts of 30 tokens, answers of 40 and 35, and a language."""
    with file.open("w") as lines:
        for number in range(pairs):
            words = [str((number * step + 7 * step * step) % 990) for step in range(1, 106)]
            row = {"prompt": " ".join(words[:30]) + " ", "chosen": " ".join(words[30:70])}
            row |= {"rejected": " ".join(words[70:]), "language": ("de", "sw", "ja")[number % 3]}
            lines.write(json.dumps(row) + "\n")


def measure(command: list[str], environment: dict[str, str], folder: Path) -> tuple[float, float, float]:
    """Run a command; return the seconds to its first logged loss, the CPU seconds and the peak memory in GiB."""
    environment = {**os.environ, **environment, "HF_DATASETS_CACHE": str(folder / "cache"), "PYTHONUNBUFFERED": "1"}
    first, peak, log, before = None, 0, folder / "log", sum(os.times()[2:4])
    start = time.monotonic()
    with log.open("w") as output:
        process = psutil.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
        while process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                members = [process, *process.children(recursive=True)]
                peak = max(peak, sum(member.memory_info().rss for member in members))
            if first is None and "'loss'" in log.read_text():
                first = time.monotonic() - start
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}\n{log.read_text()[-3000:]}")
    shutil.rmtree(folder / "cache", ignore_errors=True)
    return first or time.monotonic() - start, sum(os.times()[2:4]) - before, peak / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--checkout", help="folder of another checkout of the repository")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="benchmark-data-"))
    (folder / "data").mkdir()
    write_pairs(folder / "data" / "train.jsonl", options.pairs)
    settings = OPTIONS | {"model_name_or_path": save_random_model(str(folder / "model"), 2, 1000)}
    settings |= {"dataset_name": folder / "data", "output_dir": folder / "output"}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    ours = [sys.executable, "-m", "trl_capo.cli", "train", *words]
    commands = {"trl dpo": ([str(Path(sys.executable).with_name("trl")), "dpo", *words], {})}
    commands["trl-capo train"] = (ours, {"PYTHONPATH": str(Path(__file__).parents[1])})
    if options.checkout:
        commands[f"trl-capo train ({options.checkout})"] = (ours, {"PYTHONPATH": options.checkout})
    rounds = [{name: measure(*call, folder) for name, call in commands.items()} for _ in range(options.rounds)]
    print("| command | seconds to the first step | ratio | CPU seconds | peak memory, GiB | ratio |")
    print("|---|" + "---:|" * 5)
    medians = {name: np.median([found[name] for found in rounds], axis=0) for name in commands}
    first, _, base = medians["trl dpo"]
    for name, (seconds, cpu, memory) in medians.items():
        print(f"| `{name}` | {seconds:.1f} | {seconds / first:.2f} | {cpu:.1f} | {memory:.2f} | {memory / base:.2f} |")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
