"""The command `trl-capo env`: what TRL's own `env` prints, for reports of bugs, with trl-capo's version."""

import argparse
import contextlib
import io
import sys
from collections.abc import Sequence

from trl.scripts.env import print_env
from trl.scripts.utils import get_git_commit_hash

from trl_capo import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="trl-capo env", description="Print versions and devices.")
    parser.parse_args(argv)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        print_env()
    commit = get_git_commit_hash("trl_capo")
    ours = f"- trl-capo version: {__version__}" + (f"+{commit[:7]}" if commit else "")
    print(printed.getvalue().rstrip() + f"\n{ours}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
