"""An oracle for scores of preference pairs: every answer alone and unpadded, with plain cross-entropy in float64."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from conftest import byte_tokenizer
from datasets import Dataset
from pair_oracle import make_pool
from transformers import AutoModelForCausalLM

from trl_capo.evaluate.command import EvaluateArguments, evaluate

BETA = 0.4
END = byte_tokenizer().eos_token_id


def load(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def measure(folder: Path, rows: Dataset | None = None, **options) -> dict:
    """The figures of an evaluation on these rows, by default the pool, as metrics.json has them."""
    rows = make_pool() if rows is None else rows
    rows.to_json(folder / "pool.jsonl", force_ascii=False)
    data = {"dataset_name": str(folder / "pool.jsonl"), "dataset_split": "train"}
    args = EvaluateArguments(**{**data, "beta": BETA, "per_device_eval_batch_size": 5, **options})
    return json.loads(json.dumps(evaluate(args)[0]))


def the_model(figures: dict) -> dict:
    (model,) = figures["models"].values()
    return model


def token_log_probs(model, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """(tokens,) log-probabilities of the answer's tokens; nothing predicts the first token of a sequence."""
    ids = torch.tensor([prompt + answer], device=model.device)
    with torch.no_grad():
        losses = F.cross_entropy(model(ids).logits[0, :-1].double(), ids[0, 1:], reduction="none")
    return -losses[max(len(prompt) - 1, 0) :]


def score_pairs(policy, reference, rows, limit: int = 10**6) -> list[dict]:
    """Group, margin and difference per token of each text pair whose prompt leaves room for an answer."""
    scored, encode = [], byte_tokenizer().encode
    for row in rows:
        prompt = encode(row["prompt"])
        if len(prompt) < limit:
            answers = [(encode(row[side]) + [END])[: limit - len(prompt)] for side in ("chosen", "rejected")]
            parts = [[token_log_probs(model, prompt, ids) for ids in answers] for model in (policy, reference)]
            (chosen, rejected), (ref_chosen, ref_rejected) = [[float(x.sum()) for x in part] for part in parts]
            margin = BETA * ((chosen - ref_chosen) - (rejected - ref_rejected))
            lead = float(parts[0][0].mean() - parts[0][1].mean())
            scored.append({"group": row.get("language"), "margin": margin, "lead": lead})
    return scored
