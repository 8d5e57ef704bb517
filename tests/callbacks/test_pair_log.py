"""The pair log of real trainings, against an oracle that scores every pair by itself, and its folder.

Two processes are in tests/core/test_distributed.py, killed trainings in kill_battery.py.
"""

import json
import math
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from conftest import logged, make_pairs
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from trl_capo import CAPOTrainer, PairLog
from trl_capo.callbacks import pair_log
from trl_capo.callbacks.pair_log import SCHEMA, LogInfo, read_log
from trl_capo.common.fingerprint import fingerprint

BETA = 0.3
SAVING = {"max_steps": 10, "save_strategy": "steps", "save_steps": 2, "noise_rate": 0, "lr_scheduler_type": "constant"}


def rows_of(folder) -> list[dict]:
    return [row for batch in read_log(Path(folder)).batches() for row in batch.to_pylist()]


def train(model_dir, args, rows, folder, checkpoint=None, *callbacks) -> list[dict]:
    trainer = CAPOTrainer(model_dir, args=args, train_dataset=rows, callbacks=[PairLog(folder), *callbacks])
    trainer.train(resume_from_checkpoint=checkpoint)
    return rows_of(folder)


def answer_log_prob(model, tokenizer, prompt: str, answer: str) -> float:
    """The sum of the answer's token log-probs, without a batch; one token is one byte, so the prompt is a prefix."""
    ids = torch.tensor([tokenizer(prompt + answer + tokenizer.eos_token).input_ids])
    with torch.no_grad():
        log_probs = model(input_ids=ids).logits[0, :-1].log_softmax(dim=-1)
    start = len(tokenizer(prompt).input_ids)
    return log_probs[start - 1 :].gather(1, ids[0, start:, None]).sum().item()


class ScoreAll(TrainerCallback):
    """Keeps the log-probs of every pair under the model with which each step begins."""

    def __init__(self, rows: Dataset, tokenizer) -> None:
        self.rows, self.tokenizer, self.steps = rows, tokenizer, {}

    def on_step_begin(self, args, state, control, model, **kwargs):
        self.steps[state.global_step + 1] = self.score(model)

    def score(self, model) -> list[list[float]]:
        answers = ("chosen", "rejected")
        return [[answer_log_prob(model, self.tokenizer, r["prompt"], r[a]) for a in answers] for r in self.rows]


@pytest.mark.parametrize(
    "sizes",
    [{}, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}, {"precompute_ref_log_probs": True}],
    ids=["one batch", "accumulation", "precomputed"],
)
def test_every_row_is_what_an_oracle_makes_of_its_pair_at_its_step(
    model_dir, other_model_dir, make_args, tmp_path, sizes
):
    """Five steps of 4 pairs and one of 2 in the first epoch; evaluations in between leave no rows."""
    rows, tokenizer = make_pairs(22), AutoTokenizer.from_pretrained(model_dir)
    reference = AutoModelForCausalLM.from_pretrained(other_model_dir)
    scores, options = ScoreAll(rows, tokenizer), {"beta": BETA, "learning_rate": 2e-3, "gradient_checkpointing": False}
    args = make_args(**options | sizes, max_steps=8, eval_strategy="steps", eval_steps=3)
    data = {"train_dataset": rows, "eval_dataset": rows.select(range(4))}
    trainer = CAPOTrainer(model_dir, reference, args=args, callbacks=[scores, PairLog(tmp_path / "log")], **data)
    trainer.train()
    found, references = rows_of(tmp_path / "log"), scores.score(AutoModelForCausalLM.from_pretrained(other_model_dir))
    assert [row["step"] for row in found] == [step for step in range(1, 9) for _ in range(2 if step == 6 else 4)]
    assert [row["epoch"] for row in found] == [0] * 22 + [1] * 8
    assert sorted(row["pair"] for row in found[:22]) == list(range(22))
    for row in found:
        (chosen, rejected), (ref_chosen, ref_rejected) = (
            scores.steps[row["step"]][row["pair"]],
            references[row["pair"]],
        )
        rho, rate, group_rate = row["relative_reward"], row["noise_rate"], row["group_noise_rate"]
        assert row["group"] == rows[row["pair"]]["language"]
        assert (row["chosen_logps"], row["rejected_logps"]) == pytest.approx((chosen, rejected), rel=1e-4)
        assert row["reference_margin"] == pytest.approx(ref_chosen - ref_rejected, rel=1e-4, abs=1e-3)
        assert rho == pytest.approx(BETA * (chosen - ref_chosen - rejected + ref_rejected), rel=1e-4, abs=1e-3)
        p = 1 / (1 + math.exp(-rho))
        assert row["confidence"] == pytest.approx((1 - rate) * p / ((1 - rate) * p + rate * (1 - p)), rel=1e-4)
        label_weight = (1 - 2 * rate) / max(1 - 2 * group_rate, 0.2)
        assert row["scale"] == pytest.approx(label_weight * row["confidence"] / (1 - rate), rel=1e-4, abs=1e-6)
    for step, rate in enumerate(logged(trainer, "capo/noise_rate"), start=1):
        of_step = [row["noise_rate"] for row in found if row["step"] == step]
        assert sum(of_step) / len(of_step) == pytest.approx(rate, rel=1e-5)


