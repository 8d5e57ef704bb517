"""`trl-capo train`: the same training as in Python, and its exit codes."""

import json
import logging
import math
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from conftest import CPU_ARGUMENTS, as_conversation, byte_tokenizer, forked, logged
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from trl_capo import CAPOTrainer
from trl_capo.callbacks.pair_log import read_log
from trl_capo.common.fingerprint import fingerprint
from trl_capo.data.noise import NoiseArguments, inject_noise
from trl_capo.train.card import CardTrainer, describe
from trl_capo.train.command import main

OPTIONS = CPU_ARGUMENTS | {"learning_rate": 2e-3, "noise_rate": 0.25, "beta": 0.3}
SAVE = {"save_strategy": "steps", "save_steps": 3}


@pytest.fixture
def write_config(tmp_path, model_dir, pairs):
    """Writes a YAML file for a quick run and returns its path; keywords win, and None leaves a key out."""
    pairs.to_json(tmp_path / "train.jsonl", force_ascii=False)

    def write(**changes) -> str:
        config = {"model_name_or_path": model_dir, "dataset_name": str(tmp_path / "train.jsonl")}
        config |= OPTIONS | {"output_dir": str(tmp_path / "output")} | changes
        (tmp_path / "run.yaml").write_text(yaml.dump({k: v for k, v in config.items() if v is not None}))
        return str(tmp_path / "run.yaml")

    return write


@pytest.fixture
def assert_same(make_args, model_dir, pairs, tmp_path):
    """Trains in Python with the arguments of the YAML file; keywords win. Losses and saved weights must be equal."""

    def check(peft_config=None, train_dataset=pairs, file="model.safetensors", **changes) -> None:
        args = make_args(**OPTIONS | {"output_dir": None} | changes)
        trainer = CAPOTrainer(model_dir, args=args, train_dataset=train_dataset, peft_config=peft_config)
        trainer.train()
        (state,) = tmp_path.glob("output/checkpoint-*/trainer_state.json")
        history = json.loads(state.read_text())["log_history"]
        assert [entry["loss"] for entry in history if "loss" in entry] == logged(trainer, "loss")
        expected = trainer.model.state_dict()
        for name, tensor in load_file(tmp_path / "output" / file).items():
            name = name.replace(".weight", ".default.weight") if "lora" in name else name
            assert torch.equal(tensor, expected[name])

    return check


def train(*words: str, trainer=CardTrainer) -> int:
    """The command in a forked process, in which pytest no longer takes the warnings."""
    logging.getLogger("trl_capo").addHandler(logging.StreamHandler())
    sys.modules["trl_capo.train.command"].CardTrainer = trainer
    return main(words)


def test_the_installed_command_trains_as_python_does_and_options_win_over_the_file(write_config, assert_same):
    """noise_rate comes from the file, max_steps from both, the others from the command line, one with dashes."""
    config = write_config(max_steps=1, beta=0.9, num_processes=1, **SAVE)
    command = [Path(sys.executable).with_name("trl-capo"), "train", "--config", config, "--max_steps", "3"]
    subprocess.run([*command, "--beta=0.5", "--confidence-temperature", "0.7"], timeout=300, check=True)
    assert_same(beta=0.5, confidence_temperature=0.7)


