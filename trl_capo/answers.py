"""The answers of preference pairs: where they start, which columns belong to them, how to spoil one a little.

An answer is text or a list of messages. In the implicit format, without a column `prompt`, both answers start with the
prompt: what they have in common, in text up to the last space of it.
"""

import copy
import json
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
from datasets import Features

Answer = str | list[Mapping[str, Any]]


def paired_columns(columns: Iterable[str]) -> dict[str, str]:
    """Every column of the chosen answer, with its counterpart of the rejected one.

    They are named alike but for these words: `chosen`, `chosen_rating`, `score_chosen`, `ref_chosen_logps`.
    """
    columns = list(columns)
    pairs = {name: name.replace("chosen", "rejected") for name in columns if "chosen" in name}
    return {chosen: rejected for chosen, rejected in pairs.items() if rejected in columns}


def answer_start(chosen: Answer, rejected: Answer, explicit: bool) -> int:
    """How many characters or messages of both answers are the prompt: none where it is `explicit`."""
    if explicit:
        return 0
    shortest = min(len(chosen), len(rejected))
    common = next((place for place in range(shortest) if chosen[place] != rejected[place]), shortest)
    if isinstance(chosen, str) and common < max(len(chosen), len(rejected)):
        while common and not chosen[common - 1].isspace() and any(map(str.isspace, chosen[:common])):
            common -= 1
    return common


def question(row: Mapping[str, Any]) -> str:
    """What the prompt asks, as a key: system messages, which may name the language to answer in, do not count."""
    prompt = row.get("prompt")
    if "prompt" not in row:
        prompt = row["chosen"][: answer_start(row["chosen"], row["rejected"], explicit=False)]
    if not isinstance(prompt, list):
        return str(prompt)
    asked = [message for message in prompt if message.get("role") != "system"]
    return json.dumps(asked, ensure_ascii=False, sort_keys=True, default=str)


def near_tie(answer: Answer, start: int, place: float) -> Answer | None:
    """The answer with one letter doubled, or None where it has no text to change.

    A doubled letter survives what drops or merges spaces, and works in scripts that write none.

    Args:
        answer: text, or messages, of which the last one by the assistant is changed.
        start: the first character or message that may change.
        place: which letter, as a share in [0, 1) of those there are.
    """
    if isinstance(answer, str):
        changed = _double_letter(answer[start:], place)
        return None if changed is None else answer[:start] + changed
    own = [index for index, message in enumerate(answer) if index >= start and message.get("role") == "assistant"]
    if not own:
        return None
    answer = copy.deepcopy(answer)
    message = answer[own[-1]]
    # A message's content is text or a list of parts, of which some are text.
    parts = message["content"] if isinstance(message["content"], list) else [message]
    for part in reversed(parts):
        key = "content" if part is message else "text"
        if isinstance(part.get(key), str) and (changed := _double_letter(part[key], place)) is not None:
            part[key] = changed
            return answer
    return None


def _double_letter(text: str, place: float) -> str | None:
    """`text` with one of its letters or digits doubled; without any, one of its other characters but for spaces."""
    letters = [index for index, character in enumerate(text) if character.isalnum()]
    letters = letters or [index for index, character in enumerate(text) if not character.isspace()]
    if not letters:
        return None
    index = letters[int(place * len(letters))]
    return text[: index + 1] + text[index:]


def common_feature(features: Features, one: str, other: str) -> Any:
    """The type that can hold the values of both columns: their messages may have different keys.

    Raises:
        ValueError: there is none.
    """
    if features[one] == features[other]:
        return features[one]
    schemas = [Features({"answer": features[column]}).arrow_schema.remove_metadata() for column in (one, other)]
    try:
        return Features.from_arrow_schema(pa.unify_schemas(schemas, promote_options="permissive"))["answer"]
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(
            f"{one!r} is {features[one]} and {other!r} is {features[other]}: values cannot move between them. Give "
            "both columns one type."
        ) from error
