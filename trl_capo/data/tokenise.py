"""Tokenise preference pairs exactly as TRL's DPOTrainer does, and measure their lengths per group.

Tokenizers spend up to ten times as many tokens on some scripts. The length of a pair is that of the longer of its two
sequences (prompt and completion).
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import pandas as pd
from datasets import Dataset
from jinja2 import TemplateError
from trl import extract_prompt, is_conversational

from trl_capo.common.text import first_few, one_line

logger = logging.getLogger(__name__)

BAD_ROW = (AttributeError, KeyError, TemplateError, TypeError, ValueError)  # what chat templates raise
# Keys of a message whose text is for models
_READ = {"content", "text", "tool_calls", "function", "name", "arguments"}
ALL_PAIRS, SHOWN_GROUPS = "all pairs", 24
CUT_SHARE = 0.01  # a warning names the groups that lose tokens in at least this share of their pairs


class TokenisedPair(NamedTuple):
    """Token ids of a pair; both completions end in the end-of-sequence token."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def tokenise(pair: Mapping[str, Any], tokenizer: Any) -> TokenisedPair:
    """Tokenise a pair with an explicit prompt, in TRL's standard or conversational format.

    Prompt and completion are tokenised together and divided where they first differ from the tokenised prompt. The
    chat template receives the pair's `tools` (a list, or JSON text) and `chat_template_kwargs`.
    """
    if is_conversational(pair):
        encode = _chat_template(pair, tokenizer)
        prompt = encode(pair["prompt"], add_generation_prompt=True)
        texts = [encode(pair["prompt"] + pair[side]) for side in ("chosen", "rejected")]
    else:
        if (eos := tokenizer.eos_token) is None:
            raise ValueError("it has no end-of-sequence token; set eos_token in its files")
        ended = [pair[side] if pair[side].endswith(eos) else pair[side] + eos for side in ("chosen", "rejected")]
        prompt = tokenizer(pair["prompt"])["input_ids"]
        texts = [tokenizer(pair["prompt"] + text)["input_ids"] for text in ended]
    shared = enumerate(zip(prompt, *texts, strict=False))
    start = next((place for place, tokens in shared if len(set(tokens)) > 1), min(map(len, (prompt, *texts))))
    return TokenisedPair(prompt[:start], texts[0][start:], texts[1][start:])


def _chat_template(pair: Mapping[str, Any], tokenizer: Any) -> Callable[..., Any]:
    tools, options = pair.get("tools"), pair.get("chat_template_kwargs", {})
    tools = json.loads(tools) if isinstance(tools, str) else tools
    return partial(tokenizer.apply_chat_template, tools=tools, **{"return_dict": False, **options})


def _check_template(pair: Mapping[str, Any], tokenizer: Any, seen: set[tuple]) -> Iterator[str]:
    """Yield what the chat template leaves out of prompts, and raise ValueError for what it leaves out of answers.

    What can change while the text stays the same is left out. `seen` holds what was tried in earlier pairs.
    """
    for side in ("chosen", "rejected") if is_conversational(pair) else ():
        messages, encode = pair["prompt"] + pair[side], partial(_chat_template(pair, tokenizer), tokenize=False)
        for place, message in enumerate(messages):
            for path, changed in _variants(message):
                if (kind := (message["role"], bool(message.get("tool_calls")), *path[:3])) in seen:
                    continue
                seen.add(kind)
                text, fault, content = encode(messages), None, message.get("content")
                with suppress(*BAD_ROW):  # an error shows that this part is read
                    if encode([*messages[:place], changed, *messages[place + 1 :]]) == text:
                        fault = f"leaves out `{'.'.join(path)}` of {message['role']!r} messages"
                if fault and path == ("content",) and (place < len(pair["prompt"]) or message.get("tool_calls")):
                    yield fault
                    continue
                if isinstance(content, list) and str(content) in text:
                    fault = "writes content in parts as Python code"
                if fault:
                    raise ValueError(f"its chat template {fault}; use one that fits the data")


