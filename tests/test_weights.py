"""The column `weight`: losses and gradients against sums over the pairs, one by one; what is refused.

Two processes and accumulation are in test_distributed.py.
"""

import pytest
import torch
import torch.nn.functional as F
from conftest import logged, make_pairs, tiny_llava
from datasets import Dataset, IterableDataset
from PIL import Image
from test_modes import COMMON, Oracle, load, relative_rewards, same, weights
from test_trl_contract import completion_log_prob, gradients
from transformers import AutoTokenizer, LlavaForConditionalGeneration

from trl_capo import CAPOTrainer
from trl_capo.noise_rate import NoiseRateEstimate
from trl_capo.pairs import PAIR

WEIGHTS = [2.0, 0.0, 1.0, 0.25, 3.0, 0.5, 1.0, 1.5]


def weighted(rows: Dataset, values=WEIGHTS) -> Dataset:
    return rows.add_column("weight", [values[index % len(values)] for index in range(len(rows))])


def expected_loss(step, rates, args, values) -> float:
    """mean_i w_i s_i * -log sigmoid(rho_i), in double precision."""
    rho, total = relative_rewards(step, args), 0.0
    for pair, rate, weight in zip(rho, rates, values, strict=True):
        p = torch.sigmoid(pair / args.confidence_temperature).item()
        scale = p / ((1 - rate) * p + rate * (1 - p))
        total += weight * scale * F.softplus(-pair).item() / len(rho)
    return total


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"noise_rate": 0.0},
        {"precompute_ref_log_probs": True},
        {"max_length": 40},
        {"dataloader_num_workers": 1, "stream": True},
        {"remove_unused_columns": False},
    ],
    ids=lambda options: "-".join(options) or "default",
)
def test_every_steps_loss_is_the_weighted_mean_over_its_pairs(make_args, model_dir, other_model_dir, pairs, options):
    """With noise rate 0 that is weighted DPO. Four steps of four pairs; the mean weight is logged."""
    options = dict(options)
    stream, args = options.pop("stream", False), make_args(**COMMON | options)
    oracle, data = Oracle(pairs, load(other_model_dir)), weighted(pairs)
    trainer = CAPOTrainer(
        model_dir,
        load(other_model_dir),
        args=args,
        train_dataset=data.to_iterable_dataset() if stream else data,
        callbacks=[oracle],
    )
    trainer.train()
    values = [WEIGHTS[:4], WEIGHTS[4:]] * 2
    expected = [
        expected_loss(step, [args.noise_rate] * 4, args, of_step)
        for step, of_step in zip(oracle.steps, values, strict=True)
    ]
    assert logged(trainer, "loss") == pytest.approx(expected, rel=1e-4)
    assert logged(trainer, "capo/weight") == [0.8125, 1.5, 0.8125, 1.5]
    assert max(logged(trainer, "capo/scale_max")) <= 1 / (1 - args.noise_rate)  # it is the scale's alone


def test_gradients_equal_an_oracle_that_takes_the_pairs_one_by_one(model_dir, other_model_dir, pairs, make_args):
    args = make_args(train_sampling_strategy="sequential", beta=0.3, noise_rate=0.3)
    trainer = CAPOTrainer(model_dir, load(other_model_dir), args=args, train_dataset=weighted(pairs))
    loss, found = gradients(trainer, next(iter(trainer.get_train_dataloader())))
    policy, reference, tokenizer = load(model_dir), load(other_model_dir), AutoTokenizer.from_pretrained(model_dir)
    expected = torch.zeros(())
    for weight, pair in zip(WEIGHTS[:4], pairs.select(range(4)), strict=True):
        chosen, rejected = (
            completion_log_prob(policy, tokenizer, pair["prompt"], pair[side])
            - completion_log_prob(reference, tokenizer, pair["prompt"], pair[side]).detach()
            for side in ("chosen", "rejected")
        )
        rho = 0.3 * (chosen - rejected)
        p = torch.sigmoid(rho.detach())
        expected = expected + weight * p / (0.7 * p + 0.3 * (1 - p)) * -torch.log(torch.sigmoid(rho)) / 4
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-6)
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-5)


def test_weight_2_is_a_pair_twice_and_weight_0_is_none(model_dir, other_model_dir, pairs, make_args):
    """But for the number of pairs that the mean is over: 4 times the one mean is 5 or 3 times the other."""
    args = make_args(**COMMON | {"per_device_train_batch_size": 8})
    for weight, rows in ((2.0, [0, 0, 1, 2, 3]), (0.0, [1, 2, 3])):
        sums = []
        for data in (weighted(pairs.select(range(4)), [weight, 1.0, 1.0, 1.0]), pairs.select(rows)):
            trainer = CAPOTrainer(model_dir, load(other_model_dir), args=args, train_dataset=data)
            loss, found = gradients(trainer, next(iter(trainer.get_train_dataloader())))
            sums.append({"loss": len(data) * loss} | {name: len(data) * value for name, value in found.items()})
        torch.testing.assert_close(*sums, rtol=1e-3, atol=1e-4)


