"""YAML files of options, read strictly: what YAML takes in silence, and nobody means, is an error with its line."""

import re
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import yaml

_LEVELS, _VALUES = 20, 100_000


class _Loader(yaml.SafeLoader):
    """Reads 1e-4 as a number, which YAML 1.1 takes for text for want of a point; refuses a key that comes twice."""

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict:
        seen = set()
        keys = [key for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        for key_node in (key for key in keys if key.tag != "tag:yaml.org,2002:merge"):
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):  # what is not is refused below, with its line
                if key in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key!r} comes twice", key_node.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_yaml(path: str) -> dict[str, Any]:
    """The options in a YAML file.

    Raises:
        ValueError, OSError: it cannot be read, or is no mapping from names to values; the message is for the user.
    """
    told = f"config={path!r}"
    try:
        content = yaml.load(Path(path).read_bytes(), _Loader)
        _refuse_multiplied(content)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{told}: there is no such file.") from error
    except OSError as error:
        raise OSError(f"{told} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{told} is not valid YAML: {_reason(error)}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{told}: it must be a mapping of options, not {_kind(content)}.")
    names = [key for key in content if not isinstance(key, str)]
    if names:
        raise ValueError(f"{told}: options have names, and {', '.join(map(repr, names))} is none.")
    return content


def _kind(content: Any) -> str:
    return "nothing" if content is None else f"a {type(content).__name__}"


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return str(error).splitlines()[0]


def _refuse_multiplied(content: Any) -> None:
    """Refuse what anchors make endless or huge: a few lines can stand for more values than there are atoms."""
    for number, level in enumerate(_levels(content, 0)):
        if level > _LEVELS or number > _VALUES:
            raise ValueError(
                f"it is nested more than {_LEVELS} levels deep, or has more than {_VALUES:,} values once its anchors "
                "are put in"
            )


def _levels(value: Any, level: int) -> Iterator[int]:
    """The level of every value in it, one at a time."""
    yield level
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in inner:
        yield from _levels(part, level + 1)
