"""What a group may be called, and columns of groups that are absent, of nulls or unusable.

The oracle is that of test_groups.py: pairs scored one by one.
"""

import pytest
from datasets import Value
from test_groups import assert_metrics, evaluated, in_evaluation, make_pool, pool, score_pairs, scored  # noqa: F401
from test_modes import load
from trl import DPOConfig, DPOTrainer

from trl_capo import CAPOConfig, CAPOTrainer


NAMES = {
    "unicode": ["日本語", "हिन्दी", "العربية", "emoji 🙂"],
    "slash, dot, space": ["zh/hans", "zh/hant", "a.b", "with space"],
    "integers": [3, -1, 0],
    "one group": ["only"],
    "a group a pair": [f"g{index:02}" for index in range(24)],
    "sorted, so that batches lack groups": sorted("abcde" * 5)[:24],
    "names of the summaries": ["macro", "worst", "ties", "de"],
    "nulls": ["de", None, "sw", None],
}


@pytest.mark.parametrize("remove", [True, False])
@pytest.mark.parametrize("column", ["auto", "tongue"])
@pytest.mark.parametrize("kind", NAMES)
def test_groups_keep_their_names(evaluated, pairs, pool, scored, caplog, kind, column, remove):
    names = [NAMES[kind][index % len(NAMES[kind])] for index in range(24)]
    data = pool.remove_columns("language").add_column("language" if column == "auto" else column, names)
    options = {"group_column": column, "remove_unused_columns": remove}
    metrics = evaluated(data, pairs if column == "auto" else pairs.rename_column("language", column), **options)
    shown = {None: "(none)", **{name: f"{name} (group)" for name in ("macro", "worst", "ties")}}
    assert_metrics(metrics, in_evaluation(scored, names=[shown.get(name, str(name)) for name in names]))
    warned = [message for message in caplog.messages if "(none)" in message]
    assert len(warned) == (kind == "nulls")
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
