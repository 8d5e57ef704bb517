"""Pairs as text, to read and to be known by: who speaks has a line of its own, and what is said its own direction."""

import json
from collections.abc import Mapping
from typing import Any

TEXTS = ("prompt", "chosen", "rejected")


def parts(value: Any) -> list[tuple[str, str]]:
    """Who says what: of a list of messages each one's role and text; of plain text the text alone, with no role."""
    if value is None:
        return []
    if isinstance(value, str):
        return [("", value)]
    return [(message["role"], _content(message)) for message in value]


def flatten(value: Any) -> str | None:
    """One text; None where there is nothing."""
    said = parts(value)
    return "\n".join(f"{role}:\n{text}" if role else text for role, text in said) if said else None


def in_words(row: Mapping[str, Any]) -> dict[str, str | None]:
    """The texts and the `id` of a row of the data, as suspects tell them; None for what it does not have."""
    name = row.get("id")
    return {text: flatten(row.get(text)) for text in TEXTS} | {"id": None if name is None else str(name)}


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        content = " ".join(part.get("text") or f"[{part['type']}]" for part in content)
    calls = message.get("tool_calls")
    return " ".join(
        filter(None, [content, json.dumps(calls, ensure_ascii=False, sort_keys=True, default=str) if calls else None])
    )
