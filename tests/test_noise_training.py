"""`is_noisy` never reaches training: not the batches, not the model, not the loss."""

import pytest
import torch
from conftest import as_conversation, logged, make_pairs

from trl_capo import CAPOTrainer
from trl_capo.noise import inject_noise


@pytest.fixture
def batches(monkeypatch) -> list[set[str]]:
    """The keys of all batches that the loss is computed on."""
    seen, compute_loss = [], CAPOTrainer.compute_loss

    def watch(self, model, inputs, *args, **kwargs):
        seen.append(set(inputs))
        return compute_loss(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(CAPOTrainer, "compute_loss", watch)
    return seen


def results(trainer) -> tuple[list[float], dict]:
    trainer.train()
    return logged(trainer, "loss"), {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


WAYS = [
    (form, options)
    for form in ("text", "messages", "stream")
    for options in ({}, {"remove_unused_columns": False}, {"precompute_ref_log_probs": True})
    if form != "stream" or "precompute_ref_log_probs" not in options  # which TRL refuses
]


@pytest.mark.parametrize(("form", "options"), WAYS, ids=str)
def test_training_is_the_same_with_the_column_and_without_it(model_dir, make_args, batches, form, options):
    pairs = make_pairs().map(as_conversation) if form == "messages" else make_pairs()
    noisy = inject_noise(pairs, "flip", 0.5)
    assert 0 < sum(noisy["is_noisy"]) < len(noisy)
    both = [noisy, noisy.remove_columns("is_noisy")]
    if form == "stream":
        both = [dataset.to_iterable_dataset() for dataset in both]
    found, forwards = [], []
    for dataset in both:
        args = make_args(max_steps=2, **options, eval_strategy="steps", eval_steps=1)
        trainer = CAPOTrainer(model_dir, args=args, train_dataset=dataset, eval_dataset=noisy)
        for model in filter(None, (trainer.model, trainer.ref_model)):
            model.register_forward_pre_hook(lambda *call: forwards.append(set(call[2])), with_kwargs=True)
        found.append(results(trainer))
    (losses, weights), (expected_losses, expected_weights) = found
    assert len(losses) == 2
    assert losses == expected_losses
    assert all(torch.equal(weights[name], expected_weights[name]) for name in expected_weights)
    for keys in batches + forwards:
        assert keys >= {"input_ids", "attention_mask"}
        assert "is_noisy" not in keys
    assert len(batches) == 2 * 2 * (1 + 6)  # two trainings of two steps, each with an evaluation of 24 pairs
    assert len(forwards) >= len(batches)


def test_noise_changes_what_is_learned(model_dir, make_args):
    """The guard of the test above: flipped pairs do reach the training, and give it another loss."""
    args = make_args(max_steps=2, noise_rate=0)
    clean = results(CAPOTrainer(model_dir, args=args, train_dataset=make_pairs()))
    noisy = inject_noise(make_pairs(), "flip", 0.5)
    assert results(CAPOTrainer(model_dir, args=args, train_dataset=noisy))[0] != clean[0]
