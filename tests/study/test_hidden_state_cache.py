"""The cache of frozen layers and reference log-probabilities changes no logits, whatever is cached."""

import torch
from accelerate import PartialState
from conftest import tiny_config
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaForCausalLM
from trl.trainer.utils import add_fused_lm_head

from trl_capo.core.packing import PaddingFree
from trl_capo.study.speed import FrozenLayers, SequenceCache, sequence_keys

LAYERS = 3
PartialState()


def make_model():
    """The same weights every time."""
    torch.manual_seed(3)
    model = LlamaForCausalLM(tiny_config(num_hidden_layers=LAYERS)).eval()
    add_fused_lm_head(model)
    return model


def pairs(lengths=((4, 1, 3), (2, 5, 2)), seed=0):
    """Prompts, chosen and rejected answers of these lengths."""
    torch.manual_seed(seed)
    return [[torch.randint(3, 260, (length,)).tolist() for length in row] for row in lengths]


def log_probs(model, rows):
    """Log-probs of the answers' tokens as one row per sequence, from packed rows."""
    sequences = [(prompt, answers[side]) for side in (0, 1) for prompt, *answers in rows]
    ids = pad_sequence([torch.tensor(prompt + answer) for prompt, answer in sequences], batch_first=True)
    labels = [torch.tensor([-100] * len(prompt) + answer) for prompt, answer in sequences]
    labels = pad_sequence(labels, batch_first=True, padding_value=-100)
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}
    packed = PaddingFree(model)
    packed._checked = True  # the padded pair of the first call would be counted, too
    return packed(model, **inputs, fused_lm_head=True).log_probs.sum(dim=1)


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


def test_known_sequences_skip_the_frozen_layers_in_any_batch(tmp_path):
    model, first, second = make_model(), pairs(), pairs(((1, 6, 6), (7, 2, 1)), seed=1)
    expected = [log_probs(model, rows).detach() for rows in (first, second)]
    calls = freeze(model, 2, SequenceCache(tmp_path / "hidden"))
    for _ in range(2):
        assert_near([log_probs(model, rows) for rows in (first, second)], expected)
    assert calls == [2, 2, 4]
    swapped = [second[0], first[1][:1] + first[1][:0:-1]]  # a pair of each, and one has its answers exchanged
    found = torch.stack([expected[1][0], expected[0][3], expected[1][2], expected[0][1]])
    assert_near(log_probs(model, swapped), found)
    assert calls == [2, 2, 5]


def test_a_changed_token_is_computed(tmp_path):
    rows, model = pairs(), make_model()
    calls = freeze(model, 2, SequenceCache(tmp_path / "hidden"))
    log_probs(model, rows)
    rows[1][1][0] = 3
    assert_near(log_probs(model, rows), log_probs(make_model(), rows))
    assert calls == [2, 2, 2]


def test_a_saved_cache_serves_another_process(tmp_path):
    path, model, other = tmp_path / "memory" / "hidden.safetensors", make_model(), make_model()
    expected, cache = log_probs(model, pairs()).detach(), SequenceCache(path)
    cache.save()
    assert not path.exists()  # nothing new
    freeze(model, 2, cache)
    log_probs(model, pairs())
    cache.save()
    calls = freeze(other, 2, SequenceCache(path))
    assert_near(log_probs(other, pairs()), expected)
    assert calls == [0, 0, 1]
    assert [file.name for file in path.parent.iterdir()] == ["hidden.safetensors"]


def test_keys_distinguish_tokens_lengths_and_masks_but_not_padding():
    ids, other, mask, short = (torch.tensor([row]) for row in ([5, 6, 7], [5, 7, 6], [1, 1, 1], [1, 1, 0]))
    found = [sequence_keys(ids, mask), sequence_keys(other, mask), sequence_keys(ids, short)]
    found += [sequence_keys(ids, mask, torch.tensor([[0, 1, 1]])), sequence_keys(ids, mask, torch.tensor([[0, 0, 1]]))]
    assert len({key for keys in found for key in keys}) == 5
    padded = sequence_keys(torch.tensor([[5, 6, 0, 0]]), torch.tensor([[1, 1, 0, 0]]))
    assert padded == sequence_keys(ids, short)
