"""What is remembered of frozen layers and references changes nothing: log-probs, losses, gradients, over epochs."""

import contextlib
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer, logged, tiny_config
from peft import LoraConfig
from study_data import LORA
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from trl.trainer import utils

from trl_capo.frozen import FrozenLayers, SequenceMemory, scoring_completions_only, sequence_keys
from trl_capo.study_methods import METHODS
from trl_capo.study_trainer import StudyTrainer

LAYERS = 3


class Counter:
    """How often each of a model's layers is run."""

    def __init__(self, layers):
        self.calls = [0] * len(layers)
        for index, layer in enumerate(layers):
            layer.register_forward_pre_hook(lambda *_, index=index: self.add(index))

    def add(self, index: int):
        self.calls[index] += 1


@pytest.fixture
def model():
    torch.manual_seed(3)
    return LlamaForCausalLM(tiny_config(num_hidden_layers=LAYERS)).eval()


def batch(lengths=(5, 3), seed=0, left=False):
    """Ids and mask of sequences of these lengths, padded on the right or on the left."""
    torch.manual_seed(seed)
    ids, mask = torch.zeros(len(lengths), max(lengths), dtype=torch.long), torch.zeros(len(lengths), max(lengths))
    for row, length in enumerate(lengths):
        place = slice(max(lengths) - length, None) if left else slice(length)
        ids[row, place], mask[row, place] = torch.randint(3, 260, (length,)), 1
    return {"input_ids": ids, "attention_mask": mask.long()}


def logits(model, inputs):
    """At the real tokens."""
    return model(**inputs, use_cache=False).logits[inputs["attention_mask"].bool()]


def memory(tmp_path, name="hidden") -> SequenceMemory:
    return SequenceMemory(tmp_path / "memory" / f"{name}.safetensors")


def freeze(model, count: int, kept: SequenceMemory) -> Counter:
    """Only the layers above `count` are trained, and those below remembered."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for layer in model.model.layers[count:]:
        layer.requires_grad_(True)
    counter = Counter(model.model.layers)
    FrozenLayers(model, count, kept)
    return counter


def test_known_sequences_skip_the_frozen_layers_and_give_the_same(model, tmp_path):
    """Also in another order and with other padding, in another batch."""
    first, second = batch((5, 3)), batch((7, 4), seed=1)
    expected = [logits(model, inputs).detach() for inputs in (first, second)]
    counter = freeze(model, 2, memory(tmp_path))
    for _ in range(2):
        found = [logits(model, inputs) for inputs in (first, second)]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert counter.calls == [2, 2, 4]
    mixed = {key: torch.zeros(2, 7, dtype=torch.long) for key in first}
    for row, inputs in enumerate((second, first)):  # the 7 tokens of one, then the 5 of the other
        for key in mixed:
            mixed[key][row, : inputs[key].shape[1]] = inputs[key][0]
    torch.testing.assert_close(
        logits(model, mixed), torch.cat([expected[1][:7], expected[0][:5]]), rtol=1e-5, atol=1e-5
    )
    assert counter.calls == [2, 2, 5]


def test_a_batch_with_a_new_sequence_is_computed_and_then_known(model, tmp_path):
    old, new = batch((5, 3)), batch((5, 3))
    new["input_ids"][1, 0] += 1
    expected = logits(model, new).detach()
    counter = freeze(model, 1, memory(tmp_path))
    logits(model, old)
    for calls in (2, 2):
        torch.testing.assert_close(logits(model, new), expected, rtol=1e-5, atol=1e-5)
        assert counter.calls[0] == calls


def test_what_is_saved_serves_another_process(model, tmp_path):
    expected, kept = logits(model, batch()).detach(), memory(tmp_path)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    freeze(model, 2, kept)
    logits(model, batch())
    kept.save()
    other = LlamaForCausalLM(tiny_config(num_hidden_layers=LAYERS)).eval()
    other.load_state_dict(state)
    counter = freeze(other, 2, memory(tmp_path))
    torch.testing.assert_close(logits(other, batch()), expected, rtol=1e-5, atol=1e-5)
    assert counter.calls == [0, 0, 1]
    assert [path.name for path in kept.path.parent.iterdir()] == ["hidden.safetensors"]  # nothing unfinished


def test_nothing_new_is_not_written(tmp_path):
    kept = memory(tmp_path)
    kept.save()
    assert not kept.path.exists()


def test_padding_on_the_left_is_not_remembered(model, tmp_path):
    """There a sequence's positions depend on the batch."""
    inputs = batch(left=True)
    expected, kept = logits(model, inputs).detach(), memory(tmp_path)
    counter = freeze(model, 2, kept)
    for _ in range(2):
        torch.testing.assert_close(logits(model, inputs), expected, rtol=1e-5, atol=1e-5)
    assert counter.calls == [2, 2, 2]
    kept.save()
    assert not kept.path.exists()
    assert sequence_keys(**inputs) is None


def test_keys_tell_tokens_lengths_and_masks_apart():
    ids, mask = torch.tensor([[5, 6, 7]]), torch.tensor([[1, 1, 1]])
    short, other = torch.tensor([[1, 1, 0]]), torch.tensor([[5, 7, 6]])
    found = [sequence_keys(ids, mask), sequence_keys(other, mask), sequence_keys(ids, short)]
    found += [sequence_keys(ids, mask, torch.tensor([[0, 1, 1]])), sequence_keys(ids, mask, torch.tensor([[0, 0, 1]]))]
    assert len({key for keys in found for key in keys}) == 5
    padded = sequence_keys(torch.tensor([[5, 6, 0, 0]]), torch.tensor([[1, 1, 0, 0]]))
    assert padded == sequence_keys(ids, short)  # what follows the sequence does not matter


