"""What is remembered of frozen layers and references changes nothing: log-probs, losses, gradients, over epochs."""

import pytest
import torch
from conftest import tiny_config
from transformers import LlamaForCausalLM
from trl.trainer import utils

from trl_capo.study.frozen import FrozenLayers, SequenceMemory, scoring_completions_only, sequence_keys

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
