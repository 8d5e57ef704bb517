"""The command `trl-capo`: argument parsing and nothing else.

`trl-capo train` checks its arguments here, hands those that belong to `accelerate launch` to it, and starts
`trl_capo.train` through it, as `trl dpo` does.
"""

import argparse
import difflib
import subprocess
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 done, 2 a mistake in what was asked, else the training's own."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="trl-capo", description="Confidence-aware preference optimization (CAPO) for TRL.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser("train", help="train with CAPO; takes the arguments and YAML files of `trl dpo`", add_help=False)
    name = parser.parse_known_args(argv)[0].command
    arguments = argv[argv.index(name) + 1 :]
    return {"train": _train}[name](arguments)


def _train(arguments: list[str]) -> int:
    from trl.cli.accelerate_config import resolve_accelerate_config_argument

    from trl_capo.train import parse

    try:
        _, from_yaml, from_argv = parse(arguments)
        launch_arguments = resolve_accelerate_config_argument(from_yaml + from_argv)
        _refuse_unknown(launch_arguments)
    except (ValueError, OSError) as error:
        print(f"trl-capo train: error: {error}", file=sys.stderr)
        return 2
    return _launch([*launch_arguments, "--module", "trl_capo.train", *_without(arguments, from_argv)])


def _refuse_unknown(launch_arguments: list[str]) -> None:
    """Refuse what is an option neither of the training nor of `accelerate launch`."""
    from accelerate.commands.launch import launch_command_parser

    from trl_capo.train import make_parser

    accelerate_options = _options(launch_command_parser())
    given = [word.split("=", 1)[0] for word in launch_arguments if word.startswith("--")]
    unknown = [option for option in given if option not in accelerate_options]
    if unknown:
        known = _options(make_parser()) | accelerate_options
        close = [match for option in unknown for match in difflib.get_close_matches(option, known, n=1)]
        hint = f" Did you mean {', '.join(close)}?" if close else ""
        raise ValueError(
            f"unknown option {', '.join(unknown)}: it belongs neither to the training nor to `accelerate launch`.{hint}"
        )


def _options(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}


def _without(words: list[str], removed: list[str]) -> list[str]:
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


def _launch(arguments: list[str]) -> int:
    from accelerate.commands.launch import launch_command, launch_command_parser

    try:
        launch_command(launch_command_parser().parse_args(arguments))
    except subprocess.CalledProcessError as error:  # the training has said what was wrong
        return error.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
