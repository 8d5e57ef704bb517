"""Packed layers give the logits and gradients of padded batches; the oracle is the same model without packing."""

import pytest
import torch
from conftest import tiny_config
from test_hidden_state_cache import LAYERS, batch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaForCausalLM

from trl_capo.study.speed import PackedLayers


def pairs(prompts=(4, 2), chosen=(1, 5), rejected=(3, 2), seed=0):
    """A batch [chosen; rejected] of prompts and answers of these lengths, padded on the right."""
    torch.manual_seed(seed)
    starts = [torch.randint(3, 260, (length,)) for length in prompts]
    rows = [
        torch.cat([start, torch.randint(3, 260, (length,))])
        for lengths in (chosen, rejected)
        for start, length in zip(starts, lengths, strict=True)
    ]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask}


def make(kind="llama", **changes):
    torch.manual_seed(3)
    llama = tiny_config(num_hidden_layers=LAYERS, **changes)
    if kind == "llama":
        return LlamaForCausalLM(llama).eval()
    sizes = {name: getattr(llama, name) for name in ("vocab_size", "hidden_size", "intermediate_size")}
    sizes |= {"num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 8}
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    return Gemma3ForCausalLM(
        Gemma3TextConfig(**{**sizes, "layer_types": types, "sliding_window": 512, **changes})
    ).eval()


def count_tokens(model):
    """Count the tokens that each layer receives."""
    seen = [0] * LAYERS
    for index, layer in enumerate(model.model.layers):

        def add(_, args, kwargs, index=index):
            seen[index] += kwargs["hidden_states"].shape[0] * kwargs["hidden_states"].shape[1]

        layer.self_attn.register_forward_pre_hook(add, with_kwargs=True)
    return seen


def outcome(model, inputs):
    """Logits at the real tokens, and the gradients of a weighted sum of them."""
    model.zero_grad()
    logits = model(**{"use_cache": False, **inputs}).logits[inputs["attention_mask"].bool()]
    torch.manual_seed(7)
    (logits * torch.randn_like(logits)).sum().backward()
    return logits.detach(), [parameter.grad.clone() for parameter in model.parameters()]


def assert_same(model, inputs, expected):
    torch.testing.assert_close(outcome(model, inputs), expected, rtol=1e-4, atol=2e-4)


# Lengths, and how many different prefixes the sequences of each pair have, which have to be computed.
SHAPES = [
    ({}, 17),
    ({"prompts": (1,), "chosen": (1,), "rejected": (1,)}, 3),
    ({"prompts": (6, 1, 3), "chosen": (2, 4, 1), "rejected": (2, 1, 7)}, 27),
]


@pytest.mark.parametrize("kind", ["llama", "gemma"])
@pytest.mark.parametrize("first", range(LAYERS))
def test_packed_and_padded_batches_agree_and_compute_every_prefix_once(first, kind):
    for shape, prefixes in SHAPES:
        inputs = pairs(**shape)
        expected, model = outcome(make(kind), inputs), make(kind)
        PackedLayers(model, first)
        seen = count_tokens(model)
        assert_same(model, inputs, expected)
        assert seen[:first] == [inputs["input_ids"].numel()] * first
        assert seen[first:] == [prefixes] * (LAYERS - first)


@pytest.mark.parametrize(
    ("changes", "inputs"),
    [
        ({}, batch((5, 3), left=True)),
        ({"kind": "gemma", "sliding_window": 4}, pairs()),
        ({}, pairs() | {"position_ids": torch.arange(7).expand(4, 7) + 1}),
    ],
    ids=["padding on the left", "a sliding window", "position ids"],
)
def test_what_cannot_be_packed_runs_unchanged(changes, inputs):
    model = make(**changes)
    expected = outcome(model, inputs)
    PackedLayers(model, 0)
    seen = count_tokens(model)
    torch.testing.assert_close(outcome(model, inputs), expected, rtol=0, atol=0)
    assert seen == [inputs["input_ids"].numel()] * LAYERS
