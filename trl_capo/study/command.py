"""`trl-capo study` (docs/study.md): fill the caches, select learning rates, run the grid, and report.

Every run is a process. Finished runs are not repeated, so an interrupted study continues where it stopped. All runs
read a pipe whose other end only the study holds, so that they end with it, even if it is killed.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil
import torch
from filelock import FileLock
from tqdm import tqdm

from trl_capo.common.command import need, parse, processes, run
from trl_capo.common.text import Rows, text_table
from trl_capo.study.plan import CACHE_RUN, RESULT, Run, StudyPlan
from trl_capo.study.report import write_report
from trl_capo.study.results import ALL
from trl_capo.study.run import add_noise, read_parts, training_args

PROG = "trl-capo study"


def start_run(plan: StudyPlan, run: Run, environment: dict[str, str], pipe: IO[str], bar: tqdm) -> float:
    """Make a run in its own process; return how many epochs the bar has shown. OSError if the run fails."""
    settings, log = plan.folder(run) / "settings.json", plan.folder(run) / "log.txt"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps(plan.settings(run), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    command, last, done = [sys.executable, "-m", "trl_capo.study.run", str(settings)], "", 0.0
    streams = {"stdin": pipe, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "errors": "replace"}
    with subprocess.Popen(command, env=environment, **streams) as process, log.open("w", encoding="utf-8") as file:
        for line in process.stdout:
            if progress := re.fullmatch(r"progress (\d+)/(\d+)\n", line):
                bar.n, bar.total, bar.unit = int(progress[1]), int(progress[2]), " sequences"
                bar.refresh()
            else:
                if logged := re.search(r"'loss': '([^']*)'.*'epoch': '([^']*)'", line):
                    bar.set_postfix_str(f"{run.method}: loss {logged[1]}", refresh=False)
                    bar.update(float(logged[2]) - done)
                    done = float(logged[2])
                print(line, end="", file=file, flush=True)
                last = line.strip() or last
    if process.returncode != 0:
        raise ChildProcessError(f"the run {run.name} failed (see {log}): {last or process.returncode}")
    return done


def study(plan: StudyPlan, jobs: int = 1, start: Callable[..., None] = start_run) -> Rows:
    """Make the unfinished runs, `jobs` at a time, and write the report; ValueError or OSError if that fails."""
    check_runs(plan)
    folder = Path(plan.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "study.lock", timeout=0):
        if not any(folder.glob(f"runs/*/{RESULT}")):
            for path in folder.glob("memory/*"):  # the model may be another one
                path.unlink()
        _run_all(plan, [CACHE_RUN], 1, start, "Filling the caches")
        _run_all(plan, plan.tuning_runs(), jobs, start, "Selecting learning rates")
        _run_all(plan, plan.grid_runs(plan.selected_rates()), jobs, start, "Running the grid")
        return write_report(plan)


def check_runs(plan: StudyPlan) -> None:
    """Raise ValueError or OSError if the folder holds other runs, or the splits, noise or options cannot be used."""
    train, shares = read_parts(plan.settings(CACHE_RUN)["shared"])["train"], {}
    for each in [CACHE_RUN, *plan.possible_runs()]:
        plan.result(each)
        try:
            shares[each.noise] = shares.get(each.noise) or add_noise(train, plan.settings(each))[1]
            training_args(plan.settings(each), len(train), shares[each.noise][ALL], Path(plan.output_dir))
        except (TypeError, ValueError) as error:
            raise ValueError(f"the method {each.method} with the noise {each.noise} cannot be run: {error}") from error


def slot_environment(slot: int, jobs: int) -> dict[str, str]:
    """Return the environment variables of a slot: one of the GPUs that the user left visible, or a share of cores."""
    variables, gpus = dict(os.environ), torch.cuda.device_count()
    if gpus:
        visible = (variables.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))).split(",")
        return variables | {"CUDA_VISIBLE_DEVICES": visible[slot % gpus]}
    return {"OMP_NUM_THREADS": str(max(1, (psutil.cpu_count(logical=False) or 1) // jobs))} | variables


def _run_all(plan: StudyPlan, runs: list[Run], jobs: int, start: Callable[..., None], title: str) -> None:
    missing = [run for run in runs if not plan.result(run)]
    epochs, left = (sum(run.epochs for run in part) for part in (runs, missing))
    form = "{desc}: {percentage:.0f}% |{bar}| {n:.1f}/{total:g}{unit} [{elapsed}<{remaining}{postfix}]"
    bar = tqdm(None, title, epochs, initial=epochs - left, unit=" epochs", bar_format=form, disable=not missing)
    waiting, (reading, writing) = iter(missing), map(os.fdopen, os.pipe(), "rw")

    def work(slot: int) -> None:
        try:
            for run in waiting:  # the slots share the iterator
                bar.update(run.epochs - (start(plan, run, slot_environment(slot, jobs), reading, bar) or 0.0))
        finally:
            list(waiting)  # after a failure no other run starts

    with reading, ThreadPoolExecutor(jobs) as pool, bar, writing:
        futures = [pool.submit(work, slot) for slot in range(jobs)]
        wait(futures)  # after a failure the other slots finish their runs
        for future in futures:
            future.result()


@dataclass
class StudyOptions:
    """Options besides the plan."""

    jobs: int = field(default=1, metadata={"help": "Runs at a time: one per GPU, or with a share of the cores each."})
    report_only: bool = field(default=False, metadata={"help": "Report on the finished runs without starting any."})


def main(argv: Sequence[str] | None = None) -> int:
    return run(PROG, _main, sys.argv[1:] if argv is None else argv)


def _main(argv: Sequence[str]) -> int:
    need("matplotlib")
    plan, options = parse(argv, (StudyPlan, StudyOptions), PROG)
    processes()
    try:
        rows = write_report(plan) if options.report_only else study(plan, options.jobs)
    except KeyboardInterrupt:
        print(f"{PROG}: interrupted. The same command continues after the finished runs.", file=sys.stderr)
        return 130
    print(text_table(rows), f"Report: {plan.output_dir}/report.md", sep="\n")
    return 0
