"""Metrics per language in longer runs: two processes, named data sets, model selection, resuming, images.

Two processes on the CPU talk through gloo and are started by torchrun with this file as the program. The oracle is
pair_oracle.py: means over pairs that were scored one by one.
"""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from conftest import CPU_ARGUMENTS, free_port, logged, tiny_llava
from datasets import Dataset
from pair_oracle import BETA, OPTIONS, Steps, assert_metrics, in_evaluation, make_pool, score_pairs
from peft import LoraConfig
from PIL import Image
from test_distributed import run
from test_groups import choose_five
from test_modes import LORA, load, same, token_log_probs, weights
from transformers import EarlyStoppingCallback, LlavaForConditionalGeneration

from trl_capo import CAPOConfig, CAPOTrainer

WORST, ALL = "rewards/accuracies/worst", "rewards/accuracies"


def flipped(rows: Dataset) -> Dataset:
    return rows.rename_columns({"chosen": "rejected", "rejected": "chosen"})


def two_process_cases(five: Dataset) -> dict:
    """Data set, batch size of each process, options."""
    pool, parity = make_pool(), make_pool().remove_columns("language")
    cases = {f"five {size}": (five, size, {}) for size in (1, 2, 3, 4, 5)}
    cases |= {f"precomputed {size}": (five, size, {"precompute_ref_log_probs": True}) for size in (1, 3)}
    cases |= {f"pool {size}": (pool.select(range(23)), size, {}) for size in (1, 3, 8)}
    cases["kept columns"] = (pool.select(range(23)), 3, {"remove_unused_columns": False, "noise_rate": 0})
    cases["long prompts"] = (pool, 3, {"max_length": 30})
    # Batches of 1 go to the processes in turns: each group is missing in one of them.
    cases["parity"] = (parity.add_column("language", ["even", "odd"] * 12), 1, {})
    streams = {"five 1": (five, 1), "five 2": (five, 2), "five 4": (five, 4), "pool": (pool.select(range(23)), 3)}
    cases |= {f"stream {name}": (*case, {}) for name, case in streams.items()}
    cases["stream without groups"] = (parity.select(range(23)), 4, {})
    cases["stream of shards"] = (pool, 3, {})  # each process reads its own
    cases["stream of shards, workers"] = (pool, 3, {"dataloader_num_workers": 2})
    cases["last pair alone"] = (parity.add_column("language", ["most"] * 23 + ["last"]), 4, {})
    return cases


@pytest.fixture(scope="module")
def five(model_dir, other_model_dir) -> Dataset:
    return choose_five(make_pool(), score_pairs(load(model_dir), load(other_model_dir), make_pool()))