def test_all_ones_are_no_column_to_the_bit(model_dir, other_model_dir, pairs, make_args):
    """Two epochs, so that pairs with a noise rate of their own are among them."""
    runs = []
    for data in (pairs, weighted(pairs, [1])):
        args = make_args(max_steps=9, eval_strategy="steps", eval_steps=4, learning_rate=2e-3)
        trainer = CAPOTrainer(model_dir, load(other_model_dir), args=args, train_dataset=data, eval_dataset=data)
        trainer.train()
        timed = ("runtime", "per_second")
        logs = [{k: v for k, v in entry.items() if not k.endswith(timed)} for entry in trainer.state.log_history[:-1]]
        runs.append((weights(trainer.model), logs))
    assert same(runs[0][0], runs[1][0])
    ones = [{entry.pop(key) for key in ("capo/weight", "eval_capo/weight") if key in entry} for entry in runs[1][1]]
    assert runs[0][1] == runs[1][1]
    assert ones == [{1.0}] * len(runs[0][1])


def test_evaluation_losses_are_weighted_where_the_data_have_weights(model_dir, other_model_dir, pairs, make_args):
    rows = pairs.select(range(8))
    sets = {"weighted": weighted(rows), "plain": rows, "stream": weighted(rows).to_iterable_dataset()}
    args = make_args(**COMMON)
    trainer = CAPOTrainer(model_dir, load(other_model_dir), args, train_dataset=pairs, eval_dataset=sets)
    metrics, oracle = trainer.evaluate(), Oracle(rows, load(other_model_dir))
    for step in (0, 1):
        trainer.state.global_step = step
        oracle.on_step_begin(args, trainer.state, None, load(model_dir))
    pairs_of = oracle.steps[0] + oracle.steps[1]
    for name, values in (("weighted", WEIGHTS), ("plain", [1.0] * 8), ("stream", WEIGHTS)):
        expected = expected_loss(pairs_of, [0.3] * 8, args, values)
        assert metrics[f"eval_{name}_loss"] == pytest.approx(expected, rel=1e-4)
        assert metrics.get(f"eval_{name}_capo/weight") == (None if name == "plain" else 1.15625)
    assert metrics["eval_weighted_rewards/margins"] == metrics["eval_plain_rewards/margins"]
    with pytest.raises(ValueError, match=r"eval_dataset: weight is null in 1 of 8 rows \(row 3\)"):
        trainer.evaluate(rows.add_column("weight", [1.0, 1.0, 1.0, None, *WEIGHTS[4:]]))


def test_only_the_sigmoid_term_is_weighted(model_dir, other_model_dir, pairs, make_args):
    """All weights 2: what they add is the sigmoid term once more."""
    losses = {}
    for names in (["sigmoid"], ["sigmoid", "sft"]):
        for value in (1.0, 2.0):
            args = make_args(**COMMON | {"loss_type": names, "loss_weights": [0.7, 0.2][: len(names)], "max_steps": 1})
            data = weighted(pairs, [value])
            trainer = CAPOTrainer(model_dir, load(other_model_dir), args=args, train_dataset=data)
            trainer.train()
            losses[len(names), value] = logged(trainer, "loss")[0]
    assert losses[2, 2.0] - losses[2, 1.0] == pytest.approx(losses[1, 1.0], rel=1e-4)
    assert losses[1, 2.0] == pytest.approx(2 * losses[1, 1.0], rel=1e-6)


def test_pairs_with_images_have_weights(make_args):
    processor, config = tiny_llava()
    rows = [
        {"images": [Image.new("RGB", (28, 28), color)], "prompt": "<image>Colour?", "chosen": color, "rejected": "no"}
        for color in ("red", "green", "blue", "white")
    ]
    losses = []
    for values in ([1.0], [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 1.0]):
        models = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            models.append(LlavaForConditionalGeneration(config))
        args = make_args(**COMMON | {"max_steps": 1})
        data = weighted(Dataset.from_list(rows), values)
        trainer = CAPOTrainer(*models, args=args, train_dataset=data, processing_class=processor)
        trainer.train()
        losses.append(logged(trainer, "loss")[0])
    assert losses[0] == pytest.approx(losses[1] + losses[2], rel=1e-5)
    assert 0 < losses[1] < losses[0]


