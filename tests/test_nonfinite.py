"""A training stops before a step that is not finite, and says why.

A real fault is made: the embedding of one byte, which occurs in one pair only, is NaN. Rows come in their order, in
steps of 4, so that row 9 is in step 3.
"""

import math
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import CPU_ARGUMENTS, make_pairs
from datasets import Dataset
from test_modes import load
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaForCausalLM, TrainerCallback
from trl import DPOConfig, DPOTrainer

from trl_capo import CAPOConfig, CAPOTrainer, train
from trl_capo.nonfinite import NonFiniteLoss, broken_kinds

SEQUENTIAL = {"train_sampling_strategy": "sequential", "save_strategy": "steps", "save_steps": 1, "max_steps": 5}
SEQUENTIAL |= {"learning_rate": 1e-3, "gradient_checkpointing": False}


def with_fault(row: int = 9) -> Dataset:
    rows = make_pairs().to_list()
    rows[row]["chosen"] += "~"
    return Dataset.from_list(rows)


def faulty(folder) -> LlamaForCausalLM:
    from conftest import byte_tokenizer

    model = load(folder)
    embedding = model.get_input_embeddings().weight.requires_grad_(False)  # trained weights must be finite to be saved
    embedding.data[byte_tokenizer().convert_tokens_to_ids("~")] = math.nan
    return model


def refused(trainer) -> str:
    with pytest.raises(NonFiniteLoss) as caught:
        trainer.train()
    return str(caught.value)


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_the_step_and_the_pair_are_named_and_the_weights_are_those_of_the_last_step(
    make_args, model_dir, other_model_dir, accumulation
):
    sizes = {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation}
    args = make_args(**SEQUENTIAL | sizes)
    trainer = CAPOTrainer(faulty(model_dir), load(other_model_dir), args, train_dataset=with_fault())
    message = refused(trainer)
    assert "step 3: not a finite number for 1 of its pairs: row 9 (id 'pair-9', group 'de'" in message
    assert "the policy's log-probability)" in message
    assert "checkpoint-2, is kept" in message
    assert sorted(path.name for path in Path(args.output_dir).glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    saved = load(f"{args.output_dir}/checkpoint-2").state_dict()
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor.nan_to_num(7.0), saved[name].nan_to_num(7.0)), name


def test_the_reference_is_told_from_the_policy(make_args, model_dir, other_model_dir):
    args = make_args(**SEQUENTIAL)
    trainer = CAPOTrainer(load(model_dir), faulty(other_model_dir), args, train_dataset=with_fault(1))
    message = refused(trainer)
    assert "step 1:" in message
    assert "row 1 (id 'pair-1', group 'sw', the reference's log-probability)" in message
    assert "no checkpoint yet" in message


def test_an_evaluation_says_how_many_pairs_and_in_which_groups(make_args, model_dir, caplog):
    data = {"train_dataset": make_pairs(), "eval_dataset": {"whole": make_pairs(), "broken": with_fault()}}
    trainer = CAPOTrainer(faulty(model_dir), load(model_dir), make_args(), **data)
    trainer.evaluate()
    assert caplog.text.count("finite") == 1
    assert "log-probabilities or rewards of 1 of 24 pairs are not finite numbers (groups: de)" in caplog.text


def test_pairs_of_a_stream_are_named_by_their_place(make_args, model_dir):
    stream = with_fault().to_iterable_dataset()
    message = refused(CAPOTrainer(faulty(model_dir), args=make_args(**SEQUENTIAL), train_dataset=stream))
    assert "step 3:" in message
    assert "pair 1 of micro-batch 0 on process 0 (group 'de'" in message


def test_which_values_are_not_finite():
    """Pairs: sound; NaN in the policy; inf in the reference; a rho that overflowed of finite log-probs; sound."""
    one, nan, inf = 1.0, math.nan, math.inf
    policy = (torch.tensor([one, nan, one, one, one]), torch.ones(5))
    reference = (torch.ones(5), torch.tensor([one, one, -inf, one, one]))
    rho, loss = torch.tensor([one, nan, inf, -inf, one]), torch.tensor(nan)
    kinds = broken_kinds(policy, reference, rho, loss)
    assert kinds.tolist() == [
        [False] * 3,
        [True, False, False],
        [False, True, False],
        [False, False, True],
        [False] * 3,
    ]


def test_a_loss_that_is_not_finite_of_finite_pairs_is_every_pairs():
    ones = torch.ones(2)
    for loss, expected in ((math.inf, True), (math.nan, True), (3.0, False)):
        kinds = broken_kinds((ones, ones), (ones, ones), ones, torch.tensor(loss))
        assert kinds.tolist() == [[False, False, expected]] * 2


