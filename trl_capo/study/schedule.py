"""What `trl-capo study` does: run a grid of methods, noise, seeds and learning rates, and report what came out.

`trl-capo study --config configs/study/FILE.yaml [--jobs N]`. Every run is a process of its own (`trl_capo.study.run`,
through `accelerate launch`), `--jobs` of them at a time, one for each GPU. A run that is done is not run again, so a
study that was killed goes on where it stood. First, with several learning rates, come the runs that choose each
method's on the validation split; the grid is measured on the test split.

However a study ends, no run of it goes on and is in the way of the next: every run has the reading end of a pipe for
its standard input and ends with it, and the study alone has the other end, which closes when it is killed, too.
"""

import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import IO, Any

import psutil
import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from trl_capo.messages import get_logger
from trl_capo.models import check_model_path
from trl_capo.paths import output_folder
from trl_capo.precision import bfloat16_warnings
from trl_capo.study.config import PREPARATION, Run, StudyConfig
from trl_capo.study.data import check_runs
from trl_capo.study.files import read_json, write_json
from trl_capo.study.inputs import describe_inputs, settle_inputs
from trl_capo.study.rates import choose_learning_rates, validation_accuracies
from trl_capo.study.report import write_report
from trl_capo.study.run import ERROR, RESULT, SETTINGS, WITH_STUDY

logger = get_logger(__name__)

LOG = "log.txt"
SECONDS_UNCHANGED = 60
"""After so long, the bar is drawn again though no run has ended."""


class RunFailed(RuntimeError):
    """A run of the study ended with an error, which stands in its log."""


def study(config: StudyConfig, jobs: int = 1) -> Path:
    """Run what is not done yet and write the report; returns the study's folder.

    Raises:
        ValueError, OSError: something does not fit, or the folder holds another study, or one that is running; the
            message is for the user.
        RunFailed: a run failed; what is done stays done.
    """
    folder = output_folder(config.output_dir)
    config.output_dir = str(folder)
    check_model_path(config.model_name_or_path)
    _check_folder(config, folder)
    inputs = describe_inputs(check_runs(config, folder), config.model_name_or_path)
    training = config.training
    on_cpu = bool(training.get("use_cpu")) or not torch.accelerator.is_available()
    bf16 = training.get("bf16", not training.get("fp16"))  # as TRL
    for warning in bfloat16_warnings(on_cpu=on_cpu, bf16=bf16, dtype=config.model.get("dtype")):
        logger.warning(warning)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "study.lock", timeout=0):
            settle_inputs(folder, inputs)
            return _study(config, folder, jobs)
    except Timeout:
        raise ValueError(
            f"output_dir={config.output_dir!r}: a study is running there. Wait for it, or choose another output_dir."
        ) from None


def _study(config: StudyConfig, folder: Path, jobs: int) -> Path:
    for path in folder.glob("memory/*.part"):  # of a run that was killed
        path.unlink()
    _run_all(config, [PREPARATION], 1, "Preparing")  # with all cores
    tuning = config.tuning_runs()
    _run_all(config, tuning, jobs, "Choosing learning rates")
    tried = validation_accuracies(config, {run: _result(folder, run) for run in tuning})
    grid = config.grid_runs(choose_learning_rates(config, tried))
    _run_all(config, grid, jobs, "Running the grid")
    write_report(config, tried, {run: folder / "runs" / run.name for run in grid}, folder)
    return folder


def report_done(config: StudyConfig) -> Path:
    """Report on the grid's runs that are done, and start none; returns the study's folder.

    A method has no runs of so many epochs yet while those that choose its learning rate there are not all done.

    Raises:
        ValueError, OSError: as `study`, and where no run of the grid is done.
    """
    folder = output_folder(config.output_dir)
    config.output_dir = str(folder)
    _check_folder(config, folder)
    tuning = config.tuning_runs()
    missing = {(run.method, run.epochs) for run in tuning if not _is_done(config, run)}
    known = [run for run in tuning if (run.method, run.epochs) not in missing]
    tried = validation_accuracies(config, {run: _result(folder, run) for run in known})
    grid = [
        run
        for run in config.grid_runs(choose_learning_rates(config, tried))
        if (run.method, config.tuning_epochs(run.epochs)) not in missing and _is_done(config, run)
    ]
    if not grid:
        raise ValueError(f"output_dir={config.output_dir!r}: no run of the grid is done there. Run the study first.")
    write_report(config, tried, {run: folder / "runs" / run.name for run in grid}, folder)
    return folder


