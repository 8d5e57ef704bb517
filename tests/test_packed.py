"""Packed layers give what padded batches give: logits and gradients; oracle: the same model without packing."""

import pytest
import torch
from conftest import tiny_config
from test_frozen import LAYERS, batch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaForCausalLM

from trl_capo.study.packed import PackedLayers, Packing


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
    if kind == "llama":
        return LlamaForCausalLM(tiny_config(num_hidden_layers=LAYERS, **changes)).eval()
    own = {
        "sliding_window": 512,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "head_dim": 8,
    }
    llama = tiny_config(num_hidden_layers=LAYERS)
    sizes = {name: getattr(llama, name) for name in ("vocab_size", "hidden_size", "intermediate_size")}
    heads = {"num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 1}
    return Gemma3ForCausalLM(Gemma3TextConfig(**{**sizes, **heads, **own, **changes})).eval()


class Tokens:
    """How many tokens each layer sees."""

    def __init__(self, model):
        self.seen = [0] * LAYERS
        for index, layer in enumerate(model.model.layers):
            layer.self_attn.register_forward_pre_hook(
                lambda _, args, kwargs, index=index: self.add(index, kwargs["hidden_states"]), with_kwargs=True
            )

    def add(self, index, states):
        self.seen[index] += states.shape[0] * states.shape[1]


def outcome(model, inputs):
    """Logits at the real tokens, and the gradients of a weighted sum of them."""
    model.zero_grad()
    logits = model(**{"use_cache": False, **inputs}).logits[inputs["attention_mask"].bool()]
    torch.manual_seed(7)
    (logits * torch.randn_like(logits)).sum().backward()
    return logits.detach(), [parameter.grad.clone() for parameter in model.parameters()]


def different_beginnings(inputs):
    """Of every pair's two sequences: what has to be computed at all."""
    lengths = inputs["attention_mask"].sum(dim=1).tolist()
    rows = [row[:length].tolist() for row, length in zip(inputs["input_ids"], lengths, strict=True)]
    half = len(rows) // 2
    beginnings = {(index % half, *row[: end + 1]) for index, row in enumerate(rows) for end in range(len(row))}
    return len(beginnings)


SHAPES = [
    {},
    {"prompts": (1,), "chosen": (1,), "rejected": (1,)},
    {"prompts": (6, 1, 3), "chosen": (2, 4, 1), "rejected": (2, 1, 7)},
]


@pytest.mark.parametrize("kind", ["llama", "gemma"])
@pytest.mark.parametrize("first", range(LAYERS))
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_gradients_are_those_of_the_padded_batch(shape, first, kind):
    inputs = pairs(**shape)
    expected = outcome(make(kind), inputs)
    model = make(kind)
    PackedLayers(model, first)
    tokens = Tokens(model)
    torch.testing.assert_close(outcome(model, inputs), expected, rtol=1e-4, atol=2e-4)
    assert tokens.seen[:first] == [inputs["input_ids"].numel()] * first
    assert tokens.seen[first:] == [different_beginnings(inputs)] * (LAYERS - first)


def test_a_token_sees_its_own_sequence_and_the_common_beginning():
    """Worked by hand: chosen 5 6 7, rejected 5 8: five tokens less the common one."""
    ids, real = torch.tensor([[5, 6, 7], [5, 8, 0]]), torch.tensor([[True, True, True], [True, True, False]])
    packing = Packing(ids, real, 8)
    assert packing.rows.tolist() == [[0, 0, 0, 1]]
    assert packing.places.tolist() == [[0, 1, 2, 1]]
    assert packing.source.tolist() == [[0, 1, 2], [0, 3, 0]]
    assert packing.mask[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 1]]


def test_equal_sequences_are_computed_once():
    ids, real = torch.tensor([[5, 6, 0], [5, 6, 0]]), torch.tensor([[True, True, False]] * 2)
    packing = Packing(ids, real, 8)
    assert packing.rows.tolist() == [[0, 0]]
    assert packing.source[:, :2].tolist() == [[0, 1], [0, 1]]


def test_an_odd_number_of_sequences_shares_nothing():
    inputs = batch((4, 2, 3))
    expected, model = outcome(make(), inputs), make()
    PackedLayers(model, 1)
    tokens = Tokens(model)
    torch.testing.assert_close(outcome(model, inputs), expected, rtol=1e-4, atol=2e-4)
    assert tokens.seen == [12, 9, 9]


@pytest.mark.parametrize("row", [1, 9, 12, 20])
def test_rows_of_any_length_give_the_same(row):
    inputs = pairs(**SHAPES[-1])
    expected, model = outcome(make("gemma"), inputs), make("gemma")
    PackedLayers(model, 1, row)
    torch.testing.assert_close(outcome(model, inputs), expected, rtol=1e-4, atol=2e-4)


def test_rows_are_filled_by_the_longest_pairs_first():
    """Pairs of 3, 5, 2 and 4 tokens in rows of 8: 5 and 3, 4 and 2; padding at the end of the second row."""
    lengths = [3, 5, 2, 4]
    ids = torch.zeros(8, 5, dtype=torch.long)
    real = torch.zeros(8, 5, dtype=torch.bool)
    for row, length in enumerate(lengths):
        ids[row] = torch.arange(5)
        real[row, :length] = True
    real[4:, 0] = True  # each rejected sequence is the first token, which is shared
    packing = Packing(ids, real, 8)
    assert packing.rows.tolist() == [[1, 1, 1, 1, 1, 0, 0, 0], [3, 3, 3, 3, 2, 2, -8, -8]]
    assert packing.places.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 3, 0, 1, 0, 0]]
    assert packing.source[:, 0].tolist() == [5, 0, 12, 8] * 2
    assert packing.mask.any(dim=-1).all()  # no token attends to nothing, whose softmax has no value


def beyond_the_window():
    return make("gemma", sliding_window=4), pairs()


CASES = {
    "padding on the left": lambda: (make(), batch((5, 3), left=True)),
    "a sliding window": beyond_the_window,
    "another attention": lambda: (make(attn_implementation="eager"), pairs()),
    "a cache": lambda: (make(), pairs() | {"use_cache": True}),
    "all hidden states": lambda: (make(), pairs() | {"output_hidden_states": True}),
    "positions of its own": lambda: (make(), pairs() | {"position_ids": torch.arange(7).expand(4, 7) + 1}),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_packed_is_left_as_it_is(case):
    model, inputs = CASES[case]()
    expected = outcome(model, inputs)
    PackedLayers(model, 0)
    tokens = Tokens(model)
    torch.testing.assert_close(outcome(model, inputs), expected, rtol=0, atol=0)
    assert tokens.seen == [inputs["input_ids"].numel()] * LAYERS


def test_a_batch_that_cannot_be_packed_may_follow_one_that_can():
    model, plain = make(), make()
    PackedLayers(model, 1)
    for inputs in (pairs(), batch((5, 3), left=True), pairs(seed=1)):
        torch.testing.assert_close(outcome(model, inputs), outcome(plain, inputs), rtol=1e-4, atol=2e-4)


def test_text_is_generated_as_before():
    """With keys and values from before, of which a packed row has none."""
    model, plain, inputs = make(), make(), {key: value[:1] for key, value in pairs().items()}
    PackedLayers(model, 0)
    generate = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(model.generate(**inputs, **generate), plain.generate(**inputs, **generate))
