"""Metrics per group inside the trainer, against means over pairs that pair_oracle.py scored one by one."""

import pytest
import torch
from accelerate import Accelerator
from conftest import as_conversation, logged
from datasets import Dataset
from oracles import LORA, load
from pair_oracle import OPTIONS, Steps, assert_metrics, in_evaluation, make_pool, score_pairs
from peft import LoraConfig

from trl_capo import CAPOTrainer
from trl_capo.core.metrics import PairBatch, PairCallback, PairMetrics


@pytest.fixture(scope="module")
def pool() -> Dataset:
    return make_pool()


def pair_batch(margins, groups, training=True, pairs=None, group_names=("a", "b"), scale=1.0) -> PairBatch:
    margins, names = torch.tensor(margins), ("noise_rate", "group_noise_rate", "confidence")
    values = dict.fromkeys(("rejected_logps", "ref_chosen_logps", "ref_rejected_logps"), torch.zeros(len(margins)))
    values |= dict.fromkeys(names, torch.full_like(margins, 0.2)) | {"scale": scale * margins}
    pairs = None if pairs is None else torch.tensor(pairs)
    identity = {"pairs": pairs, "groups": torch.tensor(groups), "group_names": list(group_names)}
    more = {"training": training, "beta": 1.0, "rho": margins, "weight": None, "loss": torch.zeros(())}
    return PairBatch(chosen_logps=margins, **values, **identity, **more)


def test_means_by_hand():
    """Margins 1, -3, 5 and a tie, in groups a, b, a, none: accuracy 2/4, a 1, b 0, macro 1/2, worst 0, ties 1/4."""
    metrics = PairMetrics(Accelerator(cpu=True))
    metrics.add(pair_batch([1.0, -3.0], [0, 1]))
    metrics.add(pair_batch([5.0, 0.0], [0, -1]))
    found = metrics.take()
    expected = {"rewards/accuracies": 0.5, "rewards/accuracies/a": 1, "rewards/accuracies/b": 0}
    expected |= {f"rewards/accuracies/{key}": value for key, value in (("macro", 0.5), ("worst", 0), ("ties", 0.25))}
    expected["rewards/margins"] = 0.75
    expected |= {"rewards/margins/a": 3, "rewards/margins/b": -3, "capo/contradicted": 0.25, "capo/noise_rate": 0.2}
    expected |= {"capo/scale": 0.75, "capo/scale_min": -3, "capo/scale_max": 5}
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    assert "capo/weight" not in found
    assert metrics.take() == {}
    metrics.add(pair_batch([2.0], [0]))  # a batch of one pair that is logged alone
    assert metrics.take()["rewards/margins"] == 2


def test_evaluated_pairs_that_a_sampler_repeats_count_once():
    metrics = PairMetrics(Accelerator(cpu=True))
    metrics.add(pair_batch([1.0, -3.0], [0, 1], training=False, pairs=[4, 7]))
    metrics.add(pair_batch([5.0, 1.0], [0, 0], training=False, pairs=[2, 4]))
    assert metrics.take()["rewards/accuracies"] == pytest.approx(2 / 3)


PATHS = {
    "conversations": {},
    "all of these": {"remove_unused_columns": False, "max_length": 30, "precompute_ref_log_probs": True},
    "noise rate 0, workers": {"noise_rate": 0, "dataloader_num_workers": 1},
    "stream": {"max_length": 30},
    "lora, precomputed reference": {"precompute_ref_log_probs": True},
}


@pytest.mark.parametrize("path", PATHS)
def test_metrics_of_training_and_evaluation_are_exact(make_args, model_dir, other_model_dir, pool, path):
    """Two steps of training, then an evaluation, in batches of 4 and 5 of 24 pairs (20 with the long prompts out)."""
    options, reference, lora = PATHS[path], load(other_model_dir), "lora" in path
    args = make_args(**OPTIONS | {"per_device_eval_batch_size": 5} | options)
    rows = pool.map(as_conversation) if path == "conversations" else pool
    if path == "stream":  # its pairs have no groups
        rows = rows.remove_columns("language")
    data = rows.to_iterable_dataset() if path == "stream" else rows
    reference = load(model_dir) if lora else reference
    steps = Steps(reference, rows, 4, options.get("max_length", 10**6))
    models, peft_config = (load(model_dir), None if lora else load(other_model_dir)), LoraConfig(**LORA)
    data = {"train_dataset": data, "eval_dataset": data, "peft_config": peft_config if lora else None}
    trainer = CAPOTrainer(*models, args, **data, callbacks=[steps])
    trainer.train()
    steps.assert_logged(trainer, 1)
    expected = in_evaluation(score_pairs(trainer.model, reference, rows, limit=steps.limit))
    assert all(0 < value < 1 for key, value in expected.items() if "accuracies" in key and "ties" not in key)
    assert_metrics(trainer.evaluate(), expected)
    assert_metrics(trainer.state.log_history[-1], expected)


