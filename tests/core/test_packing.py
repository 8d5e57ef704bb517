"""Packed rows give what the padded batch gives; the oracle is the same model on the padded batch."""

import pytest
import torch
from accelerate import PartialState
from peft import PromptTuningConfig
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from trl_capo import CAPOTrainer
from trl_capo.core.packing import Packing, PaddingFree

FIELDS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
SIZES = {"vocab_size": 260, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
SIZES |= {
    "num_key_value_heads": 1,
    "intermediate_size": 64,
    "head_dim": 8,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
HYBRID = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 4}
MODELS = {
    "llama": ("llama", {}),
    "llama, eager": ("llama", {"attn_implementation": "eager"}),
    "gemma3, hybrid": ("gemma3_text", HYBRID),
    "gemma3, hybrid, eager": ("gemma3_text", HYBRID | {"attn_implementation": "eager"}),
    "mistral, sliding window": ("mistral", {"sliding_window": 5}),
    "llama, unused window": ("llama", {"sliding_window": 4}),
    "qwen2": ("qwen2", {}),
    "gpt2, learned positions": ("gpt2", {}),
}
# Lengths of prompts, chosen and rejected answers, how many tokens the answers share, and the tokens to compute
SHAPES = {
    "uneven": ((6, 1, 3), (2, 4, 1), (2, 1, 7), 0, 24),
    "one token": ((1,), (1,), (1,), 0, 2),
    "empty prompts": ((0, 0), (5, 2), (1, 3), 0, 7),
    "identical answers": ((3, 5), (4, 2), (4, 2), 4, 14),
    "one answer begins the other": ((3,), (2,), (6,), 2, 9),
    "long and short": ((40, 2, 30, 7), (9, 1, 30, 3), (12, 5, 2, 1), 1, 136),
}


PartialState()


def make(kind, attn_implementation="sdpa", **changes):
    torch.manual_seed(3)
    config = AutoConfig.for_model(kind, **SIZES | changes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation).eval()
    add_fused_lm_head(model, outputs=FIELDS)
    return model


def batch(prompts, chosen, rejected, shared=0, _=None):
    """A padded batch of pairs with these lengths, as TRL makes it."""
    torch.manual_seed(0)
    starts = [torch.randint(3, 260, (length,)) for length in prompts]
    answers = [torch.randint(3, 260, (2, max(lengths))) for lengths in zip(chosen, rejected, strict=True)]
    for pair in answers:
        pair[1, :shared] = pair[0, :shared]
    rows = [(p, a[0][:n]) for p, a, n in zip(starts, answers, chosen, strict=True)]
    rows += [(p, a[1][:n]) for p, a, n in zip(starts, answers, rejected, strict=True)]
    ids = pad_sequence([torch.cat(row) for row in rows], batch_first=True)
    mask = pad_sequence([torch.ones(len(p) + len(a), dtype=int) for p, a in rows], batch_first=True)
    labels = [torch.cat([torch.full_like(prompt, -100), answer]) for prompt, answer in rows]
    labels = pad_sequence(labels, batch_first=True, padding_value=-100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "use_cache": False, "fused_lm_head": True}


def outcome(model, call):
    """Fields of the output, and the gradient of a weighted sum of log-probs and entropies as one vector."""
    model.zero_grad()
    output = call()
    torch.manual_seed(7)
    weight = torch.randn(2, *output.log_probs.shape)
    (weight[0] * output.log_probs + weight[1] * output.entropy).sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return {name: output[name].detach() for name in (*FIELDS, "label_mask", "loss")} | {"gradient": gradient}


def assert_same(found, expected):
    for name, values in expected.items():
        assert values.shape == found[name].shape, name
        difference = (found[name].double() - values.double()).norm()
        assert difference <= 1e-5 * values.double().norm(), f"{name}: {difference}"


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("shape", SHAPES)
def test_packed_rows_equal_the_padded_batch(kind, shape, caplog):
    name, options = MODELS[kind]
    model, inputs = make(name, **options), batch(*SHAPES[shape])
    expected, packed = outcome(model, lambda: model(**inputs)), PaddingFree(model)
    for _ in range(2):  # the first call also computes a padded pair
        assert_same(outcome(model, lambda: packed(model, **inputs)), expected)
    assert "padding_free" not in caplog.text


@pytest.mark.parametrize("shape", SHAPES)
def test_only_the_last_shared_token_is_computed_twice_and_last_tokens_not_at_all(shape):
    """The tokens to compute were counted by hand; here rows of any width are equally cheap."""
    *lengths, expected = SHAPES[shape]
    inputs = [batch(*lengths)[name] for name in ("input_ids", "attention_mask", "labels")]
    packing = Packing(*inputs, hidden_size=10**6)
    assert (packing.input_ids != 0).sum() == expected
    assert packing.input_ids.numel() <= 1.2 * expected


OBSTACLES = {
    "type linear_attention": lambda: make("mamba", attn_implementation="eager"),
    "recurrent layers": lambda: make(
        "granitemoehybrid", layer_types=["full_attention"] * 3, num_local_experts=0, mamba_n_heads=8
    ),
    "flex_attention": lambda: make("llama", attn_implementation="flex_attention"),
    "common attention": lambda: make("gpt_neo", "eager", attention_types=[[["global"], 3]]),
    "output_router_logits": lambda: make("mixtral", output_router_logits=True, num_local_experts=2),
    "attention_chunk_size is 4": lambda: make("llama", attention_chunk_size=4),
    "attention_dropout is 0.1": lambda: make("qwen2", attention_dropout=0.1),
}


@pytest.mark.parametrize("reason", OBSTACLES)
def test_models_that_cannot_be_packed_are_padded_with_a_warning(reason, caplog):
    model, inputs = OBSTACLES[reason](), batch(*SHAPES["uneven"])
    packed = PaddingFree(model)
    assert reason in caplog.text
    with torch.no_grad():
        assert torch.equal(packed(model, **inputs).log_probs, model(**inputs).log_probs)
    assert caplog.text.count("padding_free=True has no effect") == 1


def test_other_inputs_and_prompt_learning_are_padded_with_a_warning(make_args, model_dir, pairs, caplog):
    model, inputs = make("llama"), batch(*SHAPES["uneven"])
    packed = PaddingFree(model)
    packed(model, **inputs, token_type_ids=None)
    assert "the model's inputs include token_type_ids" in caplog.text
    peft_config, args = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), make_args(padding_free=True)
    trainer = CAPOTrainer(model_dir, args=args, train_dataset=pairs, peft_config=peft_config)
    trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    assert "prompt learning" in caplog.text


