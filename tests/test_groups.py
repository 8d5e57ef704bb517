"""Metrics per language inside the trainer: every way that a pair's group takes from the data set to the logs.

The oracle is pair_oracle.py: means over pairs that were scored one by one. Two processes, named data sets, model
selection, resuming and images: test_groups_distributed.py. Not covered: the sums themselves (test_metrics.py).
"""

import pytest
from conftest import as_conversation
from datasets import Dataset, Value
from pair_oracle import OPTIONS, Steps, assert_metrics, in_evaluation, make_pool, mean, score_pairs
from peft import LoraConfig
from test_modes import LORA, load
from trl import DPOConfig, DPOTrainer

from trl_capo import CAPOConfig, CAPOTrainer


@pytest.fixture(scope="module")
def scored(model_dir, other_model_dir, pool) -> list[dict]:
    scored = score_pairs(load(model_dir), load(other_model_dir), pool)
    assert all(0 < mean(f["rewards/accuracies"] for g, f in scored if g == name) < 1 for name in ("de", "sw", "日本"))
    return scored


@pytest.fixture
def evaluated(make_args, model_dir, other_model_dir, pairs):
    """evaluate() of a trainer of the tiny model and its explicit reference."""

    def run(eval_dataset, train_dataset=pairs, **options) -> dict:
        data = {"train_dataset": train_dataset, "eval_dataset": eval_dataset}
        return CAPOTrainer(load(model_dir), load(other_model_dir), make_args(**OPTIONS | options), **data).evaluate()

    return run


def choose_five(pool, scored) -> Dataset:
    """Four pairs that the policy ranks as labelled; the other one stands last, where batches are incomplete."""
    right = [index for index, (_, figures) in enumerate(scored) if figures["rewards/margins"] > 0.01]
    wrong = [index for index, (_, figures) in enumerate(scored) if figures["rewards/margins"] < -0.01]
    return pool.select([*right[:4], wrong[0]])


@pytest.mark.parametrize("noise_rate", ["auto", 0])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_four_of_five_pairs_are_an_accuracy_of_080_at_every_batch_size(evaluated, pool, scored, size, noise_rate):
    five = choose_five(pool, scored)
    metrics = evaluated(five, per_device_eval_batch_size=size, noise_rate=noise_rate)
    assert metrics["eval_rewards/accuracies"] == 0.8
    prompts = pool["prompt"]
    assert_metrics(metrics, in_evaluation([scored[prompts.index(prompt)] for prompt in five["prompt"]]))


PATHS = {
    "default": {},
    "all columns kept": {"remove_unused_columns": False},
    "long prompts dropped": {"max_length": 30},
    "precomputed reference": {"precompute_ref_log_probs": True},
    "all of these": {"remove_unused_columns": False, "max_length": 30, "precompute_ref_log_probs": True},
    "noise rate 0": {"noise_rate": 0},
    "streaming": {},
    "streaming, all columns kept": {"remove_unused_columns": False},
    "streaming, long prompts dropped": {"max_length": 30},
    "conversations": {},
    "conversations streamed": {},
    "workers": {"dataloader_num_workers": 1},
    "lora": {},
    "lora, precomputed reference": {"precompute_ref_log_probs": True},
}


