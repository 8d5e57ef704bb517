"""The command `trl-capo`: argument parsing and nothing else.

Each command's arguments are checked here; those that belong to `accelerate launch` are handed to it, and it starts the
command's module, as `trl dpo` does. A command that needs no accelerator runs in this process.
"""

import argparse
import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import NoReturn

from trl_capo.plain import print_error

LAUNCHED = {
    "train": "train with CAPO; takes the arguments and YAML files of `trl dpo`",
    "evaluate": "measure finished models on preference pairs, per language",
}
DIRECT = {
    "noise": "write a data set with noise of a known kind and amount in its preference pairs",
    "clean": "write a data set without the pairs, or with the labels, that were found to be wrong",
    "study": "compare methods under noise: a grid of runs, a table, a report and plots",
    "audit": "rank the pairs of a training by how likely their labels are wrong",
    "env": "print versions and devices, for reports of bugs",
}
HOMES = {
    "noise": "noise_command",
    "clean": "clean_command",
    "study": "study.command",
    "audit": "audit.command",
    "env": "env_command",
}


class _Parser(argparse.ArgumentParser):
    """As `trl_capo.arguments.Parser`, without TRL."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 done, 2 a mistake in what was asked, else the started command's own.

    A training that SIGTERM stopped, and that saved a checkpoint, ends with 143.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(
        prog="trl-capo", description="Confidence-aware preference optimization (CAPO) for TRL.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, purpose in (LAUNCHED | DIRECT).items():
        commands.add_parser(name, help=purpose, add_help=False)
    try:
        command = parser.parse_known_args(argv)[0].command
    except ValueError as error:
        print_error("trl-capo", error)
        return 2
    arguments = argv[argv.index(command) + 1 :]
    if command in DIRECT:
        return import_module(f"trl_capo.{HOMES[command]}").main(arguments)
    return _launch(command, arguments)


def _launch(command: str, arguments: list[str]) -> int:
    """Check the arguments, then run the command's module through `accelerate launch`."""
    import torch
    from accelerate.commands.launch import launch_command
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from trl.cli.accelerate_config import resolve_accelerate_config_argument

    from trl_capo.arguments import launch_options, launch_parser, parse, refuse_unknown, without
    from trl_capo.launch import read_launch, single_process_warnings

    if command == "train":
        from trl_capo import dry_run

        if dry_run.asked_for(arguments):
            return dry_run.main(arguments)
    parser = import_module(f"trl_capo.{command}").make_parser()
    try:
        _, from_yaml, from_argv = parse(arguments, parser)
        refuse_unknown(from_yaml + from_argv, parser, launch_options())
        launch_arguments = resolve_accelerate_config_argument(from_yaml + from_argv)
        processes = read_launch(from_yaml + from_argv, gpu=torch.accelerator.is_available())
        if processes.count == 1 and not launch_arguments:
            _prepare_single_cpu_process()
        for warning in single_process_warnings(processes):
            print(f"trl-capo {command}: warning: {warning}", file=sys.stderr)
        words = [*launch_arguments, "--module", f"trl_capo.{command}", *without(arguments, from_argv)]
        with _passing_on_sigterm():
            launch_command(launch_parser().parse_args(words))
    except subprocess.CalledProcessError as error:  # the command has said what was wrong
        return _exit_code(error.returncode)
    except ChildFailedError as error:
        return _exit_code(error.get_first_failure()[1].exitcode)
    except (ValueError, OSError, ImportError) as error:  # ImportError: of a launcher that is not installed
        print_error(f"trl-capo {command}", error)
        return 2
    return 0


@contextlib.contextmanager
def _passing_on_sigterm() -> Iterator[None]:
    """Within it, SIGTERM goes to the started processes, which save a checkpoint, and this one waits for them.

    By themselves, `accelerate` would end and leave its one process alone, and torchrun would kill its own after 30 s.
    """
    import psutil

    def pass_on(signum: int, frame: object) -> None:
        started = psutil.Process().children()
        for process in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signum)
        if not started:
            sys.exit(_exit_code(-signum))

    os.environ.setdefault("PET_SIGNALS_TO_HANDLE", "SIGINT,SIGHUP,SIGQUIT")  # torchrun's: all but SIGTERM
    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _exit_code(status: int) -> int:
    """A process's exit code as shells count it: 128 more than the signal that ended it."""
    return 128 - status if status < 0 else status


def _prepare_single_cpu_process() -> None:
    """Without a GPU, give the one process all cores: `accelerate` gives it one thread.

    It would also warn that it chose defaults, where there is nothing to choose.
    """
    import psutil
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("OMP_NUM_THREADS", str(psutil.cpu_count(logical=False) or 1))
        logging.getLogger("accelerate.commands.launch").setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())
