"""On one or two GPUs, every launch recipe trains without padding as one process on the CPU does, and resumes."""

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

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")]
PROJECT = Path(__file__).parents[2]
OPTIONS = CPU_ARGUMENTS | {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "logging_steps": 2}
OPTIONS |= {"learning_rate": 2e-3, "noise_rate": "auto", "gradient_checkpointing": False}
LORA = {"use_peft": True, "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "lora_target_modules": ["q_proj"]}
WAYS = {"full": {}, "LoRA": LORA, "QLoRA": LORA | {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}
KEYS = ("loss", "grad_norm", "rewards/margins", "capo/noise_rate", "capo/scale", "rewards/accuracies/de")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("recipe", ["single", "multi_gpu", "fsdp2", "zero2", "zero3"])
def test_recipe_trains_as_one_process_on_the_cpu_and_resumes(pairs, tmp_path, recipe, way):
    if recipe.startswith("zero"):
        pytest.importorskip("deepspeed")
    if way == "QLoRA" and recipe in ("zero3", "fsdp2"):
        pytest.skip("4-bit weights are for recipes that keep the model whole (docs/cluster.md)")
    model = save_tiny_model(tmp_path / "model", seed=0, config=tiny_config(hidden_size=64))
    pairs.to_json(tmp_path / "train.jsonl", force_ascii=False)
    processes = 1 if recipe == "single" else min(2, torch.cuda.device_count())
    options = OPTIONS | WAYS[way] | {"use_cpu": False, "dtype": "float32", "padding_free": True}
    options |= {"resume_from_checkpoint": True}
    options |= {"dataset_name": str(tmp_path / "train.jsonl"), "output_dir": str(tmp_path / "output")}
    options |= {"per_device_train_batch_size": 4 // processes, "num_processes": processes, "model_name_or_path": model}
    options |= {"accelerate_config": str(PROJECT / "configs" / "accelerate" / f"{recipe}.yaml")}

    def train() -> dict[str, list[float]]:
        (tmp_path / "run.yaml").write_text(yaml.dump(options | {"main_process_port": free_port()}))
        command = [sys.executable, "-m", "trl_capo.cli", "train", "--config", str(tmp_path / "run.yaml")]
        subprocess.run(command, timeout=600, env={**os.environ, "PYTHONPATH": str(PROJECT)}, check=True)
        state = json.loads((tmp_path / "output" / "checkpoint-6" / "trainer_state.json").read_text())
        return {key: [entry[key] for entry in state["log_history"] if key in entry] for key in KEYS}

    logs, args = train(), CAPOConfig(**OPTIONS | {"output_dir": str(tmp_path / "cpu")})
    lora = {} if way == "full" else {"peft_config": LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"])}
    if way == "QLoRA":
        lora["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    trainer = CAPOTrainer(model, args=args, train_dataset=pairs, **lora)
    trainer.train()
    tolerance = {"rel": 0.2 if way == "QLoRA" else 0.02, "abs": 0.02}  # 4-bit kernels round as each device does
    assert logs == {key: pytest.approx(logged(trainer, key), **tolerance) for key in KEYS}
    shutil.rmtree(tmp_path / "output" / "checkpoint-6")
    tolerance = {"rel": 0.02 if way == "QLoRA" else 1e-3, "abs": 1e-4}
    assert train() == {key: pytest.approx(values, **tolerance) for key, values in logs.items()}
