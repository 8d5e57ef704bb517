"""ZeRO-2 and ZeRO-3 on two CPU processes train as one process does.

DeepSpeed is no dependency and compiles a library, so `make test-all` installs it. test_cluster.py reads its recipes.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CPU_ARGUMENTS, free_port
from datasets import Dataset

from trl_capo import CAPOConfig, CAPOTrainer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"),
]
AUTOMATIC = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size", "gradient_clipping")
KEYS = ("loss", "rewards/margins", "capo/noise_rate", "capo/noise_rate/de", "capo/scale", "rewards/accuracies/sw")


def train(folder: Path, model: str, **options) -> list[dict]:
    """Train for 8 steps of 4 pairs, into the second epoch, and return the logs."""
    options = CPU_ARGUMENTS | {"learning_rate": 2e-3, "max_steps": 8, "output_dir": str(folder / "output")} | options
    trainer = CAPOTrainer(model, args=CAPOConfig(**options), train_dataset=Dataset.load_from_disk(folder / "data"))
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("stage", ["2", "3"])
def test_two_processes_train_as_one(model_dir, pairs, tmp_path, stage):
    pairs.save_to_disk(tmp_path / "data")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launcher += ["--master_port", str(free_port()), __file__, str(tmp_path), model_dir, stage]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = subprocess.run(launcher, capture_output=True, text=True, timeout=600, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found, expected = json.loads((tmp_path / "logs.json").read_text()), train(tmp_path, model_dir)
    for key in KEYS:
        values = [entry.get(key) for entry in expected]
        assert [entry.get(key) for entry in found] == pytest.approx(values, rel=2e-3, abs=1e-5), key


if __name__ == "__main__":  # one of the processes that torchrun starts
    import deepspeed

    place, model, stage = Path(sys.argv[1]), *sys.argv[2:]
    deepspeed.init_distributed("gloo")  # before Accelerate, which on the CPU would leave DeepSpeed out
    config = dict.fromkeys(AUTOMATIC, "auto") | {"zero_optimization": {"stage": int(stage)}}
    config |= {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    logs = train(place, model, deepspeed=config, per_device_train_batch_size=2)
    if os.environ["RANK"] == "0":
        (place / "logs.json").write_text(json.dumps(logs))
    os._exit(0)  # DeepSpeed's communication on the CPU fails when Python ends
