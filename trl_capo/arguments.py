"""Command lines and YAML files, read as TRL reads them; what is wrong with them, in one sentence."""

import argparse
import difflib
from collections.abc import Sequence, Set

import yaml
from accelerate.commands.launch import launch_command_parser
from trl import TrlParser


def parse(argv: Sequence[str], parser: TrlParser) -> tuple[tuple, list[str], list[str]]:
    """Parse arguments and their `--config` YAML file, whose values the arguments override.

    Returns:
        One object per dataclass of the parser, and the words that it does not know: from the YAML, and from `argv`.

    Raises:
        ValueError: the YAML file or a value cannot be used; the message is for the user.
        OSError: the YAML file cannot be read.
    """
    argv = [part for word in argv for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    if argv.count("--config") > 1 or argv[-1:] == ["--config"]:
        raise ValueError("--config takes the path of one YAML file")
    try:
        *parsed, from_yaml, from_argv = parser.parse_args_and_config(
            argv, return_remaining_strings=True, separate_remaining_strings=True
        )
    except yaml.YAMLError as error:
        raise ValueError(f"the config file is not valid YAML: {error}") from error
    return tuple(parsed), from_yaml, from_argv


def parse_alone(argv: Sequence[str], parser: TrlParser) -> tuple:
    """Parse for a process that `accelerate launch` has started: its options may stand in the YAML file only.

    Raises:
        ValueError, OSError: as `parse`, and for what nobody knows.
    """
    parsed, from_yaml, from_argv = parse(argv, parser)
    refuse_unknown(from_argv, parser)
    refuse_unknown(from_yaml, parser, launch_options())
    return parsed


def launch_options() -> set[str]:
    """The options of `accelerate launch`, and TRL's name for a set of them."""
    return _options(launch_command_parser()) | {"--accelerate_config"}


def refuse_unknown(words: Sequence[str], parser: TrlParser, others: Set[str] = frozenset()) -> None:
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
