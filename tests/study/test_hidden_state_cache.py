"""The cache of frozen layers and reference log-probabilities changes no logits, whatever is cached."""

import pytest
import torch
from conftest import tiny_config
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaForCausalLM

from trl_capo.study.speed import FrozenLayers, SequenceCache, sequence_keys

LAYERS = 3


@pytest.fixture
def model():
    torch.manual_seed(3)
    return LlamaForCausalLM(tiny_config(num_hidden_layers=LAYERS)).eval()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "memory" / "hidden.safetensors"


def batch(lengths=(5, 3), seed=0, left=False):
    """Ids and mask of sequences of these lengths, padded on the right or on the left."""
    torch.manual_seed(seed)
    ids, mask = torch.zeros(len(lengths), max(lengths), dtype=torch.long), torch.zeros(len(lengths), max(lengths))
    for row, length in enumerate(lengths):
        place = slice(max(lengths) - length, None) if left else slice(length)
        ids[row, place], mask[row, place] = torch.randint(3, 260, (length,)), 1
    return {"input_ids": ids, "attention_mask": mask.long()}


def logits(model, inputs):
    """Logits at the real tokens."""
    return model(**inputs, use_cache=False).logits[inputs["attention_mask"].bool()]


def assert_near(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def freeze(model, count: int, cache: SequenceCache) -> list[int]:
    """Train only the layers above `count`, cache those below, and count the calls of each layer."""
    calls = [0] * LAYERS
    for index, layer in enumerate(model.model.layers):

        def count_call(*_, index=index):
            calls[index] += 1

        layer.mlp.register_forward_pre_hook(count_call)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for layer in model.model.layers[count:]:
        layer.requires_grad_(True)
    FrozenLayers(model, count, cache)
    return calls


def test_known_sequences_skip_the_frozen_layers_in_any_batch(model, path):
    first, second = batch((5, 3)), batch((7, 4), seed=1)
    expected = [logits(model, inputs).detach() for inputs in (first, second)]
    calls = freeze(model, 2, SequenceCache(path))
    for _ in range(2):
        assert_near([logits(model, inputs) for inputs in (first, second)], expected)
    assert calls == [2, 2, 4]
    mixed = {key: pad_sequence([second[key][0], first[key][0]], batch_first=True) for key in first}
    assert_near(logits(model, mixed), torch.cat([expected[1][:7], expected[0][:5]]))
    assert calls == [2, 2, 5]


def test_a_saved_cache_serves_another_process(model, path):
    expected, cache = logits(model, batch()).detach(), SequenceCache(path)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cache.save()
    assert not path.exists()  # nothing new
    freeze(model, 2, cache)
    logits(model, batch())
    cache.save()
    other = LlamaForCausalLM(tiny_config(num_hidden_layers=LAYERS)).eval()
    other.load_state_dict(state)
    calls = freeze(other, 2, SequenceCache(path))
    assert_near(logits(other, batch()), expected)
    assert calls == [0, 0, 1]
    assert [file.name for file in path.parent.iterdir()] == ["hidden.safetensors"]


def test_keys_distinguish_tokens_lengths_and_masks_but_not_padding():
    ids, other, mask, short = (torch.tensor([row]) for row in ([5, 6, 7], [5, 7, 6], [1, 1, 1], [1, 1, 0]))
    found = [sequence_keys(ids, mask), sequence_keys(other, mask), sequence_keys(ids, short)]
    found += [sequence_keys(ids, mask, torch.tensor([[0, 1, 1]])), sequence_keys(ids, mask, torch.tensor([[0, 0, 1]]))]
    assert len({key for keys in found for key in keys}) == 5
    assert sequence_keys(**batch(left=True)) is None
    padded = sequence_keys(torch.tensor([[5, 6, 0, 0]]), torch.tensor([[1, 1, 0, 0]]))
    assert padded == sequence_keys(ids, short)
