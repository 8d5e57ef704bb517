"""Tokenise preference pairs exactly as TRL's DPOTrainer does, and measure their lengths per group.

Tokenizers spend up to ten times as many tokens on some scripts. The length of a pair is that of the longer of its two
sequences (prompt and completion).
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from datasets import Dataset
from jinja2 import TemplateError
from trl import extract_prompt, is_conversational

from trl_capo.common.text import first_few, one_line

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
        options |= {"tokenize": True, "return_dict": False, **(pair.get("chat_template_kwargs") or {})}
        encode = tokenizer.apply_chat_template
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


def tokenise_rows(rows: Iterable[Mapping[str, Any]], tokenizer: Any, name: str) -> Iterator[TokenisedPair]:
    """Tokenise row by row; raise ValueError with the number of a bad row and `name`, the tokenizer's model."""
    for index, row in enumerate(rows):
        try:
            yield tokenise(row, tokenizer)
        except (TemplateError, TypeError, ValueError) as error:  # what chat templates raise
            raise ValueError(f"the tokenizer of {name!r} cannot tokenise row {index}: {error}") from error


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
    measured = []
    for row, pair in zip(rows, tokenise_rows(rows, tokenizer, name), strict=True):
        prompt, chosen, rejected = len(pair.prompt), len(pair.chosen), len(pair.rejected)
        tokens = chosen + rejected + (0 if "prompt" in row else 2 * prompt)
        characters = _characters(row["chosen"]) + _characters(row["rejected"])
        measured.append((prompt + max(chosen, rejected), prompt, tokens, characters))
    lengths = pd.DataFrame(measured, columns=["length", "prompt", "tokens", "characters"])
    groups = [] if labels is None else lengths.groupby(list(labels))
    limit = float("inf") if max_length is None else max_length
    return pd.DataFrame({group: _summary(own, limit) for group, own in [*groups, (ALL_PAIRS, lengths)]}).T


def _characters(answer: Any) -> int:
    return len(answer) if isinstance(answer, str) else sum(len(message.get("content") or "") for message in answer)


def _summary(lengths: pd.DataFrame, limit: float) -> dict[str, float]:
    shares = {"median": 0.5, "p95": 0.95, "p99": 0.99, "longest": 1.0}
    summary = {name: lengths["length"].quantile(share, "higher") for name, share in shares.items()}
    summary |= {"cut": (lengths["length"] > limit).mean(), "too_long": (lengths["prompt"] >= limit).sum()}
    cost = lengths["tokens"].sum() / max(1, lengths["characters"].sum())
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
    """Name the groups that lose tokens, and those whose pairs training drops (`drops`) for too long a prompt."""
    warnings, summary = [], summary.sort_values("cut", ascending=False, kind="stable")
    cut = [f"{one_line(group)} {share:.1%}" for group, share in summary["cut"].items() if share >= CUT_SHARE]
    if cut:
        warnings.append(
            f"max_length={max_length} cuts pairs ({first_few(cut, 8)}), and what it cuts off is not learned. With "
            f"max_length={summary['p99'].max():.0f} at least 99% of the pairs of every group stay whole."
        )
    dropped = first_few((f"{one_line(name)} {count:,.0f}" for name, count in summary["too_long"].items() if count), 8)
    if drops and dropped:
        warnings.append(f"max_length={max_length}: training drops pairs whose prompt alone fills it ({dropped}).")
    return warnings
