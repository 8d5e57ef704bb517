"""Log-probabilities of odd pairs against plain cross-entropy."""

import numpy as np
import pytest
from oracles import load, token_log_probs
from trl.trainer.utils import add_fused_lm_head

from trl_capo.data.tokenise import TokenisedPair
from trl_capo.evaluate.scoring import answer_log_probs

PAIRS = [([], [5, 6, 7], [8]), ([9], [5, 6, 7], [8]), ([9, 10, 11], [5, 6, 7, 8], [8])]
"""No prompt, a prompt of one token, and a sequence of 7 tokens."""


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