@pytest.mark.parametrize("path", PATHS)
def test_groups_survive(make_args, model_dir, other_model_dir, pool, path):
    """Two steps of training, then an evaluation, in batches of 4 and 5 of 24 pairs (20 with the long prompts out)."""
    options, reference, lora = PATHS[path], load(other_model_dir), "lora" in path
    args = make_args(**OPTIONS | {"per_device_eval_batch_size": 5} | options)
    rows = pool.map(as_conversation) if "conversations" in path else pool
    data = rows.to_iterable_dataset() if "stream" in path else rows
    if lora:
        reference = load(model_dir)
    steps = Steps(reference, rows, 4, options.get("max_length", 10**6))
    trainer = CAPOTrainer(
        load(model_dir),
        None if lora else load(other_model_dir),
        args,
        train_dataset=data,
        eval_dataset=data,
        peft_config=LoraConfig(**LORA) if lora else None,
        callbacks=[steps],
    )
    trainer.train()
    steps.assert_logged(trainer, 1)
    expected = in_evaluation(score_pairs(trainer.model, reference, rows, limit=steps.limit))
    assert_metrics(trainer.evaluate(), expected)
    assert_metrics(trainer.evaluate(), expected)
    after = trainer.state.log_history[-1]
    assert_metrics(after, expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_named_streams_of_shards(evaluated, pool, scored, workers):
    """Workers read shards of their own, each from its first row, which must not be taken for the others'."""
    parts = {"all": range(24), "few": range(3, 10)}
    streams = {name: pool.select(rows).to_iterable_dataset(num_shards=3) for name, rows in parts.items()}
    streams["few"] = streams["few"].shuffle(seed=1, buffer_size=3)
    metrics = evaluated(streams, dataloader_num_workers=workers)
    for name, rows in parts.items():
        expected = in_evaluation([scored[row] for row in rows], f"eval_{name}_")
        assert_metrics({key: value for key, value in metrics.items() if key.startswith(f"eval_{name}_")}, expected)


def test_a_stream_whose_language_names_no_groups_is_left_alone(evaluated, pool, scored, caplog):
    rows = pool.remove_columns("language").add_column("language", [["de", "sw"]] * 24)
    metrics = evaluated(rows.to_iterable_dataset(), rows.to_iterable_dataset())
    expected = in_evaluation(scored)
    assert_metrics(metrics, {k: v for k, v in expected.items() if k.count("/") == 1 or k.endswith("/ties")})
    said = [message for message in caplog.messages if "no metrics per group" in message]
    assert len(said) == 2  # of the training pairs and of the evaluation's
    assert all("'language'" in message and "list" in message for message in said)


def test_training_logs_weigh_pairs_over_the_logging_window(make_args, model_dir, other_model_dir, pool):
    """14 pairs in steps of 2 x 4: windows of 8 + 6 pairs, whose last micro-batch has 2."""
    rows, sizes = pool.select(range(14)), {"logging_steps": 2, "gradient_accumulation_steps": 2, "max_steps": 4}
    steps = Steps(load(other_model_dir), rows, 8)
    args = make_args(**OPTIONS | sizes)
    trainer = CAPOTrainer(load(model_dir), load(other_model_dir), args, train_dataset=rows, callbacks=[steps])
    trainer.train()
    assert [len(step) for step in steps.steps] == [8, 6, 8, 6]
    steps.assert_logged(trainer, 2)


NAMES = {
    "unicode": ["日本語", "हिन्दी", "العربية", "emoji 🙂"],
    "slash, dot, space": ["zh/hans", "zh/hant", "a.b", "with space"],
    "integers": [3, -1, 0],
    "one group": ["only"],
    "a group a pair": [f"g{index:02}" for index in range(24)],
    "sorted, so that batches lack groups": sorted("abcde" * 5)[:24],
    "names of the summaries": ["macro", "worst", "ties", "de"],
    "names of a table's rows": ["all pairs", "macro mean", "worst group", "de"],
    "nulls": ["de", None, "sw", None],
    "not numbers": [1.5, float("nan"), 2.0, float("nan")],
    "nulls beside their name": ["(none)", None, "(none) (group)", None],
    "names that others are changed to": ["macro", "macro (group)", "macro (group) (group)", "x (group)"],
    "empty": ["", "(empty)", "(empty) (group)", "de"],
}
CHANGED = {None: "(none)", "": "(empty)"} | {
    name + " (group)" * count: name + " (group)" * (count + 1)
    for name in ("macro", "worst", "ties", "all pairs", "macro mean", "worst group", "(none)", "(empty)")
    for count in range(3)
}


@pytest.mark.parametrize("remove", [True, False])
@pytest.mark.parametrize("column", ["auto", "tongue"])
@pytest.mark.parametrize("kind", NAMES)
def test_groups_keep_their_names(evaluated, pairs, pool, scored, caplog, kind, column, remove):
    names = [NAMES[kind][index % len(NAMES[kind])] for index in range(24)]
    data = pool.remove_columns("language").add_column("language" if column == "auto" else column, names)
    options = {"group_column": column, "remove_unused_columns": remove}
    metrics = evaluated(data, pairs if column == "auto" else pairs.rename_column("language", column), **options)
    shown = [CHANGED.get(name, str(name)).replace("nan", "(none)") for name in names]
    assert len(set(shown)) == len(set(map(str, names)))
    assert_metrics(metrics, in_evaluation(scored, names=shown))
    warned = [message for message in caplog.messages if "(none)" in message]
    assert len(warned) == (None in names or "nan" in map(str, names))
    assert all("12 of 24" in message for message in warned)


def test_two_hundred_groups(evaluated, model_dir, other_model_dir):
    rows = make_pool(250)
    rows = rows.remove_columns("language").add_column("language", [f"language {index % 200}" for index in range(250)])
    expected = in_evaluation(score_pairs(load(model_dir), load(other_model_dir), rows))
    assert len(expected) == 6 + 2 * 200 + 3
    assert_metrics(evaluated(rows, per_device_eval_batch_size=16), expected)


@pytest.mark.parametrize("kind", ["no column", "None", "none", "of nulls only"])
def test_without_groups_the_means_are_exact_all_the_same(evaluated, pool, scored, kind):
    data = pool if kind in ("None", "none") else pool.remove_columns("language")
    if kind == "of nulls only":
        data = data.add_column("language", [None] * 24).cast_column("language", Value("string"))
    options = {"None": {"group_column": None}, "none": {"group_column": "none"}}.get(kind, {})
    metrics = evaluated(data, per_device_eval_batch_size=7, **options)
    names = ["(none)"] * 24
    expected = in_evaluation(scored, names=names)
    if kind != "of nulls only":
        expected = {
            key: value
            for key, value in expected.items()
            if key.count("/") == 1 or key == "eval_rewards/accuracies/ties"
        }
    assert_metrics(metrics, expected)


@pytest.mark.parametrize("option", [{}, {"precompute_ref_log_probs": True}], ids=str)
def test_a_group_whose_prompts_are_all_too_long_has_no_keys(evaluated, model_dir, other_model_dir, pool, option):
    """Prompts in Japanese have 16 bytes and more."""
    kept = score_pairs(load(model_dir), load(other_model_dir), pool, limit=16)
    assert {group for group, _ in kept} == {"de", "sw"}
    assert_metrics(evaluated(pool, max_length=16, **option), in_evaluation(kept))


def test_identical_policy_and_reference_are_ties(make_args, model_dir, pool):
    metrics = CAPOTrainer(model_dir, args=make_args(), train_dataset=pool, eval_dataset=pool).evaluate()
    assert metrics["eval_rewards/accuracies/ties"] == 1
    assert metrics["eval_rewards/accuracies"] == metrics["eval_rewards/margins/de"] == 0


@pytest.mark.parametrize("options", [{}, {"remove_unused_columns": False}], ids=str)
def test_the_model_gets_what_dpo_trainer_gives_it(make_args, model_dir, other_model_dir, pool, options):
    seen = []
    for trainer_class, config in ((DPOTrainer, DPOConfig), (CAPOTrainer, CAPOConfig)):
        models, keys = (load(model_dir), load(other_model_dir)), set()
        for model in models:
            model.register_forward_pre_hook(lambda _, args, kwargs, keys=keys: keys.update(kwargs), with_kwargs=True)
        args = make_args(config, max_steps=1, **options)
        trainer = trainer_class(*models, args, train_dataset=pool, eval_dataset=pool)
        trainer.train()
        trainer.evaluate()
        seen.append(keys)
    assert seen[0] == seen[1]
    assert "input_ids" in seen[0]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("kind", ["absent", "absent in evaluation", "lists"])
def test_an_unusable_group_column_is_one_error_that_names_it(evaluated, pool, kind, streamed):
    data, train, options = pool, pool, {"group_column": "nosuch"}
    if kind == "absent in evaluation":
        train = pool.rename_column("language", "nosuch")
    elif kind == "lists":
        data = train = pool.remove_columns("language").add_column("nosuch", [["de", "sw"]] * 24)
    if streamed:
        data, train = data.to_iterable_dataset(), train.to_iterable_dataset()
    with pytest.raises(ValueError, match="nosuch"):
        evaluated(data, train, **options)