@pytest.mark.parametrize("buffered", [4, 12, 10_000])
def test_a_training_that_resumes_from_an_older_checkpoint_has_every_row_once(
    model_dir, pairs, make_args, tmp_path, monkeypatch, buffered
):
    """10 steps twice, the second time without checkpoints; on from step 4; then from step 2 up to step 5."""
    monkeypatch.setattr(pair_log, "BUFFERED_PAIRS", buffered)
    args, log = make_args(**SAVING), tmp_path / "log"
    whole = train(model_dir, args, pairs, log)
    assert len(whole) == 40
    assert train(model_dir, make_args(**SAVING | {"save_strategy": "no"}), pairs, log) == whole
    assert train(model_dir, args, pairs, log, f"{args.output_dir}/checkpoint-4") == whole
    args.max_steps = 5
    assert train(model_dir, args, pairs, log, f"{args.output_dir}/checkpoint-2") == whole[:20]


class ReadLog(TrainerCallback):
    """The last step in the log whenever a checkpoint has been saved."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.last = folder, []

    def on_save(self, args, state, control, **kwargs):
        self.last.append(rows_of(self.folder)[-1]["step"])


@pytest.mark.parametrize(("strategy", "saved"), [("steps", [2, 4, 6, 8]), ("epoch", [6, 8])])
def test_the_log_contains_every_step_that_a_checkpoint_contains(
    model_dir, pairs, make_args, tmp_path, strategy, saved
):
    args = make_args(**SAVING | {"max_steps": 8, "save_strategy": strategy})
    reader = ReadLog(tmp_path / "log")
    train(model_dir, args, pairs, tmp_path / "log", None, reader)
    assert reader.last == saved


def test_a_training_that_starts_again_replaces_the_log_of_its_data_and_no_other(
    model_dir, pairs, make_args, tmp_path, caplog
):
    args, log = make_args(), tmp_path / "log"
    before = train(model_dir, args, pairs, log)
    assert "Replacing" not in caplog.text
    with pytest.raises(ValueError, match="pair_log='.*log': the folder holds the log of other data"):
        train(model_dir, args, make_pairs(20), log)
    assert rows_of(log) == before
    args.max_steps = 2
    assert [row["step"] for row in train(model_dir, args, pairs, log)] == [1] * 4 + [2] * 4
    assert caplog.text.count("Replacing the pair log of an earlier training on the same data") == 1


@pytest.mark.parametrize("asks", [False, True])
def test_the_log_says_which_data_it_is_about(model_dir, pairs, make_args, tmp_path, asks):
    source = {"dataset_name": "pairs.jsonl"}
    args = make_args(max_steps=1, use_reference_margin=asks)
    log = PairLog(tmp_path / "log", source)
    CAPOTrainer(model_dir, args=args, train_dataset=pairs, callbacks=[log]).train()
    assert read_log(tmp_path / "log").info == LogInfo(24, fingerprint(pairs), source, asks)
    content = json.loads((tmp_path / "log" / "log.json").read_text())
    assert list(content) == ["pairs", "fingerprint", "source", "asks_reference", "format"]
    assert pa.parquet.read_schema(next((tmp_path / "log").glob("*.parquet"))).equals(SCHEMA)


def test_what_is_no_log_or_has_no_rows_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is not a pair log: it has no log.json"):
        read_log(tmp_path)
    (tmp_path / "log.json").write_text("{}")
    with pytest.raises(ValueError, match="has no rows"):
        read_log(tmp_path)
