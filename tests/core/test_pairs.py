"""Pair numbers, groups, weights, trust and witnesses on their way through the trainer."""

import math

import pytest
import torch
from conftest import logged
from datasets import ClassLabel, Dataset, Features
from oracles import COMMON, Oracle, expected_logs, load, same, weights

from trl_capo import CAPOTrainer
from trl_capo.core.noise_model import NOISE_RATES
from trl_capo.core.pairs import GROUP, PAIR, WITNESS, PairIndex, find_groups

WEIGHTS = [2.0, 0.0, 1.0, 0.25, 3.0, 0.5, 1.0, 1.5]


def weighted(rows: Dataset, values=WEIGHTS) -> Dataset:
    return rows.add_column("weight", [values[index % len(values)] for index in range(len(rows))])


SFT = {"loss_type": ["sigmoid", "sft"], "loss_weights": [0.7, 0.2]}


@pytest.mark.parametrize("options", [{}, {"noise_rate": 0.0}, {"precompute_ref_log_probs": True}, SFT], ids=str)
def test_every_loss_is_the_weighted_mean_over_its_pairs(make_args, model_dir, other_model_dir, pairs, options, caplog):
    """With noise rate 0 that is weighted DPO. The SFT term is not weighted. The mean weight is logged."""
    args, oracle = make_args(**COMMON | options), Oracle(pairs, load(other_model_dir))
    sets = {"weighted": weighted(pairs.select(range(4))), "plain": pairs.select(range(4))}
    data = {"train_dataset": weighted(pairs), "eval_dataset": sets}
    trainer = CAPOTrainer(model_dir, load(other_model_dir), args=args, **data, callbacks=[oracle])
    metrics = trainer.evaluate()
    trainer.train()
    for step, losses, values in zip(
        oracle.steps, logged(trainer, "loss"), [WEIGHTS[:4], WEIGHTS[4:]] * 2, strict=True
    ):
        expected = expected_logs(step, args.noise_rate, args, weight=torch.tensor(values))
        assert losses == pytest.approx(expected["loss"], rel=1e-4)
    assert logged(trainer, "capo/weight") == [0.8125, 1.5, 0.8125, 1.5]
    assert "train_dataset: its column 'weight' changes the loss" in caplog.text
    assert max(logged(trainer, "capo/scale_max")) <= 1 / (1 - args.noise_rate)  # without the weight
    for name, weight in (("weighted", torch.tensor(WEIGHTS[:4])), ("plain", 1.0)):
        expected = expected_logs(oracle.steps[0], args.noise_rate, args, weight=weight)
        assert metrics[f"eval_{name}_loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert metrics.get(f"eval_{name}_capo/weight") == (0.8125 if name == "weighted" else None)


def test_weights_of_one_are_no_column_to_the_bit(model_dir, other_model_dir, pairs, make_args):
    """Two epochs, so that pairs with a noise rate of their own are among them."""
    runs = []
    for data in (pairs, weighted(pairs, [1])):
        args = make_args(max_steps=9, learning_rate=2e-3)
        trainer = CAPOTrainer(model_dir, load(other_model_dir), args=args, train_dataset=data)
        trainer.train()
        runs.append((weights(trainer.model), logged(trainer, "loss"), logged(trainer, "capo/scale_min")))
    assert same(runs[0][0], runs[1][0])
    assert runs[0][1:] == runs[1][1:]


def test_columns_stay_with_their_pairs_when_pairs_are_dropped_and_shuffled(model_dir, pairs, make_args):
    """Prompts with numbers of two digits are longer: max_length drops them, and the batch is in another order."""
    args = make_args(max_length=13, per_device_train_batch_size=24)
    data = weighted(pairs, [float(index) for index in range(1, 25)])
    trainer = CAPOTrainer(model_dir, args=args, train_dataset=data)
    batch = next(iter(trainer.get_train_dataloader()))
    numbers = batch[PAIR].tolist()
    assert 0 < len(numbers) < 24
    assert numbers != sorted(numbers)
    assert batch["weight"].tolist() == [1.0 + number for number in numbers]
    assert batch[GROUP].tolist() == [number % 3 for number in numbers]


SCORES = [4.0, None, -2.0, 1.0, 0.0, float("nan")] * 4
"""The median of |x| is 2, so that asinh(2), 0, asinh(-1) and asinh(0.5) come first."""


@pytest.mark.parametrize("columns", ["one", "two"])
def test_a_witness_is_a_column_or_the_difference_of_two(model_dir, pairs, make_args, columns):
    args = make_args(witness="score", per_device_train_batch_size=6, train_sampling_strategy="sequential")
    if columns == "one":
        data = pairs.add_column("score", SCORES)
    else:
        chosen = [score if score is None else score + 1.5 for score in SCORES]
        data = pairs.add_column("score_chosen", chosen).add_column("score_rejected", [1.5] * 24)
    trainer = CAPOTrainer(model_dir, args=args, train_dataset=data, eval_dataset=pairs)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch[WITNESS].tolist() == pytest.approx([math.asinh(x) for x in (2, 0, -1, 0.5, 0, 0)])
    for name, bad in (("nosuch", "witness='nosuch'.*nosuch_chosen and nosuch_rejected"), ("prompt", "in prompt")):
        with pytest.raises(ValueError, match=bad):
            CAPOTrainer("no/such-model", args=make_args(witness=name), train_dataset=data)


@pytest.mark.parametrize("rate", [0.4, "auto"])
def test_trusted_labels_have_the_noise_rate_0(make_args, model_dir, other_model_dir, pairs, rate, caplog):
    """A step logs the rates that it uses. Six labels are trusted and were wrong, so the posterior of e is ~ e^6."""
    args = make_args(**COMMON | {"noise_rate": rate, "max_steps": 2, "group_column": "none"})
    data = pairs.add_column("trusted", [False, True, False, False] * 6)
    data, grid = data.add_column("trusted_swapped", [None, True, None, None] * 6), torch.tensor(NOISE_RATES)
    rate = (grid**7).sum() / (grid**6).sum() if rate == "auto" else rate
    trainer = CAPOTrainer(model_dir, load(other_model_dir), args=args, train_dataset=data)
    assert "its column 'trusted' changes the loss" in caplog.text
    trainer.train()
    assert logged(trainer, "capo/noise_rate")[0] == pytest.approx(0.75 * float(rate), rel=2e-3)
    for wrong in (["yes"] * 24, [None] * 24):
        with pytest.raises(ValueError, match="'trusted' says"):
            CAPOTrainer("no/such-model", args=args, train_dataset=pairs.add_column("trusted", wrong))


def test_a_column_of_a_stream_is_announced_and_a_trusted_one_only_where_it_counts(pairs, make_args, caplog):
    make_args()  # logging needs the state of Accelerate
    data = weighted(pairs).add_column("trusted", [True] * 24).to_iterable_dataset()
    PairIndex("auto", "none", 0).add_columns(data, "d")
    PairIndex("auto", "none", 0.2).add_columns(data.map(dict), "e")  # which does not know its columns
    announced = [name for name in ("d: its column 'weight'", "d: its column 'trusted'") if name in caplog.text]
    assert announced == ["d: its column 'weight'"]
    assert all(f"e: its column {name!r} changes the loss" in caplog.text for name in ("weight", "trusted"))


@pytest.mark.parametrize("wrong", [None, -1.0, float("nan"), float("inf"), "1", "all 0"])
def test_what_is_no_weight_is_refused_before_a_model_is_loaded(pairs, make_args, wrong):
    values = [0] * 24 if wrong == "all 0" else [str(1)] * 24 if wrong == "1" else [1.0, 1.0, wrong] + [1.0] * 21
    data = pairs.add_column("weight", values)
    for options, name in (({"train_dataset": data}, "train_dataset"), ({"eval_dataset": {"a": data}}, "eval_dataset")):
        with pytest.raises(ValueError, match=rf"{name}.*'weight'"):
            CAPOTrainer("no/such-model", args=make_args(), **{"train_dataset": pairs} | options)


@pytest.mark.parametrize(
    ("values", "feature", "labels"),
    [
        (["日本語", "zh/hans", "with space"], None, ["日本語", "zh/hans", "with space"]),
        ([3, -1, 0], None, ["3", "-1", "0"]),
        ([1.5, 2.0, float("nan"), None], None, ["1.5", "2", "(none)", "(none)"]),
        (["de", None, ""], None, ["de", "(none)", "(none)"]),
        ([1, 0, None, -1], ClassLabel(names=["de", "sw"]), ["sw", "de", "(none)", "(none)"]),
    ],
)
def test_groups_are_named_by_the_columns_values_or_by_a_class_label(values, feature, labels):
    data = Dataset.from_dict({"language": values}, features=feature and Features({"language": feature}))
    assert find_groups(data, "auto", "data") == ("language", labels)


@pytest.mark.parametrize("values", [[["de", "sw"]], ["macro"], ["worst"], ["ties"]])
def test_values_that_cannot_name_a_group_are_refused(values):
    with pytest.raises(ValueError, match="also_by='side': .*"):
        find_groups(Dataset.from_dict({"side": values}), "side", "data", "also_by")


@pytest.mark.parametrize("option", ["group_column", "witness"])
def test_columns_that_a_stream_cannot_have_are_refused(pairs, make_args, option):
    with pytest.raises(ValueError, match=f"{option}='nosuch'.* is a stream"):
        CAPOTrainer("no/such-model", args=make_args(**{option: "nosuch"}), train_dataset=pairs.to_iterable_dataset())


def test_groups_of_evaluation_data_alone_or_without_a_pair_that_fits_have_no_noise_rate(model_dir, pairs, make_args):
    """The prompts of "日本" have 16 bytes and more, the others at most 14."""
    other = pairs.select(range(2)).remove_columns("language").add_column("language", ["xx", "xx"])
    args = make_args(max_length=16, max_steps=4)
    trainer = CAPOTrainer(model_dir, None, args, train_dataset=pairs, eval_dataset=other)
    trainer.train()
    assert set(trainer.noise_rate_estimator.by_group()) == {"de", "sw"}
