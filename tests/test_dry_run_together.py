"""A dry run tells problems together that hide each other in a training."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from conftest import make_pairs
from dry_run_fixtures import runner, without_weights  # noqa: F401

ROWS = make_pairs().to_list()
ONE_NULL = [row | {"chosen": None} if index == 3 else row for index, row in enumerate(ROWS)]
BEST = "`args.metric_for_best_model` must be provided"
NO_KIND, NO_RATE = "kind='foo': there is no such noise", "rate=3: a rate is"
NO_FILE = "Accelerate config /nope.yaml is neither a file"
NO_GROUP = "group_column='nosuch': the training pairs has no such column"
NOISE = {"inject_noise": "foo", "inject_rate": 3}
LATE = {"pad_token": "nosuch", "save_strategy": "best", "router_aux_loss_coef": 0.1, "report_to": "swanlab"}
MIXTURE = [{"path": "/a"}, {"path": "/b", "nosuch": 1}]

TOGETHER = {
    "rows and groups": (ONE_NULL, {"group_column": "nosuch"}, ["chosen is null in 1 of 24", NO_GROUP], 2),
    "no rows and groups": (
        [{"prompt": "a", "chosen": None, "rejected": "b"}],
        {"group_column": "nosuch"},
        ["chosen is null in 1 of 1", NO_GROUP],
        2,
    ),
    "rows and lengths": (ONE_NULL, {"max_length": 3}, ["chosen is null in 1 of 24", "every prompt is at least"], 2),
    "a stream's rows and groups": (
        ONE_NULL,
        {"group_column": "nosuch", "dataset_streaming": True},
        ["chosen is null in 1 of 24", NO_GROUP],
        2,
    ),
    "data and noise": (ROWS, {"dataset_name": "/nope.jsonl"} | NOISE, ["'/nope.jsonl'", NO_KIND, NO_RATE], 2),
    "groups and noise": (ROWS, {"group_column": "nosuch"} | NOISE, [NO_GROUP, NO_KIND, NO_RATE], 2),
    "a mixture's key, and no word of missing data": (
        ROWS,
        {"dataset_name": None, "datasets": MIXTURE},
        ["datasets[1]: unknown key 'nosuch'"],
        1,
    ),
    "a model's name, and no word of a missing one": (
        ROWS,
        {"model_name_or_path": ["a"], "save_strategy": "best"},
        ["model_name_or_path=['a']", BEST],
        2,
    ),
    "what TRL and Transformers refuse": (
        ROWS,
        LATE | {"attn_implementation": "nosuch"},
        ["`pad_token` ('nosuch')", BEST, "SwanLabCallback", "`router_aux_loss_coef`", '="nosuch"` is not supported'],
        5,
    ),
    "a missing model and what is refused of others": (
        ROWS,
        LATE | {"model_name_or_path": "/nope"},
        ["'/nope'", BEST, "SwanLabCallback"],
        3,
    ),
    "an adapter and what is refused of others": (
        ROWS,
        LATE | {"use_peft": True, "lora_target_modules": ["nope"]},
        ["nope not found in the base model", "`pad_token`", BEST, "SwanLabCallback", "`router_aux_loss_coef`"],
        5,
    ),
    "a type of weights and an attention": (
        ROWS,
        {"dtype": "int8", "attn_implementation": "nosuch"},
        ["dtype='int8'", '="nosuch"` is not supported'],
        2,
    ),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_problems_hide_no_others(dry_run, name):
    rows, changes, texts, problems = TOGETHER[name]
    code, output = dry_run(rows, **changes)
    assert (code, [text for text in texts if text not in output]) == (1, []), output
    assert f"Dry run: {problems} problem" in output, output


def test_a_missing_tokenizer_hides_nothing(dry_run, model_without_weights):
    """What a made-up one cannot know is not said: here of the token to pad with."""
    for file in Path(model_without_weights).glob("*token*"):
        file.unlink()
    code, output = dry_run(**LATE)
    texts = ("no tokenizer can be loaded", BEST, "SwanLabCallback", "`router_aux_loss_coef`", "4 problems")
    assert (code, [text for text in texts if text not in output]) == (1, []), output


def test_launch_options_hide_no_others(dry_run):
    code, output = dry_run(words=["--foo", "1", "--num_processes", "x", "--accelerate_config", "/nope.yaml"])
    texts = ("unknown option --foo", "--num_processes/--num-processes: invalid int value: 'x'", NO_FILE, "3 problems")
    assert (code, [text for text in texts if text not in output]) == (1, []), output
    code, output = dry_run(words=["--machine_rank", "x", "--num_processes", "3", "--multi_gpu"])
    assert (code, "3 processes" in output, "1 problem," in output) == (1, True, True), output


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has a GPU")
def test_a_mixture_for_another_machine_with_options_of_its_gpu(dry_run, tmp_path):
    """Options are parsed several times for it, which changes a mixture's own."""
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    mixture = [{"path": "json", "data_files": str(tmp_path / "mixed.jsonl"), "split": "train"}]
    code, output = dry_run(datasets=mixture, dataset_name=None, use_cpu=None, bf16=True, tf32=True)
    assert (code, "0 problems, 1 warning." in output, "optimiser steps" in output) == (0, True, True), output


def test_data_to_evaluate_on_are_looked_at(dry_run, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for split, rows in (("train", ROWS), ("test", ONE_NULL)):
        lines = (json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text("".join(lines))
    options = {"dataset_name": str(folder), "eval_steps": 1}
    code, output = dry_run(eval_strategy="steps", **options)
    assert (code, "1 problem," in output) == (1, True), output
    assert "eval_dataset: chosen is null in 1 of 24 rows (row 3)" in output
    assert dry_run(**options)[0] == 0


def test_an_attention_of_another_machine_or_of_the_hub_is_not_looked_at(dry_run):
    code, output = dry_run(use_cpu=None, bf16=True, attn_implementation="flash_attention_2")
    assert (code, "0 problems" in output) == (0, True), output
    code, output = dry_run(attn_implementation="nobody/nothing")
    assert (code, "0 problems" in output) == (0, True), output


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="it is installed")
def test_an_attention_that_is_not_installed_is_a_problem(dry_run):
    code, output = dry_run(attn_implementation="flash_attention_2")
    assert (code, "FlashAttention2" in output, "1 problem," in output) == (1, True, True), output


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is not None, reason="it is installed")
def test_a_package_that_is_not_installed_is_named(dry_run):
    code, output = dry_run(deepspeed="zero.json")
    assert (code, "1 problem," in output) == (1, True), output
    assert "- the options need a package that is not installed. The 'deepspeed" in output
