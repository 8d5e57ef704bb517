"""The pair log of real trainings, against an oracle that scores every pair by itself at every step.

Trainings that are killed are in kill_battery.py, two processes in test_distributed.py.
"""

import json
import math
from pathlib import Path

import pytest
from conftest import logged, make_pairs
from datasets import Dataset
from pair_oracle import BETA, make_pool, score_pairs
from rates_oracle import KeepEstimates
from test_modes import load
from transformers import TrainerCallback

from trl_capo import CAPOConfig, CAPOTrainer, pair_logger
from trl_capo.arguments import parse
from trl_capo.pair_log import LogInfo, fingerprint, read_log
from trl_capo.pair_logger import check_pair_log
from trl_capo.train import make_parser

OPTIONS = {"beta": BETA, "learning_rate": 2e-3, "gradient_checkpointing": False, "noise_rate": "auto"}


class ScoreAll(TrainerCallback):
    """What the model that a step begins with makes of every pair, by the step's number."""

    def __init__(self, rows: Dataset, reference, limit: int) -> None:
        self.rows, self.reference, self.limit, self.steps = rows, reference, limit, {}

    def on_step_begin(self, args, state, control, model, **kwargs):
        self.steps[state.global_step + 1] = [
            (score_pairs(model, self.reference, [row], limit=self.limit) or [None])[0] for row in self.rows
        ]


def rows_of(folder) -> list[dict]:
    return [row for batch in read_log(Path(folder)).batches() for row in batch.to_pylist()]


@pytest.mark.parametrize(
    "sizes",
    [{}, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}, {"precompute_ref_log_probs": True}],
    ids=["one batch", "accumulation", "precomputed"],
)
def test_every_row_is_what_an_oracle_makes_of_its_pair_at_its_step(model_dir, other_model_dir, make_args, sizes):
    """22 of 26 pairs fit: 5 steps of 4 pairs and one of 2, an epoch; the weights move; up to the second epoch."""
    pool, limit = make_pool(26), 33
    kept = {number for number, row in enumerate(pool) if len(row["prompt"].encode()) < limit}
    assert len(kept) == 22
    scores = ScoreAll(pool, load(other_model_dir), limit)
    args = make_args(**OPTIONS | sizes, max_steps=8, max_length=limit, pair_log=True, eval_strategy="steps")
    args.eval_steps = 3
    data = {"train_dataset": pool, "eval_dataset": pool.select(range(4))}
    trainer = CAPOTrainer(model_dir, load(other_model_dir), args=args, callbacks=[scores], **data)
    kept_rates = KeepEstimates(trainer)
    trainer.add_callback(kept_rates)
    trainer.train()
    rows = rows_of(Path(args.output_dir, "pair_log"))
    assert [row["step"] for row in rows] == [step for step in range(1, 9) for _ in range(2 if step == 6 else 4)]
    assert [row["epoch"] for row in rows] == [0] * 22 + [1] * 8
    assert {row["pair"] for row in rows[:22]} == kept
    assert [row["pair"] for row in rows[:22]] != sorted(kept)
    for row in rows:
        group, figures = scores.steps[row["step"]][row["pair"]]
        assert row["group"] == group
        rho, rate = figures["rewards/margins"], row["noise_rate"]
        assert row["relative_reward"] == pytest.approx(rho, rel=1e-4, abs=1e-4)
        assert row["chosen_logps"] == pytest.approx(figures["logps/chosen"], rel=1e-5)
        assert row["rejected_logps"] == pytest.approx(figures["logps/rejected"], rel=1e-5)
        policy = figures["logps/chosen"] - figures["logps/rejected"]
        assert row["reference_margin"] == pytest.approx(policy - rho / BETA, rel=1e-4, abs=1e-4)
        p = 1 / (1 + math.exp(-rho))
        confidence = (1 - rate) * p / ((1 - rate) * p + rate * (1 - p))
        rates = kept_rates.rates[row["step"] - 1]
        of_group = rates.get(group, rates[None])
        assert row["group_noise_rate"] == pytest.approx(of_group, rel=1e-6)
        told = (1 - 2 * rate) / max(1 - 2 * of_group, 0.2)
        assert row["confidence"] == pytest.approx(confidence, rel=1e-4)
        assert row["scale"] == pytest.approx(told * confidence / (1 - rate), rel=1e-4, abs=1e-6)
    for step, rate in enumerate(logged(trainer, "capo/noise_rate"), start=1):
        of_step = [row["noise_rate"] for row in rows if row["step"] == step]
        assert sum(of_step) / len(of_step) == pytest.approx(rate, rel=1e-5)
    assert len({row["noise_rate"] for row in rows}) > 8


def train(model_dir, args, rows, checkpoint=None) -> list[dict]:
    CAPOTrainer(model_dir, args=args, train_dataset=rows).train(resume_from_checkpoint=checkpoint)
    return rows_of(Path(args.output_dir, "pair_log"))


