"""What CAPOTrainer keeps over time: the estimate, unfinished steps, caches; and data that only look wrong."""

from pathlib import Path

import pytest
from conftest import as_conversation, logged, make_pairs
from datasets import Dataset, load_dataset
from test_modes import load
from trl import DPOConfig, DPOTrainer

from trl_capo import CAPOTrainer


def test_options_changed_after_construction_do_not_reach_the_loss(model_dir, pairs, make_args):
    trainer = CAPOTrainer(model_dir, args=make_args(noise_rate=0.2, max_steps=1), train_dataset=pairs)
    trainer.args.noise_rate = 0.9
    trainer.train()
    assert logged(trainer, "capo/noise_rate") == [pytest.approx(0.2)]


def test_evaluating_the_same_data_again_uses_what_was_computed(model_dir, pairs, make_args, monkeypatch, tmp_path):
    """Data from a file, as `datasets` caches only those; 8 pairs in batches of 4 are two reference forwards, once."""
    make_pairs(8).to_json(tmp_path / "pairs.jsonl")
    dataset = load_dataset("json", data_files=str(tmp_path / "pairs.jsonl"), split="train", cache_dir=str(tmp_path))
    args = make_args(precompute_ref_log_probs=True)
    trainer = CAPOTrainer(model_dir, args=args, train_dataset=pairs.select(range(4)))
    calls = []
    original = DPOTrainer.compute_ref_log_probs
    monkeypatch.setattr(
        DPOTrainer, "compute_ref_log_probs", lambda self, *rest: calls.append(1) or original(self, *rest)
    )
    first, second = trainer.evaluate(dataset), trainer.evaluate(dataset)
    assert len(calls) == 2
    assert first["eval_rewards/accuracies"] == second["eval_rewards/accuracies"]


def test_prediction_takes_what_dpo_trainers_takes(model_dir, other_model_dir, pairs, make_args):
    """Data that a trainer prepared; every pair counts once, whatever the batches. Raw data are refused by both."""
    args = make_args(per_device_eval_batch_size=5)
    options = {"train_dataset": pairs, "eval_dataset": pairs}
    trainer = CAPOTrainer(model_dir, load(other_model_dir), args, **options)
    evaluated, predicted = trainer.evaluate(), trainer.predict(trainer.eval_dataset).metrics
    for name in ("accuracies", "margins/de", "accuracies/macro"):
        assert predicted[f"test_rewards/{name}"] == evaluated[f"eval_rewards/{name}"]
    plain = DPOTrainer(model_dir, args=make_args(DPOConfig), **options)
    for either in (trainer, plain):
        with pytest.raises(ValueError, match="No columns in the dataset match"):
            either.predict(pairs)


def test_answers_that_are_tool_calls_are_no_bad_data(model_dir, make_args):
    call = {"type": "function", "function": {"name": "say", "arguments": "{}"}}
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Do {index}"}],
            "chosen": [{"role": "assistant", "content": None, "tool_calls": [call]}],
            "rejected": [{"role": "assistant", "content": "no", "tool_calls": None}],
        }
        for index in range(4)
    ]
    trainer = CAPOTrainer(model_dir, args=make_args(max_steps=1), train_dataset=Dataset.from_list(rows))
    trainer.train()
    assert len(logged(trainer, "loss")) == 1


def test_a_language_column_that_names_no_groups_is_left_alone_unless_asked_for(model_dir, make_args, caplog):
    rows = [{**row, "language": [row["language"], "en"]} for row in make_pairs(4)]
    dataset = Dataset.from_list(rows)
    trainer = CAPOTrainer(model_dir, args=make_args(max_steps=1), train_dataset=dataset)
    trainer.train()
    assert not any("rewards/accuracies/macro" in entry for entry in trainer.state.log_history)
    with pytest.raises(ValueError, match=r"group_column='language'.*4 rows.*list"):
        CAPOTrainer(model_dir, args=make_args(group_column="language"), train_dataset=dataset)


def test_a_max_length_that_leaves_no_pair_is_named(model_dir, pairs, make_args):
    with pytest.raises(ValueError, match="max_length=3: every prompt of train_dataset"):
        CAPOTrainer(model_dir, args=make_args(max_length=3), train_dataset=pairs.map(as_conversation))


def test_model_card_names_the_method_and_cites_the_paper(model_dir, pairs, make_args):
    trainer = CAPOTrainer(model_dir, args=make_args(), train_dataset=pairs)
    trainer.create_model_card()
    card = Path(trainer.args.output_dir, "README.md").read_text(encoding="utf-8")
    assert all(part in card for part in ("2511.07691", "pokharel2025capo", "CAPO"))