def test_a_model_that_gives_other_log_probs_on_packed_rows_is_padded(caplog, monkeypatch):
    """With a causal mask over the whole row, each sequence sees those before it."""
    model, inputs = make("llama"), batch(*SHAPES["uneven"])
    causal = lambda self, *_: torch.ones(1, 1, *[self.input_ids.shape[1]] * 2, dtype=bool).tril()  # noqa: E731
    monkeypatch.setattr(Packing, "attention_mask", causal)
    packed = PaddingFree(model)
    for _ in range(2):
        assert torch.equal(packed(model, **inputs).log_probs, model(**inputs).log_probs)
    assert "differ by" in caplog.text


@pytest.mark.parametrize("exact", [True, False])
def test_only_rounding_passes_the_check_of_the_first_batch(exact, caplog, monkeypatch):
    """bfloat16 may differ by a percent, float32 may not; what other processes found counts, too."""
    model, inputs = make("llama"), batch(*SHAPES["uneven"])
    unpack = Packing.unpack
    monkeypatch.setattr(Packing, "unpack", lambda self, values: unpack(self, values) * 1.01)
    PaddingFree(model, exact)(model, **inputs)
    assert ("differ by" in caplog.text) == exact
    caplog.clear()
    monkeypatch.undo()
    packed = PaddingFree(model, exact, gather=lambda error: torch.cat([error, error + 0.5]))
    assert torch.equal(packed(model, **inputs).log_probs, model(**inputs).log_probs)
    assert "differ by 50" in caplog.text
