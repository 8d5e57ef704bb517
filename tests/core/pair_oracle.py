"""An oracle for metrics of preference pairs: every pair alone and unpadded, with plain cross-entropy in float64."""

import pytest
from conftest import byte_tokenizer, make_pairs
from datasets import Dataset
from oracles import COMMON, END, token_log_probs
from transformers import TrainerCallback

BETA = 0.3
OPTIONS = COMMON | {"beta": BETA, "max_steps": 2, "learning_rate": 5e-3}


def make_pool(count: int = 24) -> Dataset:
    """Pairs with margins of both signs in each language (every other one is flipped), some with a long prompt."""

    def change(row, index):
        sides = ("rejected", "chosen") if index % 2 else ("chosen", "rejected")
        prompt = row["prompt"] + " please" * 3 * (index % 7 == 0)
        return {"prompt": prompt, "chosen": row[sides[0]], "rejected": row[sides[1]]}

    return make_pairs(count).map(change, with_indices=True)


def tokens(row) -> list[list[int]]:
    if isinstance(row["prompt"], str):
        texts, ends = [row[key] for key in ("prompt", "chosen", "rejected")], ([], [END], [END])
    else:
        texts, ends = [row[key][0]["content"] for key in ("prompt", "chosen", "rejected")], ([], [], [])
        texts = [f"<s>user: {texts[0]}</s><s>assistant: ", *(text + "</s>" for text in texts[1:])]
    return [byte_tokenizer().encode(text) + end for text, end in zip(texts, ends, strict=True)]


def score_pairs(policy, reference, rows, limit=10**6) -> list[tuple[str | None, dict]]:
    """The group of each pair that has room for an answer, TRL's keys, and the policy's lead per token."""
    scored = []
    for row in rows:
        prompt, *answers = tokens(row)
        if len(prompt) >= limit:
            continue
        answers = [answer[: limit - len(prompt)] for answer in answers]
        parts = [[token_log_probs(m, prompt, ids) for ids in answers] for m in (policy, reference)]
        (chosen, rejected), (ref_chosen, ref_rejected) = [[float(x.sum()) for x in part] for part in parts]
        rewards = {
            "rewards/chosen": BETA * (chosen - ref_chosen),
            "rewards/rejected": BETA * (rejected - ref_rejected),
        }
        margin = rewards["rewards/chosen"] - rewards["rewards/rejected"]
        figures = rewards | {"rewards/margins": margin, "rewards/accuracies": float(margin > 0)}
        figures |= {"logps/chosen": chosen, "logps/rejected": rejected, "ties": float(margin == 0)}
        figures["lead"] = float(parts[0][0].mean() - parts[0][1].mean())
        scored.append((row.get("language"), figures))
    return scored


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def by_group(scored, prefix: str) -> dict:
    """The keys of the groups: their means, the mean of the accuracies, the lowest of them."""
    members, expected = {}, {}
    for group, figures in scored:
        members.setdefault(group, []).append(figures)
    members.pop(None, None)
    for group, figures in members.items():
        for key in ("rewards/accuracies", "rewards/margins"):
            expected[f"{prefix}{key}/{group}"] = mean(f[key] for f in figures)
    accuracies = [mean(f["rewards/accuracies"] for f in figures) for figures in members.values()]
    summary = {"macro": mean(accuracies), "worst": min(accuracies)} if accuracies else {}
    summary["ties"] = mean(figures["ties"] for _, figures in scored)
    return expected | {f"{prefix}rewards/accuracies/{key}": value for key, value in summary.items()}


def in_evaluation(scored, prefix="eval_") -> dict:
    keys = [key for key in scored[0][1] if key.startswith(("rewards/", "logps/"))]
    return {prefix + key: mean(figures[key] for _, figures in scored) for key in keys} | by_group(scored, prefix)


def assert_metrics(metrics: dict, expected: dict, tolerance=1e-4):
    """Exactly these `rewards/*` and `logps/*` keys, no more, with these values."""
    found = {key: value for key, value in metrics.items() if "rewards/" in key or "logps/" in key}
    assert found == pytest.approx(expected, rel=tolerance, abs=tolerance)


class Steps(TrainerCallback):
    """The pairs of every optimiser step, taken in the order of the data, scored with the policy as it then is."""

    def __init__(self, reference, rows, size: int, limit=10**6) -> None:
        self.rows = [row for row in rows if len(tokens(row)[0]) < limit]
        self.reference, self.size, self.limit, self.position, self.steps = reference, size, limit, 0, []

    def on_step_begin(self, args, state, control, model, **kwargs) -> None:
        step = self.rows[self.position : self.position + self.size]
        self.position = (self.position + len(step)) % len(self.rows)
        self.steps.append(score_pairs(model, self.reference, step, limit=self.limit))

    def assert_logged(self, trainer, window: int):
        """What was logged for the groups, window after window of so many steps, must be what the oracle saw."""
        entries = [entry for entry in trainer.state.log_history if "loss" in entry]
        windows = [sum(self.steps[i : i + window], []) for i in range(0, len(self.steps), window)]
        for entry, scored in zip(entries, windows, strict=True):
            found = {key: value for key, value in entry.items() if "/accuracies/" in key or "/margins/" in key}
            assert found == pytest.approx(by_group(scored, ""), rel=1e-4, abs=1e-4)
