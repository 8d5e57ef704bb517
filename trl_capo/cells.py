"""The cells of preference data: text, or lists of messages."""

from collections.abc import Iterator, Mapping
from typing import Any


def cell_problem(value: Any) -> str | None:
    """Why the value is neither text nor a list of messages, or cannot be tokenised; None if it is and can."""
    if isinstance(value, str):
        return None if _is_text(value) else _HALF
    if value is None:
        return "is null"
    if not isinstance(value, list):
        return f"is {type(value).__name__}, not text or a list of messages,"
    if not value:
        return "is a list without messages"
    if not all(isinstance(message, Mapping) and message.get("role") and "content" in message for message in value):
        return "is a list, but not of messages with `role` and `content`,"
    if not all(isinstance(message["role"], str) for message in value):
        return "has a message whose `role` is not text"
    if not all(_is_content(message["content"]) or message.get("tool_calls") for message in value):
        return "has a message whose `content` is not text, or parts with a `type`,"
    return None if all(map(_is_text, _texts(value))) else _HALF


_HALF = "has half of a surrogate pair, which is no character,"


def _is_text(value: str) -> bool:
    """Whether it can be encoded: tokenizers take nothing else."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _texts(messages: list[Mapping[str, Any]]) -> Iterator[str]:
    for content in (message["content"] for message in messages):
        parts = [part["text"] for part in content if "text" in part] if _is_parts(content) else [content]
        yield from (text for text in parts if isinstance(text, str))


def _is_content(value: Any) -> bool:
    """Whether it is text, or parts that say what they are; those of text have some."""
    if not _is_parts(value):
        return isinstance(value, str)
    return all(isinstance(part.get("text"), str) for part in value if part["type"] == "text")


def _is_parts(value: Any) -> bool:
    parts = value if isinstance(value, list) else [None]
    return all(isinstance(part, Mapping) and isinstance(part.get("type"), str) for part in parts)


def is_empty(value: str | list[Mapping[str, Any]]) -> bool:
    """Whether text, or messages, say nothing."""
    if isinstance(value, str):
        return not value.strip()
    return not any(message["content"] or message.get("tool_calls") for message in value)
