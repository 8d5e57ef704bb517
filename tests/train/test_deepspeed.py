"""ZeRO-2 and ZeRO-3 on two CPU processes train as one process does; `make test-all` installs DeepSpeed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CPU_ARGUMENTS, free_port, make_pairs

from trl_capo import CAPOConfig, CAPOTrainer

AUTOMATIC = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size", "gradient_clipping")
KEYS = ("loss", "rewards/margins", "capo/noise_rate", "capo/noise_rate/de", "capo/scale", "rewards/accuracies/sw")


def train(folder: str, model: str, **options) -> list[dict]:
    """Train for 8 steps of 4 pairs, into the second epoch, and return the logs."""
    options = CPU_ARGUMENTS | {"learning_rate": 2e-3, "max_steps": 8, "output_dir": f"{folder}/output"} | options
    trainer = CAPOTrainer(model, args=CAPOConfig(**options), train_dataset=make_pairs())
    trainer.train()
    return [{key: entry.get(key) for key in KEYS} for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["2", "3"])
def test_two_processes_train_as_one(model_dir, tmp_path, stage):
    pytest.importorskip("deepspeed")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([*command, __file__, str(tmp_path), model_dir, stage], timeout=600, env=environment, check=True)
    expected = [pytest.approx(entry, rel=2e-3, abs=1e-5) for entry in train(str(tmp_path), model_dir)]
    assert json.loads((tmp_path / "logs.json").read_text()) == expected


if __name__ == "__main__":  # one of the processes that torchrun starts
    import deepspeed

    folder, model, stage = sys.argv[1:]
    deepspeed.init_distributed("gloo")  # before Accelerate, which on the CPU would leave DeepSpeed out
    zero = {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    config = dict.fromkeys(AUTOMATIC, "auto") | zero | {"zero_optimization": {"stage": int(stage)}}
    logs = train(folder, model, deepspeed=config, per_device_train_batch_size=2)
    if os.environ["RANK"] == "0":
        Path(folder, "logs.json").write_text(json.dumps(logs))
    os._exit(0)  # DeepSpeed's communication on the CPU fails when Python ends