@pytest.mark.parametrize("count", [-1, 0, LAYERS, LAYERS + 1])
def test_a_count_that_leaves_nothing_is_refused(count, model, tmp_path):
    with pytest.raises(ValueError, match=f"{count} frozen layers: the model has {LAYERS}"):
        FrozenLayers(model, count, memory(tmp_path))


@pytest.mark.parametrize("part", ["embed_tokens", "layers.1"])
def test_layers_that_are_trained_are_refused_even_when_their_output_is_known(part, model, tmp_path):
    freeze(model, 2, memory(tmp_path))
    logits(model, batch())
    model.model.get_submodule(part).requires_grad_(True)
    with pytest.raises(ValueError, match="the lowest 2 layers are remembered, and some of them"):
        logits(model, batch())


@pytest.fixture
def train(make_args, tmp_path, pairs):
    """Trains two epochs with LoRA on the highest of three layers, twice with the same memory; returns the trainers."""
    folder = tmp_path / "model"
    torch.manual_seed(4)
    LlamaForCausalLM(tiny_config(num_hidden_layers=LAYERS)).save_pretrained(folder)

    def make(remember: bool, method="dpo", seed=0, **options):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        counter = Counter(model.model.layers)
        hidden = memory(tmp_path) if remember else memory(tmp_path, f"none{seed}")
        references = memory(tmp_path, "references") if remember else memory(tmp_path, f"no-references{seed}")
        with scoring_completions_only() if remember else contextlib.nullcontext():
            if remember:
                FrozenLayers(model, 2, hidden)
            trainer = StudyTrainer(
                model,
                args=make_args(**{"max_steps": 12, "seed": seed} | METHODS[method].config | options),
                train_dataset=pairs,
                eval_dataset=pairs,
                processing_class=byte_tokenizer(),
                peft_config=LoraConfig(**LORA | {"layers_to_transform": [2], "init_lora_weights": False}),
                method=method,
                own=METHODS[method].own,
                references=references,
            )
            trainer.train()
            metrics = trainer.evaluate()
        for kept in (hidden, references):
            kept.save()
        return trainer, metrics, counter

    return make


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_checkpointing": True}, {"ld_alpha": 0.3}, {"method": "wpo"}],
    ids=["dpo", "gradient checkpointing", "ld_alpha", "wpo"],
)
def test_training_is_the_same_over_epochs_and_from_memory(options, train):
    """24 pairs in 12 steps of 4 are two epochs. The second training finds all in memory, and runs no frozen layer."""
    plain, metrics, _ = train(False, **options)
    for known in (False, True):
        trainer, found, counter = train(True, **options)
        for key in ("loss", "grad_norm", "rewards/margins", "logps/chosen"):
            assert logged(trainer, key) == pytest.approx(logged(plain, key), rel=1e-4, abs=1e-5), key
        for name, value in metrics.items():
            if name.startswith(("eval_loss", "eval_rewards", "eval_logps")):
                assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
        assert trainer.evaluated == pytest.approx(plain.evaluated, rel=1e-4, abs=1e-5)
        ours, theirs = (dict(t.model.named_parameters()) for t in (trainer, plain))
        for name, value in theirs.items():
            if "lora" in name:
                torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5)
        if known:
            assert counter.calls[:2] == [0, 0]
            assert counter.calls[2] > 12


def test_the_reference_is_computed_once(train):
    """With all in memory no batch needs a reference forward: as many runs of the last layer as policy forwards."""
    train(True)
    _, _, counter = train(True, seed=1)
    assert counter.calls[2] == 12 + 6  # steps, and 24 pairs evaluated 4 at a time


@pytest.mark.parametrize("ld_alpha", [None, 0.3])
def test_reference_log_probs_of_other_answers_and_partners_are_others(ld_alpha, train, monkeypatch):
    """The same tokens with another start of the answer; with ld_alpha, the same answer beside a shorter one."""
    trainer, _, _ = train(True, ld_alpha=ld_alpha)
    sequences = batch((9, 5, 5, 9))  # pairs (0, 1), (2, 3) and, of sequences that are known by then, (0, 3)
    places = torch.arange(9)

    def pair(*rows, start=3):
        inputs = {key: value[list(rows)] for key, value in sequences.items()}
        return inputs | {"completion_mask": inputs["attention_mask"] * (places >= start)}

    batches = [pair(0, 1), pair(2, 3), pair(0, 3), pair(0, 3, start=6)]
    found = [torch.cat(trainer.compute_ref_log_probs(trainer.model, one)) for one in batches]
    for one, logps in zip(batches, found, strict=True):
        monkeypatch.setattr(trainer, "_study_references", SequenceMemory(Path("none")))
        torch.testing.assert_close(torch.cat(trainer.compute_ref_log_probs(trainer.model, one)), logps)


def test_the_pairs_of_an_evaluation_are_kept_one_by_one(train, pairs):
    trainer, metrics, _ = train(True)
    assert len(trainer.evaluated) == len(pairs)
    margins = [trainer.evaluated[number] for number in sorted(trainer.evaluated)]
    assert sum(margins) / len(margins) == pytest.approx(metrics["eval_rewards/margins"], rel=1e-5)
    assert trainer.pair_groups(sorted(trainer.evaluated)) == pairs["language"][:]


def test_the_patch_of_trls_head_is_undone():
    before = utils._use_triton

    def fail():
        with scoring_completions_only():
            assert utils._use_triton(torch.device("cpu"))
            raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        fail()
    assert utils._use_triton is before
    assert not utils._use_triton(torch.device("cpu"))
