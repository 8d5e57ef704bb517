"""Signs of a training that goes nowhere: at their thresholds, once each, and in real trainings that are made so."""

import logging

import pytest
from conftest import logged, make_pairs
from datasets import IterableDataset
from test_modes import load

from trl_capo import CAPOTrainer
from trl_capo.degenerate import MIN_PAIRS, DegenerationWatch

SOUND = {"capo/contradicted": 0.3, "capo/scale": 1.0, "capo/noise_rate": 0.2, "capo/confidence": 0.8}
SOUND |= {"rewards/chosen": -1.0, "rewards/rejected": -3.0}
SIGNS = {
    "contradicted": ({"capo/contradicted": 0.95}, "95% of the last 64 pairs are contradicted"),
    "given up": ({"capo/scale": 0.05}, "mean scale of the last 64 pairs is 0.050"),
    "certain": ({"capo/confidence": 0.999}, "confidence in the last 64 labels is 0.9990 at a noise rate of 0.20"),
    "no weight": ({"capo/weight": 0.0}, "the last 64 pairs all have the weight 0"),
    "falling": ({"rewards/chosen": -10.0, "rewards/rejected": -20.0}, "-10.0 for chosen and -20.0 for rejected"),
}
NEARLY = [
    {"capo/contradicted": 0.949},
    {"capo/scale": 0.051},
    {"capo/confidence": 0.998},
    {"capo/confidence": 1.0, "capo/noise_rate": 0.04},  # a small rate: sure from the beginning
    {"capo/confidence": 1.0, "capo/scale": 1.0, "capo/noise_rate": 0.0},  # DPO
    {"capo/weight": 1e-6},
    {"rewards/chosen": -9.9, "rewards/rejected": -10.0},
    {"rewards/chosen": -10.0, "rewards/rejected": -21.0},  # the rejected ones fall much faster
    {"rewards/chosen": -12.0, "rewards/rejected": -2.0},  # contradicted, not together
    {"rewards/chosen": float("nan"), "capo/scale": float("nan"), "capo/contradicted": float("nan")},
]


@pytest.mark.parametrize("name", SIGNS)
def test_a_sign_is_told_once(name):
    changes, text = SIGNS[name]
    watch = DegenerationWatch()
    (said,) = watch.add(SOUND | changes, 64)
    assert text in said
    assert watch.add(SOUND | changes, 64) == []
    for other in SIGNS.keys() - {name}:
        assert len(watch.add(SOUND | SIGNS[other][0], 64)) == 1


@pytest.mark.parametrize("changes", NEARLY, ids=str)
def test_what_is_less_is_no_sign(changes):
    assert DegenerationWatch().add(SOUND | changes, 1000) == []


def test_small_windows_are_pooled():
    """15 windows of 4 pairs are too few; with a 16th of another mean, the mean of all 64 counts: 0.9375 is sound."""
    for last, warned in ((0.0, 0), (1.0, 1)):
        watch = DegenerationWatch()
        for _ in range(15):
            assert watch.add(SOUND | {"capo/contradicted": 1.0}, 4) == []
        assert len(watch.add(SOUND | {"capo/contradicted": last}, 4)) == warned
    assert MIN_PAIRS == 64


def test_a_reference_that_prefers_the_chosen_answers_contradicts_all_pairs(
    make_args, model_dir, pairs, caplog, tmp_path
):
    """The reference has learned the labels, and the policy, which has not, is hardly trained: warned of once."""
    learn = make_args(noise_rate=0.0, max_steps=40, learning_rate=1e-2)
    teacher = CAPOTrainer(model_dir, args=learn, train_dataset=pairs)
    teacher.train()
    assert not [text for text in caplog.messages if "contradicted" in text]
    args = make_args(noise_rate=0.2, max_steps=40, learning_rate=1e-8, logging_steps=4)
    trainer = CAPOTrainer(load(model_dir), teacher.model, args=args, train_dataset=pairs)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert min(logged(trainer, "capo/contradicted")) >= 0.95
    assert len([text for text in caplog.messages if "pairs are contradicted" in text]) == 1
    trainer.train()
    assert len([text for text in caplog.messages if "pairs are contradicted" in text]) == 2


def test_an_ordinary_training_is_not_warned_of(make_args, model_dir, caplog):
    args = make_args(max_steps=20, learning_rate=1e-3, per_device_train_batch_size=8)
    trainer = CAPOTrainer(model_dir, args=args, train_dataset=make_pairs(48))
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert not [text for text in caplog.messages if "pairs" in text and "last" in text]


def test_a_stream_whose_weights_are_all_0_is_warned_of(model_dir, make_args, caplog):
    rows = [row | {"weight": 0.0} for row in make_pairs(64)]
    stream = IterableDataset.from_generator(lambda: iter(rows))
    args = make_args(per_device_train_batch_size=32, max_steps=2)
    CAPOTrainer(model_dir, args=args, train_dataset=stream).train()
    assert caplog.text.count("the last 64 pairs all have the weight 0: nothing is learned from them") == 1
