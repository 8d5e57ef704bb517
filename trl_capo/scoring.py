"""Log-probabilities of completions under a model, without training: what an evaluation is made of.

Sequences are scored each by itself, in batches of similar length, so that little is computed for padding; the chosen
and the rejected completion of a pair need not meet in a batch. TRL's fused head gives the log-probs without a tensor
of the vocabulary's size. On several processes each scores its share of the batches.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from jinja2 import TemplateError
from trl import extract_prompt, is_conversational
from trl.trainer.utils import add_fused_lm_head


@dataclass(frozen=True)
class TokenisedPair:
    """Token ids of a pair as DPOTrainer makes them: the completions end in the end-of-sequence token."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def tokenise(pair: Mapping[str, Any], tokenizer: Any) -> TokenisedPair:
    """Tokenise a pair in TRL's standard or conversational format, with or without an explicit prompt.

    A chat template gets the pair's `tools` (a list, or JSON) and `chat_template_kwargs`.

    Prompt and completion are tokenised together and cut where the texts leave the tokenised prompt, as TRL does.

    Raises:
        ValueError, TypeError, jinja2.TemplateError: the tokenizer, or its chat template, cannot.
    """
    pair = pair if "prompt" in pair else {**pair, **extract_prompt(dict(pair))}
    if is_conversational(pair):
        options = {"tools": _read_tools(pair.get("tools"))}
        options |= {"tokenize": True, "return_dict": False, **(pair.get("chat_template_kwargs") or {})}
        encode = tokenizer.apply_chat_template
        prompt = encode(pair["prompt"], add_generation_prompt=True, **options)
        texts = [encode(pair["prompt"] + pair[side], **options) for side in ("chosen", "rejected")]
    else:
        eos = tokenizer.eos_token
        if eos is None:
            raise ValueError("it has no end-of-sequence token to end answers with; set eos_token in its files")
        ended = [pair[side] if pair[side].endswith(eos) else pair[side] + eos for side in ("chosen", "rejected")]
        prompt = tokenizer(pair["prompt"])["input_ids"]
        texts = [tokenizer(pair["prompt"] + text)["input_ids"] for text in ended]
    start = min(_shared_length(prompt, text) for text in texts)
    return TokenisedPair(prompt[:start], texts[0][start:], texts[1][start:])


def _read_tools(tools: Any) -> Any:
    if not isinstance(tools, str):
        return tools
    try:
        return json.loads(tools)
    except json.JSONDecodeError as error:
        raise ValueError(f"its column 'tools' is text, but not JSON ({error})") from error


def _shared_length(first: Sequence[int], second: Sequence[int]) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))


def tokenise_all(dataset: Dataset, tokenizer: Any, max_length: int | None, name: str) -> list[TokenisedPair | None]:
    """Tokenise every pair; None for those whose prompt alone fills `max_length` (TRL drops them too).

    Raises:
        ValueError: a row cannot be tokenised; `name` says by which model's tokenizer.
    """
    pairs = tokenise_rows(dataset, tokenizer, name)
    return [None if max_length is not None and len(pair.prompt) >= max_length else pair for pair in pairs]


def tokenise_rows(rows: Iterable[Mapping[str, Any]], tokenizer: Any, name: str) -> Iterator[TokenisedPair]:
    """Tokenise one row after the other; raises as `tokenise_all`."""
    for index, row in enumerate(rows):
        try:
            yield tokenise(row, tokenizer)
        except (TemplateError, TypeError, ValueError) as error:  # what chat templates raise
            raise ValueError(f"the tokenizer of {name!r} cannot tokenise row {index}: {error}") from error


@torch.no_grad()
def completion_log_probs(
    model: Any,
    pairs: Sequence[TokenisedPair],
    *,
    batch_size: int,
    max_length: int | None,
    accelerator: Any,
    advance: Callable[[float], None] = lambda pairs: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Score both completions of every pair.

    Args:
        model: causal language model, with TRL's fused head (`prepare_for_scoring`), in eval mode.
        pairs: N tokenised pairs.
        batch_size: pairs a batch, that is twice as many sequences.
        max_length: longer sequences are cut at their end, as TRL does; None cuts nothing.
        accelerator: whose processes share the work.
        advance: called with the number of pairs done, halves included.

    Returns:
        (N, 2) log-probabilities in nats (chosen, rejected), float64, and (N, 2) numbers of tokens, on every process.
    """
    sequences = [
        (pair.prompt + completion, len(pair.prompt)) for pair in pairs for completion in (pair.chosen, pair.rejected)
    ]
    sequences = [(ids[:max_length], start) for ids, start in sequences]
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index][0]))
    batches = [order[start : start + 2 * batch_size] for start in range(0, len(order), 2 * batch_size)]
    done = []
    for batch in batches[accelerator.process_index :: accelerator.num_processes]:
        log_probs = _score_batch(model, [sequences[index] for index in batch], accelerator.device)
        done.append((batch, log_probs))
        advance(len(batch) / 2 * accelerator.num_processes)
    scores = np.zeros(len(sequences))
    for batch, log_probs in gather_object(done):
        scores[batch] = log_probs
    # Without a prompt the first token has nothing before it that could predict it.
    lengths = np.array([len(ids) - max(start, 1) for ids, start in sequences])
    return scores.reshape(-1, 2), lengths.reshape(-1, 2)


def _score_batch(model: Any, sequences: list[tuple[list[int], int]], device: Any) -> list[float]:
    longest = max(len(ids) for ids, _ in sequences)
    input_ids = torch.zeros(len(sequences), longest, dtype=torch.long)  # padding is masked: any token serves
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, -100)
    for row, (ids, start) in enumerate(sequences):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        attention_mask[row, : len(ids)] = 1
        labels[row, start : len(ids)] = torch.tensor(ids[start:])
    outputs = model(
        input_ids=input_ids.to(device),
        attention_mask=attention_mask.to(device),
        labels=labels.to(device),
        use_cache=False,
        fused_lm_head=True,
    )
    # Prompt-learning adapters put virtual tokens before the sequence; they lie outside the completion.
    return outputs.log_probs.double().sum(dim=1).tolist()


def prepare_for_scoring(model: Any) -> Any:
    """Give the model TRL's fused head and switch it to evaluation; before a PEFT adapter is put on it."""
    add_fused_lm_head(model)
    return model.eval()
