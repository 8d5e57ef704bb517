"""bfloat16 on a processor without arithmetic for it is warned of, where a training begins or is looked at before."""

import platform
from pathlib import Path

import pytest
import torch
import yaml
from dry_run_fixtures import runner, without_weights  # noqa: F401
from filelock import FileLock
from study_data import TRAINING, plan, save_splits

from trl_capo import CAPOTrainer, cli, precision

SAID = "training in bfloat16 on a processor without arithmetic for it"


@pytest.fixture(params=[True, False], ids=["lacking", "having"])
def lacking(request, monkeypatch) -> bool:
    """Both kinds of processors, of which the machine is one."""
    monkeypatch.setattr(precision, "lacks_bfloat16", lambda: request.param)
    return request.param


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists(), reason="knows the flags of x86 on Linux"
)
def test_what_the_processor_lacks_is_what_its_flags_lack():
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    flags = set(next(line for line in lines if line.startswith("flags")).split())
    has = {"avx512bw", "avx512vl", "avx512dq"} <= flags or "avx_ne_convert" in flags
    assert precision.lacks_bfloat16() is not has


@pytest.mark.parametrize(
    ("bf16", "dtype", "remedy"),
    [
        (True, "float32", "Set bf16: false."),
        (True, torch.bfloat16, "Set bf16: false and dtype: float32."),
        (False, "bfloat16", "Set dtype: float32."),
        (False, torch.float32, None),
        (None, None, None),
    ],
)
def test_the_remedy_names_what_asks_for_it(lacking, bf16, dtype, remedy):
    said = precision.bfloat16_warnings(on_cpu=True, bf16=bf16, dtype=dtype)
    assert [line.removeprefix(f"{SAID} can take a hundred times as long as in float32. ") for line in said] == (
        [remedy] if lacking and remedy else []
    )
    assert precision.bfloat16_warnings(on_cpu=False, bf16=bf16, dtype=dtype) == []


def test_a_training_says_it_once(lacking, make_args, model_dir, pairs, caplog):
    for bf16, times in ((True, lacking), (False, 0)):
        caplog.clear()
        trainer = CAPOTrainer(model=model_dir, args=make_args(bf16=bf16, max_steps=1), train_dataset=pairs)
        assert SAID not in caplog.text
        trainer.train()
        assert caplog.text.count(SAID) == times


def test_a_dry_run_says_it(lacking, dry_run):
    assert SAID not in dry_run()[1]
    code, output = dry_run(bf16=True, dtype="bfloat16")
    assert code == 0
    assert ("Set bf16: false and dtype: float32." in output) is lacking
    assert f"0 problems, {lacking:d} warning" in output


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has a GPU")
def test_a_dry_run_for_another_machine_does_not_speak_of_this_one(lacking, dry_run):
    code, output = dry_run(use_cpu=None, bf16=True)
    assert (code, SAID in output) == (0, False)
    assert "1 warning." in output


@pytest.mark.parametrize(
    ("named", "remedy"),
    [
        ({"bf16": True}, "Set bf16: false and dtype: float32."),
        ({}, "Set bf16: false and dtype: float32."),
        ({"fp16": True}, "Set dtype: float32."),
        ({"bf16": False}, "Set dtype: float32."),
    ],
)
def test_a_study_says_it_before_it_starts(lacking, named, remedy, tmp_path, model_dir, caplog):
    """One that finds its folder taken has said it, and starts no run. Where it does not name `bf16`, TRL has it on."""
    training = {name: value for name, value in TRAINING.items() if name != "bf16"} | named
    told = plan(model_dir, save_splits(tmp_path), tmp_path / "out", training=training)
    told["model"] = {"dtype": "bfloat16"}
    (tmp_path / "plan.yaml").write_text(yaml.dump(told))
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / "study.lock"):
        assert cli.main(["study", "--config", str(tmp_path / "plan.yaml")]) == 2
    assert caplog.text.count(remedy) == lacking
