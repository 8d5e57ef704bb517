"""Options of which some cannot be used, read without these: so that a dry run sees whatever else is wrong.

Parsers, TRL's trainer and the options' own checks stop at the first mistake, and say of which option it is in words
that only people read. So each option is left out in turn until that mistake is gone; then come the others.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

import torch

from trl_capo.arguments import Parser, parse_read, read_options
from trl_capo.config import CAPOConfig, config_problems


class UncheckedConfig(CAPOConfig):
    """CAPOConfig whose own check comes later, all at once: `mend`."""

    def _capo_check(self) -> None:
        pass


OF_GPU = {"tf32"}
"""Options that are refused where no GPU is, and that no other machine can judge."""


@dataclass
class Usable:
    """What could be read.

    Args:
        parsed: an object per dataclass of the parser; None if nothing could be read.
        from_yaml, from_argv: the words that the parser does not know.
        problems: why options were left out.
        left_out: their names.
        elsewhere: why the options need another machine than this, which has no GPU; empty if they do not.
    """

    parsed: tuple | None = None
    from_yaml: list[str] = field(default_factory=list)
    from_argv: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    left_out: set[str] = field(default_factory=set)
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
        without = next(_attempts_without_one(config, words, make_parser, problem), None)
        if usable.elsewhere and without is not None and without[0] in OF_GPU:
            _, config, words = without
            continue
        several = all(re.match(r"\w+=", line) for line in problem.splitlines())  # each of an option of its own
        told = problem.splitlines() if several else [problem]
        usable.problems += [line for line in told if line not in usable.problems]
        if without is None:
            return usable
        name, config, words = without
        usable.left_out.add(name)


def leave_out(options: Mapping[str, Any], use: Callable[[dict[str, Any]], Any]) -> tuple[Any, list[str]]:
    """What using the options gives, without those that cannot be used, and why these cannot.

    Args:
        options: by their names.
        use: raises ValueError or OSError at the first mistake, and says the same of the same mistake.

    Returns:
        None instead of what it gives, if there is a mistake of no one option.
    """
    options, problems = dict(options), []
    result, problem = _use(options, use)
    while problem:
        problems.append(problem)
        fewer = ({key: options[key] for key in options if key != name} for name in _named_first(options, problem))
        attempts = ((rest, *_use(rest, use)) for rest in fewer)
        solved = next((attempt for attempt in attempts if attempt[2] != problem), None)
        if solved is None:
            return None, problems
        options, result, problem = solved
    return result, problems


def _use(options: dict[str, Any], use: Callable[[dict[str, Any]], Any]) -> tuple[Any, str]:
    try:
        return use(options), ""
    except (ValueError, OSError) as error:
        return None, str(error) or type(error).__name__


def _named_first(options: Iterable[str], problem: str) -> list[str]:
    return sorted(options, key=lambda name: name not in problem)


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
    return _use(config, lambda config: parse_read(deepcopy(config), words, make_parser()))  # TRL changes mixtures


def _solves(config: dict[str, Any], words: list[str], make_parser: Callable[[], Parser], problem: str) -> bool:
    return _attempt(config, words, make_parser)[1] != problem


def _attempts_without_one(
    config: dict[str, Any], words: list[str], make_parser: Callable[[], Parser], problem: str
) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
    """The options without one, and its name, where that makes the problem go away; first those that it names."""
    groups = by_option(words)
    for name in _named_first(dict.fromkeys([*config, *groups]), problem):
        fewer = {key: value for key, value in config.items() if key != name}
        rest = [word for option, group in groups.items() if option != name for word in group]
        if _solves(fewer, rest, make_parser, problem):
            yield name, fewer, rest


def by_option(words: Sequence[str]) -> dict[str, list[str]]:
    """The words of a command line, each option with its values, by its name."""
    groups: dict[str, list[str]] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name = word.lstrip("-").split("=", 1)[0]
        groups.setdefault(name, []).append(word)
    return groups