@pytest.fixture(scope="module")
def two_processes(five, model_dir, other_model_dir, tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("two")
    five.save_to_disk(folder / "five")
    make_pool().save_to_disk(folder / "pool")  # TRL shares precomputed log-probs through a file beside the data
    port = free_port()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    run([*launcher, __file__, str(folder), model_dir, other_model_dir], OMP_NUM_THREADS="1")
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_two_processes_count_every_pair_once(two_processes, five, model_dir, other_model_dir):
    models = load(model_dir), load(other_model_dir)
    for name, (rows, _, options) in two_process_cases(five).items():
        expected = in_evaluation(score_pairs(*models, rows, limit=options.get("max_length", 10**6)))
        if "language" not in rows.column_names:
            expected = {k: v for k, v in expected.items() if k.count("/") == 1 or k.endswith("/ties")}
        for rank in two_processes:
            assert_metrics(rank[name], expected)
            if rows is five:
                assert rank[name]["eval_rewards/accuracies"] == 0.8


def test_two_processes_log_the_pairs_of_both_while_training(two_processes, model_dir, other_model_dir):
    """24 pairs in windows of 2 x 2 x 2 x 2: what the oracle saw in the main process is what was logged."""
    for rank in two_processes:
        assert rank["train"]["logged"] == pytest.approx(rank["train"]["expected"], rel=1e-4, abs=1e-4)
        assert len(rank["train"]["logged"]) == 2 * (2 * 3 + 3)


def test_named_sets_do_not_overwrite_each_other(make_args, model_dir, other_model_dir):
    """In what evaluate() returns, in the logs, while training, and for names that begin alike."""
    pool, models = make_pool(), (load(model_dir), load(other_model_dir))
    sets = {"en": pool.select(range(5)), "en_us": flipped(pool.select(range(5, 12))), "sw/x": pool.select([1, 4, 7])}
    args = make_args(**OPTIONS | {"eval_strategy": "steps", "eval_steps": 1})
    trainer = CAPOTrainer(*models, args, train_dataset=pool, eval_dataset=sets)
    for train in (False, True):
        if train:
            trainer.train()
        expected = {}
        for name, rows in sets.items():
            expected |= in_evaluation(score_pairs(trainer.model, models[1], rows), f"eval_{name}_")
        assert_metrics(trainer.evaluate(), expected)
        assert_metrics(trainer.evaluate(sets), expected)
        for name in sets:
            alone = {key: value for key, value in expected.items() if key.startswith(f"eval_{name}_rewards")}
            alone |= {key: value for key, value in expected.items() if key.startswith(f"eval_{name}_logps")}
            found = trainer.evaluate(name)
            assert_metrics(found, alone)
            assert all(key.startswith(f"eval_{name}_") for key in found if key != "epoch"), found.keys()
        entries = [
            entry for entry in trainer.state.log_history if "eval_en_loss" in entry or "eval_en_us_loss" in entry
        ]
        entries += [entry for entry in trainer.state.log_history if "eval_sw/x_loss" in entry]
        latest = {key: value for entry in entries for key, value in entry.items()}
        assert_metrics(latest, expected)
    assert len(logged(trainer, "eval_en_us_rewards/accuracies/macro")) == 5  # train() starts a new history


def test_a_new_data_set_after_training_brings_its_own_groups(make_args, model_dir, other_model_dir):
    pool, models = make_pool(), (load(model_dir), load(other_model_dir))
    reference = models[1]
    old, new = pool.select(range(6)), pool.select(range(9, 16)).remove_columns("language")
    new = new.add_column("language", ["yo", "de", "yo", "ha", "ha", "ha", "yo"])
    trainer = CAPOTrainer(*models, make_args(**OPTIONS), train_dataset=pool, eval_dataset=old)
    trainer.train()
    for rows in (new, old, new):
        assert_metrics(
            trainer.evaluate(None if rows is old else rows), in_evaluation(score_pairs(trainer.model, reference, rows))
        )
    prefixed = trainer.evaluate(new, metric_key_prefix="test")
    assert_metrics(prefixed, in_evaluation(score_pairs(trainer.model, reference, new), "test_"))


@pytest.fixture
def selecting(make_args, model_dir, other_model_dir):
    """A run that learns the many pairs of `up` and unlearns the few of `down`, which contradict the training."""

    def train(metric: str, *callbacks, named=False):
        rows = make_pool()
        up, down = rows, flipped(rows.select(range(0, 24, 4)))
        groups = [["up"] * len(up), ["down"] * len(down)]
        parts = [
            p.remove_columns("language").add_column("language", g) for p, g in zip((up, down), groups, strict=True)
        ]
        data = Dataset.from_list([row for part in parts for row in part.to_list()])
        data = {"held": data, "zz": data.select([0])} if named else data
        saving = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
        saving |= {"load_best_model_at_end": True, "metric_for_best_model": metric, "greater_is_better": True}
        args = make_args(**OPTIONS | saving | {"max_steps": 12, "noise_rate": 0})
        models = load(model_dir), load(other_model_dir)
        trainer = CAPOTrainer(*models, args, train_dataset=rows, eval_dataset=data, callbacks=list(callbacks))
        trainer.train()
        return trainer

    return train


@pytest.mark.parametrize(("metric", "named"), [(WORST, False), (ALL, False), ("eval_held_" + WORST, True)])
def test_the_chosen_checkpoint_is_the_one_with_the_best_value(selecting, metric, named):
    """By the worst language an early one, by all pairs a late one; its weights are loaded at the end."""
    trainer = selecting(metric, named=named)
    key = metric if named else "eval_" + metric
    values = {entry["step"]: entry[key] for entry in trainer.state.log_history if key in entry}
    best = max(values, key=lambda step: (values[step], -step))
    assert len(set(values.values())) > 1
    assert trainer.state.best_metric == values[best]
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    assert same(weights(load(trainer.state.best_model_checkpoint)), weights(trainer.model))
    assert (best < 6) == (WORST in metric)


def test_early_stopping_by_the_worst_language(selecting):
    """After two evaluations, of 2 steps each, without a better value; all pairs together get better for longer."""
    state = selecting(WORST, EarlyStoppingCallback(2)).state
    assert state.global_step == state.best_global_step + 4 < 12
    assert selecting(ALL, EarlyStoppingCallback(2)).state.global_step == 12


@pytest.mark.parametrize("peft_config", [None, LoraConfig(**LORA)], ids=["full", "lora"])
def test_a_resumed_run_logs_the_groups_of_the_uninterrupted_one(make_args, model_dir, tmp_path, peft_config):
    options = {"max_steps": 8, "save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 4}
    runs = []
    for checkpoint in (None, str(tmp_path / "output" / "checkpoint-3")):
        args = make_args(**OPTIONS | options | {"train_sampling_strategy": "random", "noise_rate": "auto"})
        data = {"train_dataset": make_pool(), "eval_dataset": make_pool()}
        runs.append(CAPOTrainer(model_dir, None, args, **data, peft_config=peft_config))
        runs[-1].train(resume_from_checkpoint=checkpoint)
    for prefix in ("", "eval_"):
        for name in ("accuracies/de", "margins/日本", "accuracies/macro", "accuracies/worst"):
            one, other = (logged(trainer, f"{prefix}rewards/{name}") for trainer in runs)
            assert one == other
            assert "margins" not in name or len(set(one)) == len(one) > 1


def test_pairs_with_images(make_args):
    """A tiny LLaVA; the oracle gives both models the image of each pair by itself."""
    processor, config = tiny_llava()
    models, rows, scored = [], [], []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(LlavaForConditionalGeneration(config))
    for index, color in enumerate(("red", "green", "blue", "white", "black")):
        image, prompt, group = Image.new("RGB", (28, 28), color), "<image>Colour?", ("en", "日本")[index % 2]
        answers = (color, "Well") if index % 3 else ("Well", color)
        rows.append({"images": [image], "prompt": prompt, "chosen": answers[0], "rejected": answers[1]})
        rows[-1]["language"] = group
        inputs = processor(images=image, text=prompt, return_tensors="pt")
        ids, pixels = inputs["input_ids"][0].tolist(), {"pixel_values": inputs["pixel_values"]}
        texts = [processor.tokenizer.encode(text) for text in answers]
        c, r, rc, rr = (float(token_log_probs(m, ids, text, **pixels).sum()) for m in models for text in texts)
        figures = {"rewards/chosen": BETA * (c - rc), "rewards/rejected": BETA * (r - rr), "logps/chosen": c}
        figures |= {"rewards/margins": (margin := BETA * (c - rc - r + rr)), "rewards/accuracies": float(margin > 0)}
        scored.append((group, figures | {"logps/rejected": r, "ties": 0.0}))
    data, args = Dataset.from_list(rows), make_args(**OPTIONS | {"per_device_eval_batch_size": 2})
    options = {"train_dataset": data, "eval_dataset": data, "processing_class": processor}
    metrics = CAPOTrainer(*models, args, **options).evaluate()
    assert_metrics(metrics, in_evaluation(scored))
    assert_metrics(CAPOTrainer(*models, args, **options).evaluate(data.select(range(3))), in_evaluation(scored[:3]))


if __name__ == "__main__":  # one of the processes that torchrun starts
    folder, policy, other = sys.argv[1:]
    results = {}
    base = CPU_ARGUMENTS | OPTIONS | {"output_dir": folder}
    for name, (rows, size, options) in two_process_cases(Dataset.load_from_disk(folder + "/five")).items():
        args = CAPOConfig(**base | {"per_device_eval_batch_size": size} | options)
        if name.startswith("stream"):
            rows = rows.to_iterable_dataset(num_shards=4 if "shards" in name else 1)
        data = {"train_dataset": Dataset.load_from_disk(folder + "/pool"), "eval_dataset": rows}
        results[name] = CAPOTrainer(load(policy), load(other), args, **data).evaluate()
    sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "logging_steps": 2, "max_steps": 4}
    steps = Steps(load(other), make_pool(), 8)
    options = {"args": CAPOConfig(**base | sizes), "train_dataset": make_pool(), "callbacks": [steps]}
    trainer = CAPOTrainer(load(policy), load(other), **options)
    trainer.train()
    logs, expected = steps.compare(trainer, 2)
    results["train"] = {"logged": logs, "expected": expected}
    Path(folder, os.environ["RANK"] + ".json").write_text(json.dumps(results))