def test_accelerate_launches_the_module_with_lora_and_a_file_of_trl_dpo(write_config, assert_same):
    """The file has TRL's keys only, and options of `accelerate launch`; the rate is estimated."""
    lora = {"lora_r": 3, "lora_alpha": 6, "lora_target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.05}
    config = write_config(noise_rate=None, num_processes=1, use_peft=True, **lora, **SAVE)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    subprocess.run([*command, "--module", "trl_capo.train.command", "--config", config], timeout=300, check=True)
    lora = LoraConfig(r=3, lora_alpha=6, lora_dropout=0.05, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    assert_same(lora, file="adapter_model.safetensors", noise_rate="auto")


@pytest.mark.parametrize("named", [True, "logs"])
def test_noise_and_the_pair_log(write_config, assert_same, tmp_path, pairs, monkeypatch, named):
    monkeypatch.chdir(tmp_path)
    noise = {"inject_noise": "flip", "inject_rate": {"de": 0.5, "*": 0.2}, "inject_seed": 3}
    code, _, err = forked(train, "--config", write_config(**SAVE, **noise, pair_log=named))
    assert (code, err.count("inject_noise changed")) == (0, 1), err
    noisy = inject_noise(pairs, "flip", noise["inject_rate"], seed=3)
    assert_same(train_dataset=noisy)
    info = read_log(tmp_path / ("output/pair_log" if named is True else "logs")).info
    assert (info.pairs, info.fingerprint) == (24, fingerprint(noisy))
    source = {"dataset_name": str(tmp_path / "train.jsonl"), "dataset_config": None, "dataset_train_split": "train"}
    assert info.source == source | {"group_column": "auto", "inject_score_column": None} | noise


def test_pairs_that_do_not_fit_are_counted_by_group_and_the_model_card_has_the_others(write_config, pairs, tmp_path):
    code, out, err = forked(
        train, "--config", write_config(max_length=16, eval_strategy="steps", dataset_test_split="train")
    )
    lost = Counter(row["language"] for row in pairs if len(row["prompt"].encode()) >= 16)
    assert code == 0, err
    for name in ("train_dataset", "eval_dataset"):
        assert f"{name}: max_length=16 drops pairs whose prompt alone fills it (all pairs {lost.total()} of 24" in err
    assert all(f"{name} {number} of 8" in err for name, number in lost.items())
    card = (tmp_path / "output" / "README.md").read_text(encoding="utf-8")
    (accuracy,) = re.findall(r"'eval_rewards/accuracies/de': '([^']*)'", out)[-1:]
    parts = [f"| de | - | 8 | {100 * float(accuracy):.1f} [", "| 日本 | - | - | - |", "| all pairs | - | 16 |"]
    assert all(part in card for part in [*parts, "max_length=16\n"])
    assert f'model="{tmp_path / "output"}"' in card
    code, _, err = forked(train, "--config", write_config(max_length=5))
    assert (code, "max_length=5: the prompts alone fill it" in err, "Traceback" in err) == (2, True, False), err


@pytest.mark.parametrize(("loads_best", "accuracy"), [(True, "25.0 ["), (False, "75.0 [")])
def test_the_model_card_has_the_accuracy_of_the_saved_model_and_all_options(
    make_args, model_dir, pairs, loads_best, accuracy
):
    steps = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    args = make_args(load_best_model_at_end=loads_best, beta=0.3, **steps)
    trainer = CardTrainer(model_dir, args=args, train_dataset=pairs, eval_dataset=pairs)
    trainer.parsed = [NoiseArguments(inject_noise="flip", inject_rate=0.4)]
    trainer.state.log_history = [{"step": step, "eval_rewards/accuracies": step / 4} for step in (1, 2, 3)]
    trainer.state.best_global_step = 1
    card = describe(trainer)
    assert f" | 24 | {accuracy}" in card
    assert all(line in card for line in ("beta=0.3\n", "inject_noise=flip\n", "inject_rate=0.4\n"))


@pytest.mark.parametrize("checked", [1, 100])
def test_a_row_that_the_chat_template_refuses_is_named(write_config, model_dir, tmp_path, pairs, monkeypatch, checked):
    monkeypatch.setattr(sys.modules["trl_capo.train.command"], "CHECKED_ROWS", checked)
    folder, tokenizer = shutil.copytree(model_dir, tmp_path / "strict"), byte_tokenizer()
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system, please') }}{% endif %}"
    tokenizer.chat_template = refusal + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    config, rows = write_config(model_name_or_path=str(folder)), [as_conversation(row) for row in pairs]
    rows[20]["prompt"].insert(0, {"role": "system", "content": "Be brief."})
    Dataset.from_list(rows).to_json(tmp_path / "train.jsonl")
    code, _, err = forked(train, "--config", config)
    assert (code, "cannot tokenise row 20 of train_dataset: no system, please" in err) == (2, True), err


class Terminated(CardTrainer):
    """Receives SIGTERM in the second step."""

    def training_step(self, *args, **kwargs):
        if self.state.global_step == 1:
            signal.raise_signal(signal.SIGTERM)
        return super().training_step(*args, **kwargs)


def test_sigterm_ends_with_143_and_true_resumes_or_starts(write_config, assert_same, tmp_path):
    config, output = write_config(resume_from_checkpoint=True, save_total_limit=1, **SAVE), tmp_path / "output"
    code, out, err = forked(partial(train, trainer=Terminated), "--config", config)
    assert (code, [path.name for path in output.glob("checkpoint-*")]) == (143, ["checkpoint-2"]), err
    assert "SIGTERM: training stopped after step 2 of 3 and saved a checkpoint" in err
    assert "Training completed" not in out
    assert not (output / "model.safetensors").exists()
    code, _, err = forked(train, "--config", config)
    assert code == 0, err
    assert_same()


def test_equal_answers_are_warned_about_and_values_that_are_not_finite_end_with_code_1(
    write_config, model_dir, tmp_path, pairs
):
    rows = pairs.to_list()
    rows[5]["chosen"] = rows[5]["rejected"]
    Dataset.from_list(rows).to_json(tmp_path / "odd.jsonl")
    model = LlamaForCausalLM.from_pretrained(model_dir)
    model.get_input_embeddings().weight.data[:] = math.nan
    for part in (model, byte_tokenizer()):
        part.save_pretrained(tmp_path / "faulty")
    config = write_config(model_name_or_path=str(tmp_path / "faulty"), dataset_name=str(tmp_path / "odd.jsonl"))
    code, _, err = forked(train, "--config", config)
    assert err.count("in 1 of 24 rows (row 5)") == 1, err
    assert (code, err.count("trl-capo train: error: step 1: 4 of its pairs have"), "Traceback" in err) == (1, 1, False)
    assert not (tmp_path / "output" / "model.safetensors").exists()
