"""`trl-capo train`: the same training as in Python, its exit codes, and the mistakes that it names.

Most tests fork and call the `main` that `accelerate launch` starts; two start the installed command and the script.
"""

import json
import logging
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import CPU_ARGUMENTS, byte_tokenizer, forked, logged, run_main
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, TrainerCallback

from trl_capo import CAPOTrainer
from trl_capo.callbacks.pair_log import read_log
from trl_capo.common.fingerprint import fingerprint
from trl_capo.data.noise import inject_noise
from trl_capo.train.command import main

PROJECT = Path(__file__).parents[2]
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
def in_python(make_args, model_dir, pairs):
    """The training of the Python interface with the arguments of the YAML file; keywords win."""

    def train(peft_config=None, train_dataset=pairs, **changes) -> CAPOTrainer:
        args = make_args(**OPTIONS | {"output_dir": None} | changes)
        trainer = CAPOTrainer(model_dir, args=args, train_dataset=train_dataset, peft_config=peft_config)
        trainer.train()
        return trainer

    return train


def assert_same_training(folder: Path, trainer: CAPOTrainer, file: str = "model.safetensors") -> None:
    """The logged losses and the saved weights are equal, to the bit."""
    (state,) = folder.glob("checkpoint-*/trainer_state.json")
    history = json.loads(state.read_text())["log_history"]
    assert [entry["loss"] for entry in history if "loss" in entry] == logged(trainer, "loss")
    saved, expected = load_file(folder / file), trainer.model.state_dict()
    assert saved
    for name, tensor in saved.items():
        assert torch.equal(tensor, expected[name.replace(".weight", ".default.weight") if "lora" in name else name])


def train(*words: str) -> int:
    """The command in a forked process, in which pytest no longer takes the warnings."""
    logging.getLogger("trl_capo").addHandler(logging.StreamHandler())
    return main(words)


def run(*command) -> None:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_installed_command_trains_as_python_does_and_options_win_over_the_file(write_config, in_python, tmp_path):
    """noise_rate comes from the file, max_steps from both, the others from the command line, one with dashes."""
    config = write_config(max_steps=1, beta=0.9, **SAVE)
    command = [Path(sys.executable).with_name("trl-capo"), "train", "--config", config, "--num_processes", "1"]
    run(*command, "--max_steps", "3", "--beta=0.5", "--confidence-temperature", "0.7")
    assert_same_training(tmp_path / "output", in_python(beta=0.5, confidence_temperature=0.7))


def test_accelerate_launches_the_script_with_a_file_of_trl_dpo(write_config, in_python, tmp_path):
    """The file has TRL's keys only, and options of `accelerate launch`; the rate is estimated."""
    config, script = write_config(noise_rate=None, num_processes=1, **SAVE), PROJECT / "scripts" / "train_capo.py"
    run(
        sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", script, "--config", config
    )
    assert_same_training(tmp_path / "output", in_python(noise_rate="auto"))


def test_lora(write_config, in_python, tmp_path):
    words = ["--use_peft", "--lora_r", "3", "--lora_alpha", "6", "--lora_target_modules", "q_proj", "v_proj"]
    code, _, err = forked(train, "--config", write_config(**SAVE), *words)
    assert code == 0, err
    lora = {"r": 3, "lora_alpha": 6, "lora_dropout": 0.05, "target_modules": ["q_proj", "v_proj"]}
    trainer = in_python(peft_config=LoraConfig(**lora, task_type="CAUSAL_LM"))
    assert_same_training(tmp_path / "output", trainer, "adapter_model.safetensors")


@pytest.mark.parametrize("named", [True, "logs"])
def test_noise_and_the_pair_log(write_config, in_python, tmp_path, pairs, monkeypatch, named):
    monkeypatch.chdir(tmp_path)
    noise = {"inject_noise": "flip", "inject_rate": {"de": 0.5, "*": 0.2}, "inject_seed": 3}
    code, _, err = forked(train, "--config", write_config(**SAVE, **noise, pair_log=named))
    assert (code, err.count("inject_noise changed")) == (0, 1), err
    noisy = inject_noise(pairs, "flip", noise["inject_rate"], seed=3)
    assert_same_training(tmp_path / "output", in_python(train_dataset=noisy))
    info = read_log(tmp_path / ("output/pair_log" if named is True else "logs")).info
    assert (info.pairs, info.fingerprint) == (24, fingerprint(noisy))
    source = {"dataset_name": str(tmp_path / "train.jsonl"), "dataset_config": None, "dataset_train_split": "train"}
    assert info.source == source | {"group_column": "auto", "inject_score_column": None} | noise