@pytest.mark.parametrize("buffered", [4, 12, 10_000])
def test_a_training_that_goes_on_from_an_older_checkpoint_has_every_row_once(
    model_dir, pairs, make_args, monkeypatch, buffered
):
    """10 steps; on from the checkpoint of step 4 by name; then from step 2, to end with step 5. Shards of a step, of
    3 steps (or up to a checkpoint), and up to a checkpoint."""
    monkeypatch.setattr(pair_logger, "BUFFERED_PAIRS", buffered)
    options = {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant", "noise_rate": 0}
    args = make_args(max_steps=10, pair_log=True, **options)
    whole = train(model_dir, args, pairs)
    assert len(whole) == 40
    assert train(model_dir, args, pairs, f"{args.output_dir}/checkpoint-4") == whole
    args.max_steps = 5
    assert train(model_dir, args, pairs, f"{args.output_dir}/checkpoint-2") == whole[:20]


def test_a_training_that_starts_anew_replaces_its_own_log_and_no_other(model_dir, pairs, make_args, caplog):
    """Other pairs are refused before a model is loaded, and nothing is lost."""
    args = make_args(pair_log=True, max_steps=3)
    before = train(model_dir, args, pairs)
    assert "pair_log=" not in caplog.text
    with pytest.raises(
        ValueError, match=r"the log of a training on other pairs\. Train on the same data, give another"
    ):
        CAPOTrainer("no/model", args=args, train_dataset=pairs.select(range(8)))
    assert rows_of(Path(args.output_dir, "pair_log")) == before
    args.max_steps = 2
    assert [row["step"] for row in train(model_dir, args, pairs)] == [1] * 4 + [2] * 4
    assert caplog.text.count("replacing the log of an earlier training on the same pairs") == 1
    assert read_log(Path(args.output_dir, "pair_log")).info == LogInfo(24, fingerprint(pairs), asks_reference=True)


class ReadLog(TrainerCallback):
    """The steps in the log whenever a checkpoint was saved."""

    def __init__(self) -> None:
        self.steps: list[set[int]] = []

    def on_save(self, args, state, control, **kwargs):
        self.steps.append({row["step"] for row in rows_of(Path(args.output_dir, "pair_log"))})


def test_the_log_has_every_step_before_a_checkpoint_when_it_is_saved(model_dir, pairs, make_args):
    """Whoever is killed after it goes on from there; far fewer rows wait than the buffer holds."""
    args = make_args(pair_log=True, max_steps=5, save_strategy="steps", save_steps=2)
    saved = ReadLog()
    CAPOTrainer(model_dir, args=args, train_dataset=pairs, callbacks=[saved]).train()
    assert saved.steps[:2] == [{1, 2}, {1, 2, 3, 4}]


@pytest.mark.parametrize(
    ("said", "in_yaml", "expected"),
    [("true", True, True), ("False", False, None), ("none", "none", None), ("logs/1", "logs/1", "logs/1")],
)
def test_the_option_is_a_truth_value_or_a_folder(tmp_path, said, in_yaml, expected):
    """In YAML, on a command line, in Python."""
    options = {"output_dir": "out", "use_cpu": True, "bf16": False}
    (tmp_path / "run.yaml").write_text(json.dumps(options | {"pair_log": in_yaml}))
    for words in ([], ["--pair_log", said]):
        parsed, *_ = parse(["--config", str(tmp_path / "run.yaml"), *words], make_parser())
        assert parsed[1].pair_log == expected
    assert CAPOConfig(pair_log=in_yaml, **options).pair_log == expected


def test_a_log_that_cannot_be_is_refused_before_a_model_is_loaded(pairs, make_args, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.part").write_text("precious")
    with pytest.raises(ValueError, match=r"pair_log='.*mine': the folder holds something else \(thesis.part\)"):
        CAPOTrainer("no/model", args=make_args(pair_log=str(folder)), train_dataset=pairs)
    assert (folder / "thesis.part").read_text() == "precious"
    with pytest.raises(ValueError, match="is output_dir, where other files go"):
        CAPOTrainer("no/model", args=make_args(pair_log=f"{tmp_path}/output/"), train_dataset=pairs)
    with pytest.raises(ValueError, match="pair_log=True: the rows of a stream have no numbers to log"):
        CAPOTrainer("no/model", args=make_args(pair_log=True), train_dataset=pairs.to_iterable_dataset())


def test_a_training_goes_on_without_its_log_with_a_warning(model_dir, pairs, make_args, caplog):
    """Stopped, gone on with a while without the option, then with it."""
    args = make_args(pair_log=True, max_steps=2, save_strategy="steps", save_steps=2)
    train(model_dir, args, pairs)
    args.max_steps, args.pair_log = 4, None
    CAPOTrainer(model_dir, args=args, train_dataset=pairs).train(resume_from_checkpoint=True)
    args.max_steps, args.pair_log = 6, True
    assert "pair_log=" not in caplog.text
    rows = train(model_dir, args, pairs, True)
    assert {row["step"] for row in rows} == {1, 2, 5, 6}
    assert "the training goes on from step 4, and the log ends with step 2." in caplog.text
    assert read_log(Path(args.output_dir, "pair_log")).gaps == [(3, 4)]


def test_a_training_on_other_data_does_not_go_on_with_the_log(model_dir, pairs, make_args):
    args = make_args(pair_log=True, save_strategy="steps", save_steps=2)
    before = train(model_dir, args, pairs)
    others = make_pairs().select(range(1, 24))
    args.resume_from_checkpoint = f"{args.output_dir}/checkpoint-2"
    with pytest.raises(ValueError, match="holds the log of a training on other pairs"):
        CAPOTrainer("no/model", args=args, train_dataset=others)
    folder = Path(args.output_dir, "pair_log")
    assert rows_of(folder) == before
    shard = max(folder.glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(ValueError, match=f"{shard.name}' is damaged"):
        CAPOTrainer("no/model", args=args, train_dataset=pairs)


@pytest.mark.parametrize(
    ("options", "asks"),
    [
        ({}, True),
        ({"use_reference_margin": False}, False),
        ({"noise_rate": 0.2}, False),
        ({"sync_ref_model": True}, False),
    ],
    ids=str,
)
def test_the_log_says_whether_the_reference_is_asked(pairs, make_args, options, asks):
    assert check_pair_log(make_args(pair_log=True, **options), pairs)[1].asks_reference is asks
