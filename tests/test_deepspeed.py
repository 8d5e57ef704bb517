"""ZeRO-2 and ZeRO-3 on two CPU processes train as one process does.

DeepSpeed is no dependency: these tests run where it is installed (it compiles one small library for the CPU), and else
say that it is not. Its configuration files are read in test_cluster.py in any case.
"""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch
from conftest import free_port
from test_distributed import assert_same_training, run
from training_cases import train

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed (make test-deepspeed)"
)

AUTOMATIC = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size", "gradient_clipping")


@pytest.mark.parametrize("stage", [2, 3])
def test_two_processes_train_as_one(model_dir, other_model_dir, pairs, tmp_path, stage):
    """ZeRO-3 keeps the weights in parts, so that of them only what they compute is compared."""
    pairs.save_to_disk(tmp_path / "data")
    models = [model_dir, other_model_dir, model_dir]
    port = free_port()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    run([*launcher, __file__, str(tmp_path), str(stage), *models], OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu")
    expected, found = train("full", tmp_path, *models), torch.load(tmp_path / "0.pt")
    if stage == 3:
        expected["steps"] = found["steps"] = [{}] * 8
    assert_same_training(expected, found)
    assert found["stage"] == stage


if __name__ == "__main__":  # one of the processes that torchrun starts
    import deepspeed

    place, stage, *models = Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
    deepspeed.init_distributed("gloo")  # before Accelerate, which on the CPU would leave DeepSpeed out
    config = dict.fromkeys(AUTOMATIC, "auto") | {"zero_optimization": {"stage": stage}}
    config |= {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    sizes = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}
    result = train("full", place, *models, processes=2, deepspeed=config, **sizes)
    torch.save(result | {"stage": stage}, place / f"{os.environ['RANK']}.pt")
    os._exit(0)  # DeepSpeed's communication on the CPU fails when Python ends
