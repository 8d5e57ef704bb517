"""How a study goes about its runs, with runs that are only simulated: tuning, slots, failures, interruptions."""

import json
import select
import signal
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import yaml
from filelock import FileLock
from study_data import plan, save_splits

from trl_capo.study import command as study_command
from trl_capo.study.config import Run, StudyConfig
from trl_capo.study.run import RESULT
from trl_capo.study.schedule import RunFailed, _Bar, _environment, _launch, report_done, study


@pytest.fixture
def fake(monkeypatch, tmp_path, model_dir):
    """A study whose runs only write results: validation accuracies by hand, and test margins that say the opposite.

    Returns the function that runs it, and the names of the runs in the order of their start, with their slots.
    """
    (tmp_path / "data").mkdir()
    data, started = save_splits(tmp_path / "data"), []

    def launch(config, run, slot, jobs, lifeline):
        started.append((run.name, slot))
        if run.name in fails:
            raise RunFailed(f"{run.name} failed")
        folder = Path(config.output_dir) / "runs" / run.name
        folder.mkdir(parents=True)
        best = {"dpo": 1e-2, "capo": 1e-3}[run.method]
        accuracy = 0.9 if run.learning_rate == best else 0.6
        result = {
            "settings": config.settings(run),
            "noise_shares": {"all": 0.0},
            "curve": [{"step": 3, "accuracy": accuracy}],
            "noise_rates": None,
            "versions": {},
        }
        result |= {"steps": 3, "seconds": 1.0, "peak_memory_bytes": 1}
        sign = -1 if run.learning_rate == best else 1  # on the test split it is the other way round
        np.savez(folder / "margins.npz", margins=sign * np.ones(6, np.float32), labels=np.array(list("abcabc")))
        (folder / RESULT).write_text(json.dumps(result))

    fails: set[str] = set()
    monkeypatch.setattr("trl_capo.study.schedule._launch", launch)
    tuning = {"noise": ["flip"], "seeds": [0], "epochs": 1}
    options = plan(model_dir, data, tmp_path / "out", learning_rates=[1e-2, 1e-3], tuning=tuning)

    def run(jobs=1, fail=(), report_only=False):
        fails.clear()
        fails.update(fail)
        if report_only:
            return report_done(StudyConfig(**options))
        started.clear()
        return study(StudyConfig(**options), jobs)

    return run, started


def test_learning_rates_are_chosen_by_tuning_runs_on_the_validation_split(fake):
    """dpo's best is 0.01, capo's 0.001, though on the test split it is the others: 1 + 4 + 6 of the grid's 8."""
    run, started = fake
    folder = run()
    names = [name for name, _ in started]
    assert names[0] == "dpo-none-seed0-0ep-lr0.00e+00"
    assert set(names[1:5]) == {
        f"{method}-flip-seed0-1ep-lr{rate}" for method in ("dpo", "capo") for rate in ("1.00e-02", "1.00e-03")
    }
    assert len(names) == 11
    assert all(name.endswith("lr1.00e-02" if name.startswith("dpo-") else "lr1.00e-03") for name in names[5:])
    report = (folder / "report.md").read_text()
    assert "| dpo | clean | 1 | 0, 1 | 0.01 |" in report
    assert "| capo | clean | 1 | 0, 1 | 0.001 |" in report
    assert "| dpo | 1 | 60.0 | 90.0 (chosen) |" in report
    assert "| capo | 1 | 90.0 (chosen) | 60.0 |" in report
    run()
    assert started == []


