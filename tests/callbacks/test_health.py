"""A training stops before a step that is not finite and says why; one that learns nothing is warned about.

The embedding of one byte, which occurs in one pair only, is NaN. Rows come in their order, in steps of 4, so that row
9 is in step 3.
"""

import math
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer, make_pairs
from datasets import Dataset
from transformers import LlamaForCausalLM

from trl_capo import CAPOTrainer, StopOnNonFinite, TrainingHealth
from trl_capo.callbacks.health import NonFiniteLoss, non_finite, warning_signs
from trl_capo.core.metrics import PairBatch

IN_ORDER = {"train_sampling_strategy": "sequential", "save_strategy": "steps", "save_steps": 1, "max_steps": 5}
IN_ORDER |= {"learning_rate": 1e-3, "gradient_checkpointing": False}


def with_fault(row: int = 9) -> Dataset:
    rows = make_pairs().to_list()
    rows[row]["chosen"] += "~"
    return Dataset.from_list(rows)


def faulty(folder) -> LlamaForCausalLM:
    model = LlamaForCausalLM.from_pretrained(folder)
    embedding = model.get_input_embeddings().weight.requires_grad_(False)  # trained weights must be finite to be saved
    embedding.data[byte_tokenizer().convert_tokens_to_ids("~")] = math.nan
    return model


def error_of(model, args, rows, reference=None) -> str:
    trainer = CAPOTrainer(model, reference, args=args, train_dataset=rows, callbacks=[StopOnNonFinite()])
    with pytest.raises(NonFiniteLoss) as caught:
        trainer.train()
    return str(caught.value)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_step_and_the_pair_are_named_and_the_weights_stay(make_args, model_dir, other_model_dir, accumulation):
    sizes = {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation}
    args, model = make_args(**IN_ORDER | sizes), faulty(model_dir)
    error = error_of(model, args, with_fault(), LlamaForCausalLM.from_pretrained(other_model_dir))
    named = "row 9 (id 'pair-9', group 'de', the policy's log-probability)"
    assert f"step 3: 1 of its pairs have values that are not finite: {named}" in error
    assert "The trained weights are still finite. This run's last checkpoint is of step 2." in error
    before = LlamaForCausalLM.from_pretrained(f"{args.output_dir}/checkpoint-2").state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.nan_to_num(7.0), before[name].nan_to_num(7.0)), name


def test_the_reference_and_pairs_of_a_stream_are_named(make_args, model_dir, other_model_dir):
    error = error_of(model_dir, make_args(**IN_ORDER), with_fault(1), faulty(other_model_dir))
    assert "row 1 (id 'pair-1', group 'sw', the reference's log-probability). The trained weights are" in error
    assert "checkpoints: none yet" in error
    error = error_of(faulty(model_dir), make_args(**IN_ORDER), with_fault().to_iterable_dataset())
    assert "a pair of the stream (the policy's log-probability)" in error


def test_a_loss_that_is_not_finite_is_everywhere_or_where_the_relative_reward_is():
    values = dict.fromkeys(PairBatch.__dataclass_fields__, torch.ones(3))
    batch = PairBatch(**values | {"loss": torch.tensor(math.nan)})
    assert non_finite(batch).tolist() == [[False, False, True]] * 3
    batch.rho = torch.tensor([1, -math.inf, 1])
    assert non_finite(batch).tolist() == [[False, False, place == 1] for place in range(3)]


SPOILT = {
    5: "step 6: the trained weights are not finite and are not saved",
    2: "step 4: .*weights are no longer finite, because of an earlier step",
}


@pytest.mark.parametrize(("strategy", "steps"), [("steps", 5), ("epoch", 5), ("no", 5), ("no", 2)])
def test_weights_that_a_gradient_has_spoilt_are_not_saved(make_args, model_dir, pairs, strategy, steps):
    """The gradient is NaN after so many steps: 5 is the last of the epoch, so that no later loss can show it."""
    args = make_args(**IN_ORDER | {"max_steps": 6, "save_strategy": strategy, "save_steps": 4})
    trainer = CAPOTrainer(model_dir, args=args, train_dataset=pairs, callbacks=[StopOnNonFinite()])
    weight = next(trainer.model.parameters())
    weight.register_hook(lambda gradient: gradient * math.nan if trainer.state.global_step == steps else gradient)
    with pytest.raises(NonFiniteLoss, match=SPOILT[steps]):
        trainer.train()
    saved = [path.name for path in Path(args.output_dir).glob("checkpoint-*")]
    assert saved == (["checkpoint-4"] if strategy == "steps" else [])


SOUND = {"capo/contradicted": 0.3, "capo/noise_rate": 0.2, "capo/confidence": 0.8}
SOUND |= {"rewards/chosen": -1.0, "rewards/rejected": -3.0}
SIGNS = [
    ({"capo/contradicted": 0.95}, "contradicts nearly all labels"),
    ({"capo/confidence": 0.999}, "labels are trusted"),
    ({"rewards/chosen": -10.0, "rewards/rejected": -20.0}, "rewards of both answers fall"),
    ({"capo/contradicted": 0.949, "capo/confidence": 0.998}, ""),
    ({"capo/confidence": 1.0, "capo/noise_rate": 0.04}, ""),  # at a small rate every pair is trusted from the start
    ({"rewards/chosen": -10.0, "rewards/rejected": -21.0}, ""),  # the rejected ones fall much faster
    (dict.fromkeys(SOUND, math.nan), ""),
]


@pytest.mark.parametrize(("changes", "text"), SIGNS)
def test_each_sign_has_its_threshold(changes, text):
    signs = list(warning_signs(SOUND | changes))
    assert len(signs) == bool(text)
    assert text in "".join(signs)


def test_a_reference_that_prefers_the_chosen_answers_is_warned_about_once(make_args, model_dir, pairs, caplog):
    """The policy hardly trains, so it contradicts what its reference has learned. Logs of 8 pairs are pooled."""
    health, options = TrainingHealth(), {"per_device_train_batch_size": 8, "noise_rate": 0.2}
    args = make_args(**options, max_steps=15)
    teacher = CAPOTrainer(model_dir, args=args, train_dataset=pairs, callbacks=[health])
    teacher.train()
    assert "contradicts" not in caplog.text
    for steps, warnings in ((7, 0), (16, 1)):
        args = make_args(**options, max_steps=steps, learning_rate=1e-8)
        CAPOTrainer(model_dir, teacher.model, args=args, train_dataset=pairs, callbacks=[health]).train()
        assert caplog.text.count("Over the last 64 pairs, the model contradicts nearly all labels") == warnings
