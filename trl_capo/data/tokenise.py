"""Tokenise preference pairs exactly as TRL's DPOTrainer does, and measure their lengths per group.

Tokenizers spend up to ten times as many tokens on some scripts. The length of a pair is that of the longer of its two
sequences (prompt and completion).
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import pandas as pd
from datasets import Dataset
from jinja2 import TemplateError
from trl import extract_prompt, is_conversational

from trl_capo.common.text import first_few, one_line, shorten

ALL_PAIRS = "all pairs"
SHOWN_GROUPS = 24
CUT_SHARE = 0.01  # a warning names the groups that lose tokens in at least this share of their pairs


class TokenisedPair(NamedTuple):
    """Token ids of a pair; both completions end in the end-of-sequence token."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def tokenise(pair: Mapping[str, Any], tokenizer: Any) -> TokenisedPair:
    """Tokenise a pair in TRL's standard or conversational format, with or without an explicit prompt.

    Prompt and completion are tokenised together and divided where they first differ from the tokenised prompt. The
    chat template receives the pair's `tools` (a list, or JSON text) and `chat_template_kwargs`.
    """
    pair = pair if "prompt" in pair else {**pair, **extract_prompt(dict(pair))}
    if is_conversational(pair):
        tools = pair.get("tools")
        options = {"tools": json.loads(tools) if isinstance(tools, str) else tools}
        options |= {"return_dict": False, **pair.get("chat_template_kwargs", {})}
        encode = tokenizer.apply_chat_template
        for side in ("chosen", "rejected"):
            _check_template(pair["prompt"] + pair[side], partial(encode, tokenize=False, **options | {"tools": None}))
        prompt = encode(pair["prompt"], add_generation_prompt=True, **options)
        texts = [encode(pair["prompt"] + pair[side], **options) for side in ("chosen", "rejected")]
    else:
        if (eos := tokenizer.eos_token) is None:
            raise ValueError("it has no end-of-sequence token; set eos_token in its files")
        ended = [pair[side] if pair[side].endswith(eos) else pair[side] + eos for side in ("chosen", "rejected")]
        prompt = tokenizer(pair["prompt"])["input_ids"]
        texts = [tokenizer(pair["prompt"] + text)["input_ids"] for text in ended]
    shared = enumerate(zip(prompt, *texts, strict=False))
    start = next((place for place, tokens in shared if len(set(tokens)) > 1), min(map(len, (prompt, *texts))))
    return TokenisedPair(prompt[:start], texts[0][start:], texts[1][start:])


def _check_template(messages: list[dict[str, Any]], render: Callable[..., str]) -> None:
    """Refuse a chat template that leaves out parts of content or tool calls, or writes parts as Python code."""
    parts = [turn["content"] for turn in messages if isinstance(turn.get("content"), list)]
    texts = [part["text"].strip() for content in parts for part in content if part.get("text")]
    texts += [(call.get("function") or call)["name"] for turn in messages for call in turn.get("tool_calls") or ()]
    if not texts:
        return
    rendered = render(messages)
    missing = next((text for text in texts if text not in rendered), None)
    if missing is not None or any(str(content) in rendered for content in parts):
        fault = "writes content in parts as Python code" if missing is None else f"leaves out {shorten(missing, 40)!r}"
        raise ValueError(f"its chat template {fault}; use one that fits the data, or give plain text as `content`")


def tokenise_rows(
    rows: Iterable[Mapping[str, Any]], tokenizer: Any, name: str, data: str = "the data"
) -> Iterator[TokenisedPair]:
    """Tokenise row by row; raise ValueError with a bad row's number in `data`, and `name`, the tokenizer's model."""
    for index, row in enumerate(rows):
        try:
            yield tokenise(row, tokenizer)
        except (AttributeError, KeyError, TemplateError, TypeError, ValueError) as error:  # what chat templates raise
            raise ValueError(f"the tokenizer of {name!r} cannot tokenise row {index} of {data}: {error}") from error


def tokenise_all(dataset: Dataset, tokenizer: Any, max_length: int | None, name: str) -> list[TokenisedPair | None]:
    """Tokenise every pair; a pair whose prompt alone fills `max_length`, which TRL drops too, becomes None."""
    pairs = tokenise_rows(dataset, tokenizer, name)
    return [None if max_length is not None and len(pair.prompt) >= max_length else pair for pair in pairs]


def measure_lengths(
    rows: Dataset, labels: Sequence[str] | None, tokenizer: Any, name: str, max_length: int | None
) -> pd.DataFrame:
    """Tokenise N pairs with the tokenizer of model `name`, and summarise every group in `labels` and all pairs.

    Returns a row per group, `ALL_PAIRS` last: number of `pairs`; `median`, `p95`, `p99` and `longest` in tokens; share
    of pairs `cut` by `max_length`, and number of pairs whose prompt alone is `too_long`; `cost`, the tokens per
    character of the completions, or of the whole text without a prompt column.
    """
    sizes = []
    for row, pair in zip(rows, tokenise_rows(rows, tokenizer, name), strict=True):
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