def terminated(config: str) -> int:
    """Train until SIGTERM arrives in the second step."""

    class Terminate(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 1:
                signal.raise_signal(signal.SIGTERM)

    def build(*args, callbacks, **kwargs):
        return CAPOTrainer(*args, callbacks=[*callbacks, Terminate()], **kwargs)

    sys.modules["trl_capo.train.command"].CAPOTrainer = build  # in the forked process only
    return train("--config", config)


def test_sigterm_ends_with_143_and_true_resumes_or_starts(write_config, in_python, tmp_path):
    config, output = write_config(resume_from_checkpoint=True, save_total_limit=1, **SAVE), tmp_path / "output"
    code, out, err = forked(terminated, config)
    assert (code, [path.name for path in output.glob("checkpoint-*")]) == (143, ["checkpoint-2"]), err
    assert "SIGTERM: training stopped after step 2 of 3 and saved a checkpoint" in err
    assert "Training completed" not in out
    assert not (output / "model.safetensors").exists()
    code, _, err = forked(train, "--config", config)
    assert code == 0, err
    assert_same_training(output, in_python())


def test_values_that_are_not_finite_end_with_one_message_and_code_1(write_config, model_dir, tmp_path, pairs):
    model = LlamaForCausalLM.from_pretrained(model_dir)
    model.get_input_embeddings().weight.data[:] = math.nan
    model.save_pretrained(tmp_path / "faulty")
    byte_tokenizer().save_pretrained(tmp_path / "faulty")
    code, _, err = forked(train, "--config", write_config(model_name_or_path=str(tmp_path / "faulty")))
    assert (code, err.count("trl-capo train: error: step 1: 4 of its pairs have"), "Traceback" in err) == (1, 1, False)
    assert not (tmp_path / "output" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--nosuch_option", "3"], ["nosuch_option"]),
        (["--max_steps", "many"], ["max_steps", "many"]),
        (["--noise_rate", "0.7", "--beta", "-1"], ["noise_rate=0.7", "beta=-1"]),
        (["--loss_type", "hinge"], ["loss_type", "hinge", "noise_rate"]),
        (["--dataset_name", "missing/data.jsonl"], ["dataset_name", "missing/data.jsonl"]),
        (["--dataset_train_split", "nosuch"], ["dataset_train_split", "nosuch", "train"]),
        (["--eval_strategy", "steps"], ["dataset_test_split", "test"]),
        (["--group_column", "nosuch"], ["group_column", "nosuch", "language"]),
        (["--model_name_or_path", "./missing"], ["model_name_or_path='./missing'"]),
        (["--model_name_or_path", str(PROJECT / "tests")], ["model_name_or_path", str(PROJECT / "tests")]),
        (["--resume_from_checkpoint", "missing"], ["resume_from_checkpoint='missing'"]),
        (["--inject_noise", "flip", "--inject_rate", "2"], ["inject_rate", "2"]),
        (["--pair_log", "--dataset_streaming"], ["pair_log", "stream"]),
        (["--dry_run"], ["dry_run", "command line"]),
        (["--config", "missing.yaml"], ["missing.yaml"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_a_mistake_ends_with_one_line_that_names_it_and_code_2(write_config, tmp_path, words, named):
    """No model is loaded, and no folder is made."""
    config = [] if "--config" in words else ["--config", write_config()]
    code, out, err = run_main(main, *config, *words)
    assert (code, out.count("Loading weights"), (tmp_path / "output").exists()) == (2, 0, False), err
    assert err.count("trl-capo train: error: ") == 1
    assert all(text in err for text in named), err


def test_data_are_checked_once(write_config, tmp_path, pairs):
    rows = pairs.to_list()
    for index in (1, 5, 20):
        rows[index]["chosen"] = rows[index]["rejected"]
    (tmp_path / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, _, err = forked(train, "--config", write_config(dataset_name=str(tmp_path / "odd.jsonl")))
    assert (code, err.count("in 3 of 24 rows (row 1, 5, 20)")) == (0, 1), err
    (tmp_path / "odd.jsonl").write_text('{"prompt": "a", "chosen": "b"}\n' * 2)
    code, _, err = run_main(main, "--config", write_config(dataset_name=str(tmp_path / "odd.jsonl")))
    assert (code, "rejected" in err, err.count("error:")) == (2, True, 1), err