def test_training_logs_weigh_pairs_over_the_logging_window(make_args, model_dir, other_model_dir, pool):
    """14 pairs in steps of 2 x 4: windows of 8 + 6 pairs, whose last micro-batch has 2."""
    rows, sizes = pool.select(range(14)), {"logging_steps": 2, "gradient_accumulation_steps": 2, "max_steps": 4}
    steps = Steps(load(other_model_dir), rows, 8)
    args = make_args(**OPTIONS | sizes)
    trainer = CAPOTrainer(load(model_dir), load(other_model_dir), args, train_dataset=rows, callbacks=[steps])
    trainer.train()
    assert [len(step) for step in steps.steps] == [8, 6, 8, 6]
    steps.assert_logged(trainer, 2)


def test_named_sets_do_not_overwrite_each_other_and_may_bring_new_groups(make_args, model_dir, other_model_dir, pool):
    """In what evaluate() returns, in the logs, while training, for names that begin alike, and for later data.

    DPOTrainer logs its keys, which have one slash, under `eval_` for every set, so that the last one counts.
    """
    flipped = pool.rename_columns({"chosen": "rejected", "rejected": "chosen"})
    new = pool.select(range(9, 16)).remove_columns("language").add_column("language", ["yo", "de", "ha", *["yo"] * 4])
    sets = {"en": pool.select(range(5)), "en_us": flipped.select(range(5, 12)), "sw/x": new}
    models, args = (load(model_dir), load(other_model_dir)), make_args(**OPTIONS, eval_strategy="steps", eval_steps=1)
    trainer = CAPOTrainer(*models, args, train_dataset=pool, eval_dataset=sets)
    trainer.train()

    def score(rows, prefix) -> dict:
        scored = score_pairs(trainer.model, models[1], rows)
        of_trl = {key: value for key, value in in_evaluation(scored).items() if key.count("/") == 1}
        return of_trl | in_evaluation(scored, prefix)

    expected = {}
    for name, rows in sets.items():
        expected |= score(rows, f"eval_{name}_")
    latest = {key: value for entry in trainer.state.log_history for key, value in entry.items() if "eval_" in key}
    for found in (latest, trainer.evaluate(), trainer.evaluate(sets)):
        assert_metrics(found, expected)
    found = trainer.evaluate("en")  # the keys are those of DPOTrainer
    assert_metrics(found, score(sets["en"], "eval_"))
    assert "eval_loss" in found
    assert_metrics(trainer.evaluate(new, metric_key_prefix="test"), score(new, "test_"))
    assert len(logged(trainer, "eval_en_us_rewards/accuracies/macro")) == 4


def test_pair_callbacks_receive_every_micro_batch(make_args, model_dir, other_model_dir, pool):
    class Keep(PairCallback):
        def __init__(self):
            self.batches = []

        def on_pairs(self, args, state, control, batch, **kwargs):
            assert len(kwargs["train_dataset"]) == 24
            assert kwargs["model"] is trainer.model
            self.batches.append(batch)

    keep, args = Keep(), make_args(**OPTIONS | {"max_steps": 6, "noise_rate": "auto", "eval_strategy": "epoch"})
    data = {"train_dataset": pool, "eval_dataset": pool.select(range(6))}
    trainer = CAPOTrainer(load(model_dir), load(other_model_dir), args, **data, callbacks=[keep])
    trainer.train()
    for training, count in ((True, 24), (False, 6)):
        batches = [batch for batch in keep.batches if batch.training == training]
        assert torch.cat([batch.pairs for batch in batches]).tolist() == list(range(count))
        names = [batch.group_names[group] for batch in batches for group in batch.groups]
        assert names == pool["language"][:count]
        assert not any(value.requires_grad for batch in batches for value in (batch.rho, batch.scale, batch.loss))
    assert [batch.loss.item() for batch in keep.batches[:6]] == pytest.approx(logged(trainer, "loss"), rel=1e-5)
