"""The pair log of real runs, against an oracle that scores every pair by itself, and its folder."""

import json
import math
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import logged, make_pairs
from oracles import load, pair_log_probs
from transformers import TrainerCallback

from trl_capo import CAPOTrainer, PairLog
from trl_capo.callbacks import pair_log
from trl_capo.callbacks.pair_log import SCHEMA, LogInfo, read_log
from trl_capo.common.fingerprint import fingerprint

BETA = 0.3
SAVING = {"max_steps": 10, "save_strategy": "steps", "save_steps": 2, "noise_rate": 0, "lr_scheduler_type": "constant"}


def rows_of(folder) -> list[dict]:
    return [row for batch in read_log(Path(folder)).batches() for row in batch.to_pylist()]


class ReadLog(TrainerCallback):
    """Asserts that the log contains every step that a checkpoint contains."""

    def on_save(self, args, state, control, **kwargs):
        assert rows_of(Path(args.output_dir).with_name("log"))[-1]["step"] == state.global_step


def train(model_dir, args, rows, folder, checkpoint=None) -> list[dict]:
    trainer = CAPOTrainer(model_dir, args=args, train_dataset=rows, callbacks=[PairLog(folder), ReadLog()])
    trainer.train(resume_from_checkpoint=checkpoint)
    return rows_of(folder)


HALF = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}


@pytest.mark.parametrize("sizes", [HALF, {"precompute_ref_log_probs": True}], ids=["accumulation", "precomputed"])
def test_every_row_agrees_with_an_oracle(model_dir, other_model_dir, make_args, tmp_path, sizes):
    """Five steps of 4 pairs and one of 2 in the first epoch; evaluations leave no rows, nothing is learned."""
    rows, models = make_pairs(22), [load(model_dir), load(other_model_dir)]
    scores = [[part.sum().item() for part in pair_log_probs(row, models)] for row in rows]
    args = make_args(**sizes, beta=BETA, learning_rate=0.0, max_steps=8, eval_strategy="steps", eval_steps=3)
    data = {"train_dataset": rows, "eval_dataset": rows.select(range(4))}
    trainer = CAPOTrainer(*models, args=args, callbacks=[PairLog(tmp_path / "log")], **data)
    trainer.train()
    found = rows_of(tmp_path / "log")
    assert [row["step"] for row in found] == [step for step in range(1, 9) for _ in range(2 if step == 6 else 4)]
    assert [row["epoch"] for row in found] == [0] * 22 + [1] * 8
    assert sorted(row["pair"] for row in found[:22]) == list(range(22))
    mean_scales: dict[tuple, float] = {}  # the same for all pairs of a group in a step
    for row in found:
        chosen, rejected, ref_chosen, ref_rejected = scores[row["pair"]]
        rho, rate = row["relative_reward"], row["noise_rate"]
        assert row["group"] == rows[row["pair"]]["language"]
        assert (row["chosen_logps"], row["rejected_logps"]) == pytest.approx((chosen, rejected), rel=1e-4)
        assert row["reference_margin"] == pytest.approx(ref_chosen - ref_rejected, rel=1e-4, abs=1e-3)
        assert rho == pytest.approx(BETA * (chosen - ref_chosen - rejected + ref_rejected), rel=1e-4, abs=1e-3)
        p = 1 / (1 + math.exp(-rho))
        assert row["confidence"] == pytest.approx((1 - rate) * p / ((1 - rate) * p + rate * (1 - p)), rel=1e-4)
        mean_scale = (1 - 2 * rate) * row["confidence"] / (1 - rate) / row["scale"]
        assert mean_scale == pytest.approx(mean_scales.setdefault((row["step"], row["group"]), mean_scale), rel=1e-4)
    rates = [[row["noise_rate"] for row in found if row["step"] == step] for step in range(1, 9)]
    assert logged(trainer, "capo/noise_rate") == pytest.approx([sum(part) / len(part) for part in rates], rel=1e-5)


@pytest.mark.parametrize("buffered", [12, 10_000])
def test_a_resumed_training_has_every_row_once(model_dir, pairs, make_args, tmp_path, monkeypatch, buffered):
    """10 steps twice, the second time without checkpoints; on from step 4; then from step 2 up to step 5."""
    monkeypatch.setattr(pair_log, "BUFFERED_PAIRS", buffered)
    args, log = make_args(**SAVING), tmp_path / "log"
    whole = train(model_dir, args, pairs, log)
    assert len(whole) == 40
    assert train(model_dir, make_args(**SAVING | {"save_strategy": "no"}), pairs, log) == whole
    assert train(model_dir, args, pairs, log, f"{args.output_dir}/checkpoint-4") == whole
    args.max_steps = 5
    assert train(model_dir, args, pairs, log, f"{args.output_dir}/checkpoint-2") == whole[:20]


def test_a_new_training_replaces_the_log_of_its_data_and_no_other(model_dir, pairs, make_args, tmp_path, caplog):
    args, log = make_args(save_strategy="epoch"), tmp_path / "log"
    before = train(model_dir, args, pairs, log)
    assert "Replacing" not in caplog.text
    with pytest.raises(ValueError, match="pair_log='.*log': the folder holds the log of other data"):
        train(model_dir, args, make_pairs(20), log)
    assert rows_of(log) == before
    args.max_steps = 2
    assert [row["step"] for row in train(model_dir, args, pairs, log)] == [1] * 4 + [2] * 4
    assert caplog.text.count("Replacing the pair log of an earlier run on the same data") == 1


def test_the_log_says_which_data_it_is_about(model_dir, pairs, make_args, tmp_path):
    folder, source = tmp_path / "log", {"dataset_name": "日本.jsonl"}
    with pytest.raises(ValueError, match=r"is not a pair log: it has no log.json"):
        read_log(folder)
    args = make_args(max_steps=1)
    CAPOTrainer(model_dir, args=args, train_dataset=pairs, callbacks=[PairLog(folder, source)]).train()
    assert read_log(folder).info == LogInfo(24, fingerprint(pairs), source)
    content = json.loads((folder / "log.json").read_text())
    assert list(content) == ["pairs", "fingerprint", "source", "format"]
    (shard,) = folder.glob("*.parquet")
    assert pa.parquet.read_schema(shard).equals(SCHEMA)
    shard.unlink()
    with pytest.raises(ValueError, match="has no rows"):
        read_log(folder)
