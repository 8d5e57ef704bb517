"""Token ids of pairs against DPOTrainer's; log-probabilities of odd pairs against plain cross-entropy."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import PartialState
from conftest import as_conversation, byte_tokenizer, make_pairs
from datasets import Dataset
from test_modes import load
from trl import DPOConfig, DPOTrainer

from trl_capo.scoring import TokenisedPair, completion_log_probs, prepare_for_scoring, tokenise

TEMPLATE = (
    "{% if tools %}<s>tools: {{ tools | tojson }}</s>{% endif %}{% if brief %}<s>brief {{ brief }}</s>{% endif %}"
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "required": ["city"]}}}]
COLUMNS = {
    "text": {},
    "messages": {},
    "tools": {"tools": TOOLS},
    "tools as JSON": {"tools": json.dumps(TOOLS)},
    "no tools": {"tools": None},
    "template options": {"chat_template_kwargs": {"brief": "very"}},
    "tools and template options": {"tools": TOOLS, "chat_template_kwargs": {"brief": "very"}},
    "options that hide the tools": {"tools": TOOLS, "chat_template_kwargs": {"tools": None}},
}


@pytest.mark.parametrize("prompt", ["explicit", "implicit"])
@pytest.mark.parametrize("kind", COLUMNS)
def test_token_ids_are_those_of_dpo_trainer(make_args, model_dir, kind, prompt):
    rows = [row | COLUMNS[kind] if kind == "text" else as_conversation(row) | COLUMNS[kind] for row in make_pairs(4)]
    if prompt == "implicit":
        rows = [row | {side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in rows]
        rows = [{key: value for key, value in row.items() if key != "prompt"} for row in rows]
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    data, args = Dataset.from_list(rows), make_args(DPOConfig)
    expected = DPOTrainer(model_dir, args=args, train_dataset=data, processing_class=tokenizer).train_dataset
    for row, tokens in zip(data, expected, strict=True):
        pair = tokenise(row, tokenizer)
        ours = {"prompt_ids": pair.prompt, "chosen_ids": pair.chosen, "rejected_ids": pair.rejected}
        assert ours == {key: tokens[key] for key in ours}
    text = tokenizer.decode(pair.prompt)
    assert ("weather" in text) == (kind.startswith("tools"))
    assert ("brief very" in text) == ("template options" in kind)


def test_without_a_prompt_the_first_token_is_not_counted(model_dir):
    """Nothing predicts it. Tokens of three pairs by hand: no prompt, a prompt of one token, one that is cut at 5."""
    pairs = [([], [5, 6, 7], [8]), ([9], [5, 6, 7], [8]), ([9, 10, 11], [5, 6, 7, 8], [8])]
    log_probs, lengths = completion_log_probs(
        prepare_for_scoring(load(model_dir)),
        [TokenisedPair(*pair) for pair in pairs],
        batch_size=2,
        max_length=5,
        accelerator=PartialState(cpu=True),
    )
    assert lengths.tolist() == [[2, 0], [3, 1], [2, 1]]
    model, expected = load(model_dir).eval(), []
    for prompt, *answers in pairs:
        for answer in answers:
            ids = torch.tensor([(prompt + answer)[:5]])
            with torch.no_grad():
                losses = F.cross_entropy(model(ids).logits[0, :-1].double(), ids[0, 1:], reduction="none")
            expected.append(-float(losses[max(len(prompt) - 1, 0) :].sum()))
    assert log_probs == pytest.approx(np.array(expected).reshape(-1, 2), abs=1e-4)