def test_gradients_that_overflow_are_left_to_the_loss_scaler(make_args, model_dir, pairs):
    """The scaler leaves such a step out; here a callback does."""

    class LeaveOut(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
            model.zero_grad()

    args = make_args(max_steps=1, max_grad_norm=0.0)
    trainer = CAPOTrainer(load(model_dir), args=args, train_dataset=pairs, callbacks=[LeaveOut()])
    trainer.model.lm_head.weight.register_hook(lambda gradient: gradient * math.inf)
    trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.parametrize("save_strategy", ["steps", "no"])
def test_weights_that_a_gradient_has_spoilt_are_not_saved(make_args, model_dir, pairs, save_strategy):
    """The gradient of one weight is NaN in the last step alone, of which no later loss can tell."""
    args = make_args(**SEQUENTIAL | {"max_steps": 3, "save_strategy": save_strategy})
    trainer = CAPOTrainer(load(model_dir), args=args, train_dataset=pairs)
    weight = next(trainer.model.parameters())
    weight.register_hook(lambda gradient: gradient * math.nan if trainer.state.global_step == 2 else gradient)
    assert "step 3: the weights are no longer finite numbers, and are not saved" in refused(trainer)
    saved = sorted(path.name for path in Path(args.output_dir).glob("checkpoint-*"))
    assert saved == (["checkpoint-1", "checkpoint-2"] if save_strategy == "steps" else [])


def test_the_command_says_it_once_and_ends_with_code_1(model_dir, tmp_path, capfd):
    faulty(model_dir).save_pretrained(tmp_path / "faulty")
    for file in Path(model_dir).glob("*token*"):
        (tmp_path / "faulty" / file.name).write_bytes(file.read_bytes())
    with_fault().to_json(tmp_path / "pairs.jsonl", force_ascii=False)
    options = CPU_ARGUMENTS | SEQUENTIAL | {"output_dir": tmp_path / "out", "dataset_name": tmp_path / "pairs.jsonl"}
    options |= {"model_name_or_path": tmp_path / "faulty", "use_peft": True}
    assert train.main([word for key, value in options.items() for word in (f"--{key}", str(value))]) == 1
    error = capfd.readouterr().err
    assert error.count("trl-capo train: error: step 3:") == 1
    assert "Traceback" not in error
    assert (tmp_path / "out" / "checkpoint-2").is_dir()
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_all_processes_stop_with_the_same_error(model_dir, tmp_path):
    """Two processes of batch 1 and two micro-batches: only one of them has row 9."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, __file__, str(tmp_path), model_dir], capture_output=True, text=True, timeout=200, env=os.environ
    )
    messages = [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)]
    assert messages[0] == messages[1], done.stderr
    assert "step 3: not a finite number for 1 of its pairs: row 9 (id 'pair-9'" in messages[0]


class HostReads(TorchDispatchMode):
    """Counts the values that Python asks a tensor for: each makes the host wait for the device.

    `tolist` asks for all of a tensor's at once; on a CPU, PyTorch does not dispatch it.
    """

    def __init__(self, monkeypatch):
        super().__init__()
        self.count = 0
        as_before = torch.Tensor.tolist

        def tolist(tensor):
            self.count += 1
            return as_before(tensor)

        monkeypatch.setattr(torch.Tensor, "tolist", tolist)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **kwargs or {})


def waits(cls, config, accumulation, make_args, model_dir, pairs, monkeypatch, **options) -> np.ndarray:
    """How many host reads and gathers the third optimiser step of a training takes, with all that comes with it."""
    counts = []
    for steps in (2, 3):
        sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": accumulation, "max_steps": steps}
        args = make_args(config, **sizes, logging_strategy="no", **options)
        trainer = cls(load(model_dir), args=args, train_dataset=pairs)
        with monkeypatch.context() as patch, HostReads(patch) as reads:
            gather = Mock(wraps=trainer.accelerator.gather)
            patch.setattr(trainer.accelerator, "gather", gather)
            trainer.train()
        counts.append((reads.count, gather.call_count))
    return np.subtract(*reversed(counts))


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("noise_rate", [0.2, "auto"])
def test_a_step_costs_one_gather_and_one_host_read_however_many_micro_batches(
    make_args, model_dir, pairs, monkeypatch, accumulation, noise_rate
):
    """With weights, and every pair logged."""
    rest = (accumulation, make_args, model_dir, pairs.add_column("weight", [0.5] * 24), monkeypatch)
    dpo = waits(DPOTrainer, DPOConfig, *rest)
    capo = waits(CAPOTrainer, CAPOConfig, *rest, noise_rate=noise_rate, pair_log=True)
    assert dpo[0] >= 10 * accumulation
    assert (capo - dpo).tolist() == [1, 1]


if __name__ == "__main__":  # one of the processes that torchrun starts
    output, folder = sys.argv[1:]
    sizes = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "save_strategy": "no"}
    arguments = CAPOConfig(**CPU_ARGUMENTS | SEQUENTIAL | sizes | {"output_dir": f"{output}/out"})
    try:
        CAPOTrainer(faulty(folder), args=arguments, train_dataset=with_fault()).train()
    except NonFiniteLoss as error:
        Path(output, f"{os.environ['RANK']}.txt").write_text(str(error))