def _check_folder(config: StudyConfig, folder: Path) -> None:
    """Refuse a folder with runs of another study, or of other methods and noise by the same names."""
    for path in sorted(folder.glob(f"runs/*/{SETTINGS}")):
        made = read_json(path).get("shared", {})
        wrong = [key for key, value in config.shared.items() if made.get(key) != value]
        if wrong:
            differing = ", ".join(f"{key}={made.get(key)!r}" for key in wrong)
            raise ValueError(
                f"output_dir={str(folder)!r} holds runs of another study, with {differing} ({path.parent.name}). "
                "Choose another output_dir."
            )
    for run in [PREPARATION, *config.possible_runs()]:
        _is_done(config, run)


def _result(folder: Path, run: Run) -> dict[str, Any]:
    return read_json(folder / "runs" / run.name / RESULT)


def _is_done(config: StudyConfig, run: Run) -> bool:
    folder = Path(config.output_dir) / "runs" / run.name
    if not (folder / RESULT).is_file():
        return False
    if read_json(folder / RESULT).get("settings") != config.settings(run):
        raise ValueError(
            f"output_dir={config.output_dir!r}: the run {run.name} was made with another definition of its method or "
            "noise. Choose another output_dir or label, or delete the run's folder."
        )
    return True


def _run_all(config: StudyConfig, runs: Iterable[Run], jobs: int, title: str) -> None:
    """Run those that are not done, `jobs` at a time."""
    runs = list(runs)
    missing = [run for run in runs if not _is_done(config, run)]
    if not missing:
        return
    bar = _Bar(runs, missing, title)
    slots = list(range(jobs))
    reading, writing = map(os.fdopen, os.pipe(), "rw")  # no started process inherits one unless it is handed over
    with reading as lifeline, ThreadPoolExecutor(jobs) as pool, bar, writing:
        waiting = iter(missing)
        started = zip(slots, waiting, strict=False)

        def launch(run: Run, slot: int) -> Future:
            return pool.submit(_launch, config, run, slot, jobs, lifeline)

        running = {launch(run, slot): (run, slot) for slot, run in started}
        try:
            while running:
                done, _ = wait(running, SECONDS_UNCHANGED, return_when=FIRST_COMPLETED)
                bar.refresh()
                for future in done:
                    run, slot = running.pop(future)
                    future.result()
                    bar.done(run)
                    following = next(waiting, None)
                    if following is not None:
                        running[launch(following, slot)] = (following, slot)
        except Exception:
            wait(running)  # what the others do is not lost
            raise


class _Bar(tqdm):
    """A bar over runs, with an estimate of the time left: a run of three epochs takes as long as three of one."""

    def __init__(self, runs: list[Run], missing: list[Run], title: str) -> None:
        self._made, self._missing = 0.0, sum(run.epochs for run in missing)
        form = "{l_bar}{bar}| {n_fmt}/{total_fmt} runs, {elapsed} so far, {left} left"
        super().__init__(total=len(runs), initial=len(runs) - len(missing), desc=title, bar_format=form)

    def done(self, run: Run) -> None:
        self._made += run.epochs
        self._missing -= run.epochs
        self.update()

    @property
    def format_dict(self) -> dict[str, Any]:
        known = super().format_dict
        seconds = known["elapsed"] * self._missing / self._made if self._made else None
        return known | {"left": "?" if seconds is None else self.format_interval(seconds)}


def _environment(slot: int, jobs: int) -> dict[str, str]:
    """Of the process in a slot: it sees the slot's GPU, or has its share of the cores."""
    environment = dict(os.environ)
    gpus = torch.cuda.device_count()
    if gpus:
        visible = environment.get("CUDA_VISIBLE_DEVICES")  # those that the user leaves to this study
        names = visible.split(",") if visible else [str(index) for index in range(gpus)]
        environment["CUDA_VISIBLE_DEVICES"] = names[slot % gpus]
    else:
        cores = psutil.cpu_count(logical=False) or 1
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // jobs)))
    return environment


def _launch(config: StudyConfig, run: Run, slot: int, jobs: int, lifeline: IO[str]) -> None:
    """Run one run in a process of its own, in one of so many slots, until the lifeline's end."""
    folder = Path(config.output_dir) / "runs" / run.name
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / SETTINGS
    write_json(settings, config.settings(run))
    launch = ["accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no"]
    launch += ["--dynamo_backend", "no", "--module", "trl_capo.study.run", str(settings), WITH_STUDY]
    with (folder / LOG).open("w", encoding="utf-8") as log:
        code = subprocess.run(
            [sys.executable, "-m", *launch],
            env=_environment(slot, jobs),
            stdin=lifeline,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    if code != 0:
        lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        said = [line[len(ERROR) :] for line in lines if line.startswith(ERROR)] or lines[-1:]
        raise RunFailed(f"the run {run.name} failed ({folder / LOG}): {said[-1] if said else f'exit code {code}'}")
