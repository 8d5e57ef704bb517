"""Whether a value read from a file is of the type that a dataclass declares for it, and both in words."""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from enum import Enum
from inspect import isclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

_WORDS = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    dict: "a mapping",
    list: "a list",
}


def fits(value: Any, hint: Any) -> bool:
    """Whether the value is of the type; a whole number is a number, and an enumeration is given as text."""
    if hint is Any:
        return True
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin is list:
        return isinstance(value, list) and all(fits(entry, parts[0]) for entry in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(entry, parts[1]) for entry in value.values())
    if is_dataclass(hint):
        return isinstance(value, Mapping)
    return isinstance(value, str if isclass(hint) and issubclass(hint, Enum) else hint)


def type_problems(values: Mapping[str, Any], hints: Mapping[str, Any]) -> list[str]:
    """A sentence for every value that is not of its type, and for every wrong key of a list's mappings."""
    problems = []
    for name, hint in ((name, hints[name]) for name in values if name in hints):
        value = values[name]
        if not fits(value, hint):
            problems.append(f"{name}={value!r}: give {_in_words(hint)}.{_hint(value)}")
        elif get_origin(hint) is list and is_dataclass(kind := get_args(hint)[0]):
            for index, entry in enumerate(value):
                problems += [f"{name}[{index}]: {problem}" for problem in _key_problems(entry, kind)]
    return problems


def _key_problems(entry: Mapping[Any, Any], kind: type) -> list[str]:
    """What keys an entry lacks, or has too many, to be of the dataclass."""
    names = [field.name for field in fields(kind)]
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    problems = [f"it has no {name!r}." for name in needed if name not in entry]
    for key in entry:
        if key not in names:
            close = get_close_matches(str(key), names, 1)
            hint = f"Did you mean {close[0]!r}?" if close else f"There are {', '.join(names)}."
            problems.append(f"unknown key {key!r}. {hint}")
    return problems


def _in_words(hint: Any) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_in_words(part) for part in parts if part is not NoneType))
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin is list:
        return f"a list, each entry {_in_words(parts[0])}"
    if is_dataclass(hint) or origin is dict:
        return "a mapping"
    return "text" if issubclass(hint, Enum) else _WORDS[hint]


def _hint(value: Any) -> str:
    if isinstance(value, bool):
        return " YAML reads a bare no, yes, on or off as true or false: put it in quotes."
    return " It is empty: leave it out, or give a value." if value is None else ""
