"""Log-probabilities of odd pairs against plain cross-entropy."""

from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
from conftest import byte_tokenizer, save_tiny_model, tiny_config
from oracles import load, token_log_probs
from trl.trainer.utils import add_fused_lm_head

from trl_capo.data.tokenise import TokenisedPair
from trl_capo.scoring.models import answer_log_probs, load_model, resolve_model

PAIRS = [([], [5, 6, 7], [8]), ([9], [5, 6, 7], [8]), ([9, 10, 11], [5, 6, 7, 8], [8])]
"""No prompt, a prompt of one token, and a sequence of 7 tokens."""
Q, HEAD = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj"]}, ["q_proj", "lm_head"]
ADAPTERS = {
    "LoRA on the head": peft.LoraConfig(**Q | {"target_modules": HEAD}),
    "IA3 on the head": peft.IA3Config(**Q | {"target_modules": HEAD}, feedforward_modules=[]),
    "a saved head": peft.LoraConfig(**Q, modules_to_save=["lm_head"]),
    "every bias": peft.LoraConfig(**Q, bias="all"),
    "tokens": peft.LoraConfig(**Q, trainable_token_indices=[5, 8, 9]),
    "tokens alone": peft.TrainableTokensConfig(**Q | {"target_modules": ["embed_tokens"]}, token_indices=[5, 8, 9]),
    "AdaLoRA": peft.AdaLoraConfig(**Q, total_step=10),
    "DoRA": peft.LoraConfig(**Q, use_dora=True),
    "replicated layers": peft.LoraConfig(**Q, layer_replication=[(0, 1), (0, 2)]),
    "CPT": peft.CPTConfig(task_type="CAUSAL_LM", cpt_token_ids=[5, 6], cpt_mask=[1, 1], cpt_tokens_type_mask=[1, 2]),
    "a prefix": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


@pytest.mark.parametrize(("batch_size", "max_length"), [(1, 5), (2, 5), (8, None)])
def test_answers_are_scored_as_if_each_were_alone(model_dir, batch_size, max_length):
    """Token counts by hand: without a prompt, nothing predicts the first token, so it does not count."""
    model = load(model_dir)
    add_fused_lm_head(model)
    pairs = [TokenisedPair(*pair) for pair in PAIRS]
    log_probs, lengths = answer_log_probs(model, pairs, batch_size, max_length, "a model")
    assert lengths.tolist() == [[2, 0], [3, 1], [2 if max_length else 4, 1]]
    model = load(model_dir)
    expected = [
        [float(token_log_probs(model, prompt, answer[: (max_length or 99) - len(prompt)]).sum()) for answer in answers]
        for prompt, *answers in PAIRS
    ]
    assert log_probs == pytest.approx(np.array(expected), abs=1e-4)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_every_kind_of_adapter_is_scored_as_peft_does_and_leaves_its_base_alone(tmp_path, kind, tied):
    base = save_tiny_model(tmp_path / "base", 0, tiny_config(tie_word_embeddings=tied, attention_bias=True))
    model = peft.get_peft_model(load(base), ADAPTERS[kind])
    for weights in (weights for weights in model.parameters() if weights.requires_grad):
        weights.data += 0.1 * torch.randn_like(weights)
    for part in (model, byte_tokenizer()):
        part.save_pretrained(tmp_path / "adapter")
    source = resolve_model(str(tmp_path / "adapter"), "model_name_or_path")
    models = {source: peft.PeftModel.from_pretrained(load(base), source.adapter).eval()}
    found = []
    for own, model in (models | {replace(source, adapter=None): load(base)}).items():
        scored = load_model(own, "auto", False, False)
        found.append(answer_log_probs(scored, [TokenisedPair(*PAIRS[2])], 2, None, "a")[0])
        expected = [float(token_log_probs(model, PAIRS[2][0], answer).sum()) for answer in PAIRS[2][1:]]
        assert found[-1][0] == pytest.approx(np.array(expected), abs=1e-4)
    assert np.abs(found[0] - found[1]).max() > 0.01