@pytest.mark.parametrize(
    ("visible", "gpus", "expected"),
    [
        (None, 0, [None, None]),
        (None, 2, ["0", "1", "0"]),
        ("2,5", 2, ["2", "5", "2"]),
        ("GPU-a", 1, ["GPU-a", "GPU-a"]),
    ],
)
def test_a_slot_has_one_of_the_gpus_that_the_user_leaves_to_the_study(
    visible, gpus, expected, monkeypatch, tmp_path, model_dir
):
    seen = []

    def run(command, env, **_):
        seen.append(env.get("CUDA_VISIBLE_DEVICES"))
        return subprocess.CompletedProcess(command, 0)

    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("trl_capo.study.schedule.torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("trl_capo.study.schedule.subprocess.run", run)
    config = StudyConfig(**plan(model_dir, "data", tmp_path))
    for slot in range(len(expected)):
        _launch(config, config.possible_runs()[0], slot, 2, None)
    assert seen == expected


@pytest.mark.parametrize(
    ("given", "jobs", "expected"), [(None, 1, "6"), (None, 4, "1"), (None, 8, "1"), ("3", 4, "3")]
)
def test_without_gpus_the_runs_share_the_cores(given, jobs, expected, monkeypatch):
    if given is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    monkeypatch.setattr("trl_capo.study.schedule.torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("trl_capo.study.schedule.psutil.cpu_count", lambda logical: 6)
    assert _environment(0, jobs)["OMP_NUM_THREADS"] == expected


def test_the_runs_that_are_done_can_be_reported_on(fake, tmp_path):
    """capo's learning rate is chosen and one of its four runs done, dpo's is still open; then all are done."""
    run, started = fake
    open_run, done = "dpo-flip-seed0-1ep-lr1.00e-02", "capo-flip-seed0-1ep-lr1.00e-03"
    folder = run()
    whole, results = (folder / "report.md").read_text(), {}
    for name, _ in started[1:]:
        if name not in (done, "capo-flip-seed0-1ep-lr1.00e-02"):
            results[name] = (folder / "runs" / name / RESULT).read_text()
            (folder / "runs" / name / RESULT).unlink()
    assert open_run in results
    run(report_only=True)
    part = (folder / "report.md").read_text()
    assert "1 of 8 runs are done." in part
    assert "| capo | 0.0 " in part
    assert "dpo |" not in part
    for name, text in results.items():
        (folder / "runs" / name / RESULT).write_text(text)
    started.clear()
    run(report_only=True)
    assert started == []
    assert (folder / "report.md").read_text() == whole


def test_without_a_run_there_is_nothing_to_report(fake):
    run, _ = fake
    with pytest.raises(ValueError, match="no run of the grid is done there"):
        run(report_only=True)


def test_an_interrupted_study_says_how_to_go_on(monkeypatch, tmp_path, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan("model", "data", tmp_path)))
    monkeypatch.setattr(study_command, "study", interrupt)
    assert study_command.main(["--config", str(tmp_path / "plan.yaml")]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_as_many_runs_at_a_time_as_jobs_each_in_a_slot_of_its_own(fake):
    run, started = fake
    run(jobs=3)
    assert {slot for _, slot in started} == {0, 1, 2}
    assert len({name for name, _ in started}) == len(started) == 11


def test_after_a_failure_no_run_is_started_and_what_is_done_stays(fake):
    run, started = fake
    last = "capo-flip-seed0-1ep-lr1.00e-02"
    with pytest.raises(RunFailed, match=last):
        run(fail=[last])
    assert started[-1][0] == last
    done = [name for name, _ in started[:-1]]
    run()
    assert not {name for name, _ in started} & set(done)
    assert started[0][0] == last


def test_one_study_at_a_time_works_in_a_folder(fake, tmp_path):
    run, started = fake
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / "study.lock"), pytest.raises(ValueError, match="a study is running there"):
        run()
    assert started == []
    run()
    assert len(started) == 11


def test_the_time_left_counts_epochs():
    """Of runs of 3, 1 and 1 epochs the first took 30 seconds: 10 an epoch, so 20 are left, and then 10."""
    runs = [Run("dpo", "clean", seed, epochs, 1e-2) for seed, epochs in enumerate((3, 1, 1))]
    bar = _Bar([Run("dpo", "flip", 0, 7, 1e-2), *runs], runs, "Running")  # one was done before
    with bar:
        assert "1/4 runs" in str(bar)
        assert "? left" in str(bar)
        for run, passed, left in zip(runs, (30, 40, 50), ("00:20", "00:10", "00:00"), strict=True):
            bar.start_t = bar._time() - passed
            bar.done(run)
            assert f"{left} left" in str(bar)
        assert "4/4 runs, 00:50 so far" in str(bar)


def test_an_interruption_ends_the_runs_that_are_going_on(fake, monkeypatch, request):
    """As by Ctrl-C: the runs wait for the other end of their lifeline, and the study for them."""
    run, _ = fake
    ended = []

    def wait_for_the_end(config, run, slot, jobs, lifeline):
        if len(ended) == slot == 0:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        ended.append(lifeline.read())

    monkeypatch.setattr("trl_capo.study.schedule._launch", wait_for_the_end)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with pytest.raises(KeyboardInterrupt):
        run(jobs=2)
    assert ended == [""]


def test_after_a_failure_the_other_runs_are_waited_for(fake, monkeypatch, tmp_path):
    run, _ = fake
    run(fail=[])  # all but one are done then
    names = [f"capo-flip-seed{seed}-1ep-lr1.00e-03" for seed in (0, 1)]
    for name in names:
        (tmp_path / "out" / "runs" / name / RESULT).unlink()
    failed, seen = threading.Event(), []

    def launch(config, run, slot, jobs, lifeline):
        if run.name == names[0]:
            failed.set()
            raise OSError("the disk is full")
        failed.wait(10)
        seen.extend(select.select([lifeline], [], [], 0.2)[0])

    monkeypatch.setattr("trl_capo.study.schedule._launch", launch)
    with pytest.raises(OSError, match="the disk is full"):
        run(jobs=2)
    assert seen == []
