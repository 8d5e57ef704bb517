"""Options of which some cannot be used, read without these: so that a dry run sees whatever else is wrong.

Parsers and the options' own checks stop at the first mistake, and say of which option it is in words that only people
read. So each option is left out in turn until that mistake is gone; then come the others.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

import torch

from trl_capo.arguments import Parser, parse_read, read_options
from trl_capo.config import CAPOConfig, config_problems


class UncheckedConfig(CAPOConfig):
    """CAPOConfig whose own check comes later, all at once: `mend`."""

    def _capo_check(self) -> None:
        pass


@dataclass
class Usable:
    """What could be read.

    Args:
        parsed: an object per dataclass of the parser; None if nothing could be read.
        from_yaml, from_argv: the words that the parser does not know.
        problems: why options were left out.
        elsewhere: why the options need another machine than this, which has no GPU; empty if they do not.
    """

    parsed: tuple | None = None
    from_yaml: list[str] = field(default_factory=list)
    from_argv: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    elsewhere: str = ""


def parse_usable(argv: Sequence[str], make_parser: Callable[[], Parser]) -> Usable:
    """Parse arguments and their YAML file, without those that cannot be used. Every attempt takes a new parser."""
    usable = Usable()
    try:
        config, words = read_options(argv)
    except (ValueError, OSError) as error:
        usable.problems.append(str(error))
        return usable
    while True:
        parsed, problem = _attempt(config, words, make_parser)
        if parsed is not None:
            usable.parsed, usable.from_yaml, usable.from_argv = parsed
            return usable
        on_cpu = [*words, "--use_cpu", "true"]
        gpu = usable.elsewhere or torch.cuda.is_available() or "--use_cpu" in problem  # as `--use_cpu perhaps`
        if not gpu and _solves(config, on_cpu, make_parser, problem):
            usable.elsewhere, words = problem, on_cpu
            continue
        several = all(re.match(r"\w+=", line) for line in problem.splitlines())  # each of an option of its own
        told = problem.splitlines() if several else [problem]
        usable.problems += [line for line in told if line not in usable.problems]
        without = next(_attempts_without_one(config, words, make_parser, problem), None)
        if without is None:
            return usable
        config, words = without


def mend(args: CAPOConfig) -> list[str]:
    """The problems of CAPOConfig's own check; options that have one are set to their defaults."""
    defaults = {option.name: option for option in fields(args)}
    problems = config_problems(args)
    for problem in problems:
        option = defaults[problem.split("=", 1)[0]]
        factory = option.default_factory
        setattr(args, option.name, option.default if factory is MISSING else factory())
    return problems


def _attempt(config: dict[str, Any], words: list[str], make_parser: Callable[[], Parser]) -> tuple[tuple | None, str]:
    """What parsing gives, or why it fails."""
    try:
        return parse_read(config, words, make_parser()), ""
    except (ValueError, OSError) as error:
        return None, str(error) or type(error).__name__


def _solves(config: dict[str, Any], words: list[str], make_parser: Callable[[], Parser], problem: str) -> bool:
    return _attempt(config, words, make_parser)[1] != problem


def _attempts_without_one(
    config: dict[str, Any], words: list[str], make_parser: Callable[[], Parser], problem: str
) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """The options without one, where that makes the problem go away; first those that it names."""
    groups = _grouped(words)
    names = dict.fromkeys([*config, *(group[0].lstrip("-").split("=", 1)[0] for group in groups)])
    for name in sorted(names, key=lambda name: name not in problem):
        fewer = {key: value for key, value in config.items() if key != name}
        kept = [group for group in groups if group[0].lstrip("-").split("=", 1)[0] != name]
        rest = [word for group in kept for word in group]
        if _solves(fewer, rest, make_parser, problem):
            yield fewer, rest


def _grouped(words: list[str]) -> list[list[str]]:
    """The words of a command line, each option with its values."""
    groups: list[list[str]] = []
    for word in words:
        if word.startswith("--") or not groups:
            groups.append([])
        groups[-1].append(word)
    return groups