def test_pairs_of_weight_0_say_nothing_of_the_noise_rate(model_dir, other_model_dir, pairs, make_args):
    """One step of 4 pairs: the rate is that of an estimate that has seen the two that count, unweighted."""
    args, oracle = make_args(**COMMON | {"noise_rate": "auto", "max_steps": 1}), Oracle(pairs, load(other_model_dir))
    data = weighted(pairs, [0.0, 0.5, 0.0, 7.0])
    trainer = CAPOTrainer(model_dir, load(other_model_dir), args=args, train_dataset=data, callbacks=[oracle])
    trainer.train()
    rates = {}
    for name, rows in (("counted", [1, 3]), ("all", [0, 1, 2, 3])):
        alone = NoiseRateEstimate()
        alone.make_room(24, torch.device("cpu"))
        rho, numbers = relative_rewards(oracle.steps[0], args)[rows].float(), torch.tensor(rows)
        alone.add(rho, numbers % 3, ["de", "sw", "日本"], numbers)
        alone.end_step(trainer.accelerator)
        rates[name] = alone.noise_rates
    torch.testing.assert_close(trainer._capo_estimate.noise_rates, rates["counted"], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(rates["all"], rates["counted"], atol=1e-3)


def test_weights_stay_with_their_pairs_when_pairs_are_dropped_and_shuffled(model_dir, pairs, make_args):
    """Prompts of ten numbers grow by a digit: max_length drops them, and the batch is in another order."""
    data = weighted(pairs, [float(index) for index in range(1, 25)])
    args = make_args(max_length=13, per_device_train_batch_size=24)
    trainer = CAPOTrainer(model_dir, args=args, train_dataset=data)
    batch = next(iter(trainer.get_train_dataloader()))
    assert 0 < len(batch[PAIR]) < 24
    assert batch[PAIR].tolist() != sorted(batch[PAIR].tolist())
    assert batch["weight"].tolist() == [1.0 + number for number in batch[PAIR].tolist()]
    assert batch["weight"].dtype == torch.float32


def test_bad_weights_are_refused_in_one_error_before_a_model_is_loaded(pairs, make_args):
    bad = [None, -1.0, float("nan"), float("inf"), 1e38, -0.5, 1e6, 1000001.0]
    data = pairs.add_column("weight", bad + [1.0] * 16)
    with pytest.raises(ValueError, match="cannot be used") as error:
        CAPOTrainer("no/such-model", args=make_args(), train_dataset=data, eval_dataset={"one": data})
    for name in ("train_dataset", "eval_dataset['one']"):
        for fault in (
            "weight is null in 1 of 24 rows (row 0)",
            "weight is negative in 2 of 24 rows (row 1, 5)",
            "weight is not finite in 2 of 24 rows (row 2, 3)",
            "weight is more than 1,000,000 in 2 of 24 rows (row 4, 7)",
        ):
            assert f"- {name}: {fault}. Give numbers from 0 to 1,000,000, or rename the column." in str(error.value)


@pytest.mark.parametrize(("values", "fault"), [(["1"], "is str, not a number"), ([True], "is bool"), ([0], "is 0 in")])
def test_what_is_no_weight_is_refused(pairs, make_args, values, fault):
    with pytest.raises(ValueError, match=f"train_dataset: weight {fault}"):
        CAPOTrainer("no/such-model", args=make_args(), train_dataset=weighted(pairs, values))


@pytest.mark.parametrize("options", [{"loss_type": ["ipo"]}, {"use_weighting": True}], ids=str)
def test_weights_without_a_pair_loss_to_weigh_are_refused(pairs, make_args, options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match="column 'weight'") as error:
        CAPOTrainer("no/such-model", args=make_args(noise_rate=0, **options), train_dataset=weighted(pairs))
    assert f"{name}={value}" in str(error.value)


def test_a_stream_is_checked_as_it_is_read(model_dir, make_args):
    """Its first hundred rows before a model is loaded; row 106 when it comes to it."""
    rows = [row | {"weight": 1} for row in make_pairs(120)]

    def stream(place: int) -> IterableDataset:
        changed = [row | ({"weight": -2} if index == place else {}) for index, row in enumerate(rows)]
        return IterableDataset.from_generator(lambda: iter(changed))

    with pytest.raises(ValueError, match=r"train_dataset: weight is negative in 1 of 100 rows \(row 7\)"):
        CAPOTrainer("no/such-model", args=make_args(), train_dataset=stream(7))
    args = make_args(per_device_train_batch_size=53, max_steps=3)
    trainer = CAPOTrainer(model_dir, args=args, train_dataset=stream(106))
    with pytest.raises(ValueError, match=r"train_dataset: weight is negative in row 106 \(-2\)"):
        trainer.train()
    assert trainer.state.global_step == 1  # the loader reads one batch ahead
