"""The launch recipes, read by Accelerate itself, the Slurm script, and SIGTERM to real launchers on the CPU."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from conftest import CPU_ARGUMENTS, free_port
from trl.cli.accelerate_config import resolve_accelerate_config_argument

from trl_capo.callbacks.preemption import last_complete_checkpoint

PROJECT = Path(__file__).parents[2]
RECIPES = sorted((PROJECT / "configs" / "accelerate").glob("*.yaml"))
OPTION = {"single": None, "fsdp2": "use_fsdp", "zero2": "use_deepspeed", "zero3": "use_deepspeed"}  # of the launcher


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_accelerate_reads_every_recipe_and_its_command_runs_as_it_stands(recipe):
    option = OPTION.get(recipe.stem, "multi_gpu")
    config = load_config_from_file(str(recipe))  # refuses unknown keys
    assert config.num_machines == (2 if recipe.stem == "multi_node" else 1)
    head = recipe.read_text().split("\n\n")[0].replace("#", "").replace("\\\n", " ")
    words = shlex.split(head[head.index("trl-capo train") :].split("\n")[0])[2:]
    assert f"configs/accelerate/{recipe.name}" in words
    assert (PROJECT / words[words.index("--config") + 1]).is_file()
    options = ["--config_file", str(recipe), *words[words.index("--accelerate_config") + 2 :], "script.py"]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(options))
    assert all(getattr(arguments, name) == (name == option) for name in ("use_fsdp", "use_deepspeed", "multi_gpu"))
    assert arguments.num_processes == config.num_processes
    assert arguments.mixed_precision == "no"  # anything else would outrank `bf16: false` without a message
    assert option != "use_deepspeed" or arguments.zero_stage == int(recipe.stem[-1])
    assert option != "use_fsdp" or (arguments.fsdp_version, arguments.fsdp_state_dict_type) == (2, "FULL_STATE_DICT")


@pytest.mark.parametrize("recipe", ["multi_gpu", pytest.param("single", marks=pytest.mark.slow)])
def test_sigterm_to_the_launcher_saves_a_checkpoint(tmp_path, model_dir, pairs, recipe):
    """To the launcher alone, as a script sends it, or to all its processes, as Slurm does: exit code 143."""
    pairs.to_json(tmp_path / "train.jsonl", force_ascii=False)
    options = CPU_ARGUMENTS | {"max_steps": 100_000, "output_dir": str(tmp_path / "output"), "logging_steps": 10}
    options |= {"model_name_or_path": model_dir, "dataset_name": str(tmp_path / "train.jsonl"), "learning_rate": 1e-5}
    options |= {"accelerate_config": str(PROJECT / "configs" / "accelerate" / f"{recipe}.yaml")}
    options |= {"num_processes": 2, "main_process_port": free_port()} if recipe == "multi_gpu" else {}
    (tmp_path / "run.yaml").write_text(yaml.dump(options))
    command = [sys.executable, "-m", "trl_capo.cli", "train", "--config", str(tmp_path / "run.yaml")]
    environment, log = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}, tmp_path / "log"
    with log.open("w") as file:
        launcher = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
    while "'loss'" not in log.read_text():
        assert launcher.poll() is None, log.read_text()
        time.sleep(0.2)
    (os.killpg if recipe == "single" else os.kill)(launcher.pid, signal.SIGTERM)
    assert launcher.wait(timeout=120) == 143, log.read_text()
    assert last_complete_checkpoint(tmp_path / "output") is not None
    assert not (tmp_path / "output" / "model.safetensors").exists()
    assert log.read_text().count("SIGTERM: training stopped after step") == 1


SRUN = """#!/bin/bash
while [ "$1" != bash ]; do shift; done
for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@" || code=$?; done
exit ${code:-0}
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then printf 'first\\nsecond\\n'; else echo "$@" >> requeued; fi"""
COMMAND = """#!/bin/bash
printf '%q ' "$@" >> command.log; echo >> command.log; exit $CODE"""


@pytest.mark.parametrize("code", [0, 143])
def test_the_slurm_script_starts_every_machine_and_queues_a_stopped_job_again(tmp_path, code):
    """srun, scontrol and trl-capo are scripts; Accelerate's launcher reads the arguments of the last."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("trl-capo", COMMAND)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8"}
    job |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CODE": str(code)}
    command = ["bash", str(PROJECT / "scripts" / "slurm" / "train.sbatch"), "--run_name", "two words"]
    assert subprocess.run(command, cwd=tmp_path, env=os.environ | job, check=False).returncode == code
    assert [path.read_text() for path in tmp_path.glob("requeued")] == ["requeue 123456\n"] * (code == 143)
    lines = (tmp_path / "command.log").read_text().splitlines()
    assert len(lines) == 2
    for rank, words in enumerate(map(shlex.split, lines)):
        place = words.index("--resume_from_checkpoint")
        assert words[place:] == ["--resume_from_checkpoint", "true", "--run_name", "two words"]
        launch = [str(PROJECT / word) if "accelerate/" in word else word for word in words[1:place]]
        config = launch.index("--config")
        assert launch[config + 1] == "configs/lora.yaml"
        launch = resolve_accelerate_config_argument(launch[:config] + launch[config + 2 :])
        arguments, *_ = _validate_launch_command(launch_command_parser().parse_args([*launch, "script.py"]))
        assert (arguments.num_machines, arguments.machine_rank, arguments.num_processes) == (2, rank, 16)
        assert (arguments.main_process_ip, arguments.main_process_port) == ("first", 20000 + 123456 % 10000)
