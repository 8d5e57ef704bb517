"""Command lines and YAML files, read as TRL reads them; what is wrong with them, in one sentence each."""

import argparse
import difflib
import json
import os
import warnings
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from enum import Enum
from functools import partial
from importlib.metadata import PackageNotFoundError
from inspect import isclass
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from accelerate.commands.launch import launch_command_parser
from trl import TrlParser

from trl_capo.value_types import fits, type_problems
from trl_capo.yaml_files import read_yaml


def _raise(message: str) -> NoReturn:
    raise ValueError(message)


class Parser(TrlParser):
    """TRL's parser, which raises ValueError where it would print its usage and exit, and names the option at fault.

    Options that are one of several names, or JSON, are looked at as they are read: their own checks come later and do
    not say which option they are of.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.hints = {name: hint for kind in self.dataclass_types for name, hint in get_type_hints(kind).items()}
        for action in self._actions:
            kinds = get_args(self.hints.get(action.dest))
            enumeration = next((kind for kind in kinds if isclass(kind) and issubclass(kind, Enum)), None)
            if enumeration is not None and str in kinds:
                action.type = partial(_one_of, enumeration)
            elif str in kinds and any(dict in (kind, get_origin(kind)) for kind in kinds):
                action.type = _text_or_json

    def error(self, message: str) -> NoReturn:
        _raise(message)


def _one_of(enumeration: type[Enum], text: str) -> str:
    try:
        return enumeration(text).value
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _text_or_json(text: str) -> str:
    if text.startswith("{"):
        try:
            json.loads(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not valid JSON: {error}") from error
    return text


def parse(argv: Sequence[str], parser: Parser) -> tuple[tuple, list[str], list[str]]:
    """Parse arguments and their `--config` YAML file, whose values the arguments override.

    Its section `env` is set as environment variables.

    Returns:
        One object per dataclass of the parser, and the words that it does not know: from the YAML, and from `argv`.

    Raises:
        ValueError: the YAML file or a value cannot be used; the message is for the user.
        OSError: the YAML file cannot be read.
    """
    return parse_read(*read_options(argv), parser)


def read_options(argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The values of the `--config` YAML file, and the other arguments; errors as of `parse`."""
    argv = [part for word in argv for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    if argv.count("--config") > 1 or argv[-1:] == ["--config"]:
        raise ValueError("--config takes the path of one YAML file")
    if "--config" not in argv:
        return {}, argv
    place = argv.index("--config")
    return read_yaml(argv[place + 1]), argv[:place] + argv[place + 2 :]


def parse_read(config: dict[str, Any], argv: Sequence[str], parser: Parser) -> tuple[tuple, list[str], list[str]]:
    """As `parse`, of what `read_options` returns."""
    from_yaml = []
    if config:
        config = dict(config)
        _set_environment(config.pop("env", {}))
        from_yaml = parser.set_defaults_with_config(**_typed(config, parser))
    try:
        with without_renaming():
            *parsed, from_argv = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    except (ValueError, OSError):
        raise
    except PackageNotFoundError as error:  # its own words are of metadata
        raise ValueError(f"the options need a package that is not installed. {error.name}") from error
    except Exception as error:  # of the options' own checks: of TRL's, Transformers' or Accelerate's
        raise ValueError(f"the options cannot be used: {type(error).__name__}: {error}") from error
    return tuple(parsed), from_yaml, from_argv


@contextmanager
def without_renaming() -> Iterator[None]:
    """Without the warning of `gradient_checkpointing`, which TRL sets and Transformers has renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`gradient_checkpointing", FutureWarning)
        yield


def _set_environment(variables: Any) -> None:
    try:
        os.environ.update({name: str(value) for name, value in variables.items()})
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"env={variables!r}: it must map names of environment variables to values.") from error


_SPOKEN = ("", [""], 0, 0.5, True)
"""Examples of what text can stand for, on a command line and in YAML."""


def _typed(config: dict[str, Any], parser: Parser) -> dict[str, Any]:
    """The values of a YAML file as the parser's dataclasses declare them; all that are of another type in one error.

    Text is left to the parser, as on a command line; a number, `true` or `false` where text is meant becomes text.
    """
    numbers = [
        name
        for name, value in config.items()
        if isinstance(value, int | float) and name in parser.hints
        if not fits(value, parser.hints[name]) and fits("", parser.hints[name])
    ]
    config = config | {name: str(config[name]) for name in numbers}
    readable = [name for name, hint in parser.hints.items() if any(fits(value, hint) for value in _SPOKEN)]
    left = {name: value for name, value in config.items() if not (isinstance(value, str) and name in readable)}
    problems = type_problems(left, parser.hints)
    if problems:
        raise ValueError("\n".join(problems))
    return config


def parse_alone(argv: Sequence[str], parser: Parser) -> tuple:
    """Parse for a process that `accelerate launch` has started: its options may stand in the YAML file only.

    Raises:
        ValueError, OSError: as `parse`, and for what nobody knows.
    """
    parsed, from_yaml, from_argv = parse(argv, parser)
    refuse_unknown(from_argv, parser)
    refuse_unknown(from_yaml, parser, launch_options())
    return parsed


def launch_parser() -> argparse.ArgumentParser:
    """The parser of `accelerate launch`, which raises ValueError as ours does."""
    parser = launch_command_parser()
    parser.error = _raise
    return parser


def launch_options() -> set[str]:
    """The options of `accelerate launch`, and TRL's name for a set of them."""
    return _options(launch_command_parser()) | {"--accelerate_config"}


def refuse_unknown(words: Sequence[str], parser: Parser, others: Set[str] = frozenset()) -> None:
    """Refuse the options that the parser left over, but for `others`."""
    given = [word.split("=", 1)[0] for word in words if word.startswith("--")]
    unknown = [option for option in given if option not in others]
    if unknown or (words and not given):
        close = [
            m for option in unknown for m in difflib.get_close_matches(option, _options(parser) | others, 1, 0.75)
        ]
        hint = f" Did you mean {', '.join(close)}?" if close else ""
        raise ValueError(f"unknown option {', '.join(unknown or words)}: {parser.prog} does not have it.{hint}")


def without(words: Sequence[str], removed: Sequence[str]) -> list[str]:
    """`words` less `removed`, which is a subsequence of them."""
    left = iter(removed)
    following = next(left, None)
    kept = []
    for word in words:
        if word == following:
            following = next(left, None)
        else:
            kept.append(word)
    return kept


def _options(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}
