"""Metrics per language inside the trainer: every way that a pair's group takes from the data set to the logs.

The oracle scores pair after pair, alone and unpadded, with plain cross-entropy in double precision (token_log_probs),
and takes means over the pairs of a set, a group or a logging window. Two processes, model selection,
resuming and images: test_groups_distributed.py. Not covered: the sums themselves (test_metrics.py).
"""

import pytest
from conftest import as_conversation, byte_tokenizer, make_pairs
from datasets import Dataset
from peft import LoraConfig
from test_modes import COMMON, END, LORA, load, token_log_probs
from transformers import TrainerCallback
from trl_capo import CAPOTrainer

BETA = 0.3
OPTIONS = COMMON | {"beta": BETA, "max_steps": 2, "learning_rate": 5e-3}


def make_pool(count: int = 24) -> Dataset:
    """Pairs with margins of both signs in each language (every other one is flipped), some with a long prompt."""

    def change(row, index):
        sides = ("rejected", "chosen") if index % 2 else ("chosen", "rejected")
        return {
            "prompt": row["prompt"] + " please" * 3 * (index % 7 == 0),
            "chosen": row[sides[0]],
            "rejected": row[sides[1]],
        }

    return make_pairs(count).map(change, with_indices=True)


def tokens(row) -> list[list[int]]:
    if isinstance(row["prompt"], str):
        return [
            byte_tokenizer().encode(row[key]) + [END] * (key != "prompt") for key in ("prompt", "chosen", "rejected")
        ]
    texts = [row[key][0]["content"] for key in ("prompt", "chosen", "rejected")]
    texts = [f"<s>user: {texts[0]}</s><s>assistant: ", *(text + "</s>" for text in texts[1:])]
    return [byte_tokenizer().encode(text) for text in texts]


def score_pairs(policy, reference, rows, beta=BETA, limit=10**6) -> list[dict]:
    """TRL's keys for each pair that has room for an answer, and its group."""
    scored = []
    for row in rows:
        prompt, *answers = tokens(row)
        if len(prompt) >= limit:
            continue
        answers = [answer[: limit - len(prompt)] for answer in answers]
        parts = [[token_log_probs(m, prompt, ids) for ids in answers] for m in (policy, reference)]
        (chosen, rejected), (ref_chosen, ref_rejected) = [[float(x.sum()) for x in part] for part in parts]
        margin = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
        figures = {
            "rewards/chosen": beta * (chosen - ref_chosen),
            "rewards/rejected": beta * (rejected - ref_rejected),
        }
        figures |= {"rewards/margins": margin, "rewards/accuracies": float(margin > 0)}
        figures |= {"logps/chosen": chosen, "logps/rejected": rejected, "ties": float(margin == 0)}
        lead = parts[0][0].mean() - parts[0][1].mean()
        scored.append((row.get("language"), figures | {"reference_free": float(lead > 0)}))
    return scored


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def by_group(scored, prefix: str, names=None) -> dict:
    """The keys of the groups: their means, the mean of the accuracies, the lowest of them."""
    members, expected = {}, {}
    for index, (group, figures) in enumerate(scored):
        members.setdefault(group if names is None else names[index], []).append(figures)
    for group, figures in members.items():
        for key in ("rewards/accuracies", "rewards/margins"):
            expected[f"{prefix}{key}/{group}"] = mean(f[key] for f in figures)
    accuracies = [mean(f["rewards/accuracies"] for f in figures) for figures in members.values()]
    summary = {"macro": mean(accuracies), "worst": min(accuracies), "ties": mean(f["ties"] for _, f in scored)}
    return expected | {f"{prefix}rewards/accuracies/{key}": value for key, value in summary.items()}


def in_evaluation(scored, prefix="eval_", names=None) -> dict:
    keys = [key for key in scored[0][1] if key.startswith(("rewards/", "logps/"))]
    return {prefix + key: mean(f[key] for _, f in scored) for key in keys} | by_group(scored, prefix, names)


def assert_metrics(metrics: dict, expected: dict, tolerance=1e-4):
    """Exactly these `rewards/*` and `logps/*` keys, no more, with these values."""
    found = {key: value for key, value in metrics.items() if "rewards/" in key or "logps/" in key}
    assert found == pytest.approx(expected, rel=tolerance, abs=tolerance)


class Steps(TrainerCallback):
    """The pairs of every optimiser step, taken in the order of the data, scored with the policy as it then is."""

    def __init__(self, reference, rows, size: int, limit=10**6):
        self.rows = [row for row in rows if len(tokens(row)[0]) < limit]
        self.reference, self.size, self.limit, self.position, self.steps = reference, size, limit, 0, []

    def on_step_begin(self, args, state, control, model, **kwargs):
        step = self.rows[self.position : self.position + self.size]
        self.position = (self.position + len(step)) % len(self.rows)
        self.steps.append(score_pairs(model, self.reference, step, limit=self.limit))

    def assert_logged(self, trainer, window: int):
        entries = [entry for entry in trainer.state.log_history if "loss" in entry]
        windows = [sum(self.steps[i : i + window], []) for i in range(0, len(self.steps), window)]
        for entry, scored in zip(entries, windows, strict=True):
            expected = by_group(scored, "")
            assert {k: v for k, v in entry.items() if "/accuracies/" in k or "/margins/" in k} == pytest.approx(
                expected, rel=1e-4, abs=1e-4
            )


@pytest.fixture(scope="module")
def pool() -> Dataset:
    return make_pool()


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


def test_training_logs_weigh_pairs_over_the_logging_window(make_args, model_dir, other_model_dir, pool):
    """14 pairs in steps of 2 x 4: windows of 8 + 6 pairs, whose last micro-batch has 2."""
    rows, sizes = pool.select(range(14)), {"logging_steps": 2, "gradient_accumulation_steps": 2, "max_steps": 4}
    steps = Steps(load(other_model_dir), rows, 8)
    args = make_args(**OPTIONS | sizes)
    trainer = CAPOTrainer(load(model_dir), load(other_model_dir), args, train_dataset=rows, callbacks=[steps])
    trainer.train()
    assert [len(step) for step in steps.steps] == [8, 6, 8, 6]
    steps.assert_logged(trainer, 2)
