"""On GPUs, every launch recipe trains as one process on the CPU does, and resumes.

With two GPUs or more, two processes share the work. `multi_node.yaml` is `multi_gpu.yaml` with more machines.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import CPU_ARGUMENTS, free_port, logged, save_tiny_model, tiny_config
from peft import LoraConfig
from transformers import BitsAndBytesConfig

from trl_capo import CAPOConfig, CAPOTrainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"),
]

PROJECT = Path(__file__).parents[2]
OPTIONS = CPU_ARGUMENTS | {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "logging_steps": 2}
OPTIONS |= {"learning_rate": 2e-3, "noise_rate": "auto", "gradient_checkpointing": False}
LORA = {
    "use_peft": True,
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "lora_target_modules": ["q_proj", "v_proj"],
}
WAYS = {"full": {}, "LoRA": LORA, "QLoRA": LORA | {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}
KEYS = ("loss", "grad_norm", "rewards/margins", "capo/noise_rate", "capo/scale", "rewards/accuracies/de")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model"), seed=0, config=tiny_config(hidden_size=64))


def trained(config: Path, recipe: str, *options: str) -> list[dict]:
    """The training logs of `trl-capo train` with a recipe, on at most two GPUs."""
    processes = 1 if recipe == "single" else min(2, torch.cuda.device_count())
    port = free_port()
    command = [sys.executable, "-m", "trl_capo.cli", "train", "--config", str(config)]
    command += ["--accelerate_config", str(PROJECT / "configs" / "accelerate" / f"{recipe}.yaml")]
    command += ["--num_processes", str(processes), "--main_process_port", str(port), *options]
    command += ["--per_device_train_batch_size", str(4 // processes)]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    state = json.loads((config.with_name("output") / "checkpoint-6" / "trainer_state.json").read_text())
    return [entry for entry in state["log_history"] if "loss" in entry]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("recipe", ["single", "multi_gpu", "fsdp2", "zero2", "zero3"])
def test_recipe_trains_as_one_process_on_the_cpu_and_resumes(model, pairs, tmp_path, recipe, way):
    if recipe.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    if way == "QLoRA" and recipe in ("zero3", "fsdp2"):
        pytest.skip("4-bit weights are for recipes that keep the model whole (docs/cluster.md)")
    pairs.to_json(tmp_path / "train.jsonl", force_ascii=False)
    options = {key: value for key, value in OPTIONS.items() if key != "use_cpu"} | WAYS[way]
    options |= {"model_name_or_path": model, "dataset_name": str(tmp_path / "train.jsonl"), "dtype": "float32"}
    (tmp_path / "run.yaml").write_text(yaml.dump(options | {"output_dir": str(tmp_path / "output")}))
    logs = trained(tmp_path / "run.yaml", recipe)

    args = CAPOConfig(**OPTIONS | {"output_dir": str(tmp_path / "cpu")})
    lora = {"peft_config": LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])} if way != "full" else {}
    if way == "QLoRA":
        lora["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    trainer = CAPOTrainer(model, args=args, train_dataset=pairs, **lora)
    trainer.train()
    tolerance = {"rel": 0.2 if way == "QLoRA" else 0.02, "abs": 0.02}  # 4-bit kernels round as each device does
    for key in KEYS:
        assert [entry[key] for entry in logs] == pytest.approx(logged(trainer, key), **tolerance), key

    shutil.rmtree(tmp_path / "output" / "checkpoint-6")
    again = trained(tmp_path / "run.yaml", recipe, "--resume_from_checkpoint", "true")
    for key in KEYS:
        expected = pytest.approx([entry[key] for entry in logs], rel=0.02 if way == "QLoRA" else 1e-3, abs=1e-4)
        assert [entry[key] for entry in again] == expected, key