def _variants(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the keys that lead to each text in a message, and a copy of the message with another text there."""
    if isinstance(value, list):
        for place, item in enumerate(value):
            for found, changed in _variants(item, path):
                yield found, [*value[:place], changed, *value[place + 1 :]]
    elif isinstance(value, Mapping):
        for key in (key for key in value if key in _READ or path[-1:] == ("arguments",)):
            for found, changed in _variants(value[key], (*path, key)):
                yield found, {**value, key: changed}
    elif str(value or "").strip():
        yield path, f"{value} x"


def tokenise_rows(
    rows: Iterable[Mapping[str, Any]], tokenizer: Any, name: str, data: str = "the data", most: int | None = None
) -> Iterator[TokenisedPair]:
    """Tokenise the first `most` rows, or all, and try the chat template on every kind of message in all rows.

    Raises ValueError with a bad row's number in `data`, and `name`, the tokenizer's model.
    """
    seen: set[tuple] = set()
    for index, row in enumerate(rows):
        if most is not None and index >= most and not is_conversational(row):
            return  # plain text has no template
        try:
            row = row if "prompt" in row else {**row, **extract_prompt(dict(row))}
            for fault in _check_template(row, tokenizer, seen):
                logger.warning(f"{data}: the chat template of {name!r} {fault}, such as in row {index}.")
            if most is None or index < most:
                yield tokenise(row, tokenizer)
        except BAD_ROW as error:
            raise ValueError(f"the tokenizer of {name!r} cannot tokenise row {index} of {data}: {error}") from error


def tokenise_all(dataset: Dataset, tokenizer: Any, max_length: int | None, name: str) -> list[TokenisedPair | None]:
    """Tokenise every pair; a pair whose prompt alone fills `max_length`, which TRL drops too, becomes None."""
    pairs = tokenise_rows(dataset, tokenizer, name)
    return [None if max_length is not None and len(pair.prompt) >= max_length else pair for pair in pairs]


def measure_lengths(
    rows: Dataset, labels: Sequence[str] | None, tokenizer: Any, name: str, max_length: int | None, data: str
) -> pd.DataFrame:
    """Tokenise N pairs of `data` with the tokenizer of model `name`; summarise every group in `labels`, and all pairs.

    Returns a row per group, `ALL_PAIRS` last: number of `pairs`; `median`, `p95`, `p99` and `longest` in tokens; share
    of pairs `cut` by `max_length`, and number of pairs whose prompt alone is `too_long`; `cost`, the tokens per
    character of the completions, or of the whole text without a prompt column.
    """
    sizes = []
    for row, pair in zip(rows, tokenise_rows(rows, tokenizer, name, data), strict=True):
        prompt, chosen, rejected = len(pair.prompt), len(pair.chosen), len(pair.rejected)
        tokens = chosen + rejected + (0 if "prompt" in row else 2 * prompt)
        characters = _characters(row["chosen"]) + _characters(row["rejected"])
        sizes.append((prompt + max(chosen, rejected), prompt, tokens, characters))
    columns = ["length", "prompt", "tokens", "characters"]
    return summarise_lengths(pd.DataFrame(sizes, columns=columns), labels, max_length)


def _characters(answer: Any) -> int:
    return len(answer) if isinstance(answer, str) else sum(len(message.get("content") or "") for message in answer)


def summarise_lengths(lengths: pd.DataFrame, labels: Sequence[str] | None, max_length: int | None) -> pd.DataFrame:
    """Make the table of `measure_lengths` from (N,) `length` and `prompt`, NaN for pairs that were dropped."""
    limit = float("inf") if max_length is None else max_length
    groups = [*([] if labels is None else lengths.groupby(list(labels))), (ALL_PAIRS, lengths)]
    return pd.DataFrame({group: _summary(own, limit) for group, own in groups}).T


def _summary(lengths: pd.DataFrame, limit: float) -> dict[str, float]:
    shares = {"median": 0.5, "p95": 0.95, "p99": 0.99, "longest": 1.0}
    summary = {name: lengths["length"].quantile(share, "higher") for name, share in shares.items()}
    summary |= {"cut": (lengths["length"] > limit).mean(), "too_long": (~(lengths["prompt"] < limit)).sum()}
    cost = lengths["tokens"].sum() / max(1, lengths["characters"].sum()) if "tokens" in lengths else None
    return {"pairs": len(lengths), **summary, "cost": cost}


def length_table(summary: pd.DataFrame, group_name: str) -> list[list[str]]:
    """Make a header and a row per group, the most cut first; of more than `SHOWN_GROUPS` groups only the largest."""
    groups = summary.drop(ALL_PAIRS)
    shown = groups.nlargest(SHOWN_GROUPS, "pairs").sort_values(["cut", "cost"], ascending=False)
    rows = [[group_name, "pairs", "median", "p95", "longest", "cut, %", "tokens/char", "x best"]]
    for group, row in pd.concat([shown, summary.loc[[ALL_PAIRS]]]).iterrows():
        counts = [f"{row[name]:,.0f}" for name in ("pairs", "median", "p95", "longest")]
        ratio = "" if group == ALL_PAIRS else f"{row['cost'] / groups['cost'].min():.1f}"
        rows.append([group, *counts, f"{100 * row['cut']:.1f}", f"{row['cost']:.2f}", ratio])
    return rows


def length_warnings(summary: pd.DataFrame, max_length: int | None, *, drops: bool) -> list[str]:
    """Name the groups that lose tokens, and those that lose pairs (`drops`) with too long a prompt."""
    warnings, summary = [], summary.sort_values("cut", ascending=False, kind="stable")
    cut = [f"{one_line(group)} {share:.1%}" for group, share in summary["cut"].items() if share >= CUT_SHARE]
    if cut:
        cuts, enough = f"max_length={max_length} cuts pairs ({first_few(cut, 8)})", summary["p99"].max()
        warnings.append(f"{cuts}. With max_length={enough:.0f}, at least 99% of each group's kept pairs stay whole.")
    long = summary[summary["too_long"] > 0]
    if drops and len(long):
        groups = (f"{one_line(name)} {row.too_long:,.0f} of {row.pairs:,.0f}" for name, row in long.iterrows())
        warnings.append(f"max_length={max_length} drops pairs whose prompt alone fills it ({first_few(groups, 8)}).")
    return warnings
