"""The launch recipes: every file of configs/accelerate through Accelerate's own reading, and the Slurm script.

Several processes and SIGTERM are run for real on the CPU; what needs GPUs is in test_gpu.py.
"""

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
from accelerate.utils import FullyShardedDataParallelPlugin, patch_environment
from accelerate.utils.launch import prepare_multi_gpu_env
from conftest import CPU_ARGUMENTS, free_port
from trl.cli.accelerate_config import resolve_accelerate_config_argument

from trl_capo.checkpoints import find_fault

PROJECT = Path(__file__).parents[1]
RECIPES = sorted((PROJECT / "configs" / "accelerate").glob("*.yaml"))
# distributed_type, machines, and what must follow from it: FSDP, DeepSpeed, or several processes.
EXPECTED = {
    "single": ("NO", 1, None),
    "multi_gpu": ("MULTI_GPU", 1, "multi_gpu"),
    "multi_node": ("MULTI_GPU", 2, "multi_gpu"),
    "fsdp2": ("FSDP", 1, "use_fsdp"),
    "zero2": ("DEEPSPEED", 1, "use_deepspeed"),
    "zero3": ("DEEPSPEED", 1, "use_deepspeed"),
}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_accelerate_reads_every_recipe(recipe):
    """Its loader refuses keys that it does not know; its launcher takes the way that the file is for."""
    distributed_type, machines, way = EXPECTED[recipe.stem]
    config = load_config_from_file(str(recipe))
    assert (config.distributed_type.value, config.num_machines) == (distributed_type, machines)
    head = recipe.read_text().split("\n\n")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    command = head[head.index("trl-capo train") :].replace("#", "").replace("\\\n", " ")
    words = shlex.split(command.split("\n")[0])[2:]
    assert f"configs/accelerate/{recipe.name}" in words
    assert (PROJECT / words[words.index("--config") + 1]).is_file()
    options = ["--config_file", str(recipe), *words[words.index("--accelerate_config") + 2 :], "script.py"]
    arguments, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(options))
    for name in ("use_fsdp", "use_deepspeed", "multi_gpu"):
        assert getattr(arguments, name) == (name == way), name
    assert arguments.num_processes == config.num_processes
    assert arguments.mixed_precision == "no"  # anything else would outrank `bf16: false`, in silence
    if way == "use_deepspeed":
        assert arguments.zero_stage == int(recipe.stem[-1])
    if way == "use_fsdp":
        with patch_environment(**prepare_multi_gpu_env(arguments)):
            plugin = FullyShardedDataParallelPlugin()
        assert plugin.fsdp_version == 2
        assert plugin.reshard_after_forward
        assert plugin.state_dict_type.name == "FULL_STATE_DICT"


def test_every_recipe_is_known():
    assert {recipe.stem for recipe in RECIPES} == set(EXPECTED)


@pytest.mark.parametrize(("bf16", "precision"), [(False, "no"), (True, "bf16")])
def test_the_precision_is_the_trainings(make_args, monkeypatch, bf16, precision):
    """Under a launcher that has none of its own, as with these recipes."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert make_args(bf16=bf16).mixed_precision == precision


@pytest.fixture
def run_config(tmp_path, model_dir, pairs) -> Path:
    """A long training on the CPU that saves nothing by itself."""
    pairs.to_json(tmp_path / "train.jsonl", force_ascii=False)
    options = CPU_ARGUMENTS | {"max_steps": 100_000, "output_dir": str(tmp_path / "output"), "logging_steps": 10}
    options |= {"model_name_or_path": model_dir, "dataset_name": str(tmp_path / "train.jsonl"), "learning_rate": 1e-5}
    (tmp_path / "run.yaml").write_text(yaml.dump(options))
    return tmp_path / "run.yaml"


@pytest.mark.parametrize(("recipe", "whole_group"), [("single", False), ("multi_gpu", True)])
def test_sigterm_to_the_launcher_saves_a_checkpoint(run_config, recipe, whole_group):
    """To the launcher alone, as a script does it, and to all its processes, as Slurm does it: exit code 143."""
    port = free_port()
    command = [sys.executable, "-m", "trl_capo.cli", "train", "--config", str(run_config), "--accelerate_config"]
    command += [str(PROJECT / "configs" / "accelerate" / f"{recipe}.yaml")]
    command += ["--num_processes", "2", "--main_process_port", str(port)] if recipe == "multi_gpu" else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    log, output = run_config.with_name("log"), run_config.with_name("output")
    with log.open("w") as file:
        launcher = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
    while "'loss'" not in log.read_text():
        assert launcher.poll() is None, log.read_text()
        time.sleep(0.2)
    (os.killpg if whole_group else os.kill)(launcher.pid, signal.SIGTERM)
    assert launcher.wait(timeout=120) == 143, log.read_text()
    (checkpoint,) = output.glob("checkpoint-*")
    assert find_fault(checkpoint) is None
    assert not (output / "model.safetensors").exists()  # it is not completed
    assert "SIGTERM: training stopped after step" in log.read_text()


SRUN = """#!/bin/bash
while [ "$1" != bash ]; do shift; done
for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@" || code=$?; done
exit ${code:-0}
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then printf 'first\\nsecond\\n'; else echo "$@" >> scontrol.log; fi
"""
COMMAND = """#!/bin/bash
printf '%q ' "$@" >> command.log; echo >> command.log; exit $CODE
"""


@pytest.mark.parametrize("code", [0, 1, 143])
def test_slurm_script_starts_every_machine_and_queues_what_was_stopped_again(tmp_path, code):
    """srun, scontrol and trl-capo stand in; what the last gets is read by Accelerate's launcher."""
    script = PROJECT / "scripts" / "slurm" / "train.sbatch"
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("trl-capo", COMMAND)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8"}
    environment = {**os.environ, **job, "PATH": f"{tmp_path}:{os.environ['PATH']}", "CODE": str(code)}
    command = ["bash", str(script), "--run_name", "two words"]
    assert subprocess.run(command, cwd=tmp_path, env=environment, check=False).returncode == code
    requeued = (tmp_path / "scontrol.log").read_text() if (tmp_path / "scontrol.log").exists() else ""
    assert requeued == ("requeue 123456\n" if code == 143 else "")
    for rank, line in enumerate((tmp_path / "command.log").read_text().splitlines()):
        words = shlex.split(line)
        launch, own = words[1 : (split := words.index("--resume_from_checkpoint"))], words[split:]
        assert own == ["--resume_from_checkpoint", "true", "--run_name", "two words"]
        config = launch.index("--config")
        assert launch[config + 1] == "configs/lora.yaml"
        del launch[config : config + 2]
        launch = resolve_accelerate_config_argument(
            [str(PROJECT / word) if "accelerate/" in word else word for word in launch]
        )
        arguments, *_ = _validate_launch_command(launch_command_parser().parse_args([*launch, "script.py"]))
        place = (arguments.num_machines, arguments.machine_rank, arguments.num_processes, arguments.main_process_ip)
        assert place == (2, rank, 16, "first")
        assert arguments.main_process_port == 20000 + 123456 % 10000
    assert rank == 1
