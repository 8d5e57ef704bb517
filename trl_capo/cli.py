"""`trl-capo`: find the command's module, and start `train` and `evaluate` through `accelerate launch`."""

import argparse
import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module

import psutil

from trl_capo.common.command import parse_with_rest, run

LAUNCHED = {
    "train": "train with CAPO; takes the arguments and YAML files of `trl dpo`",
    "evaluate": "measure finished models on preference pairs, by language",
}
COMMANDS = LAUNCHED | {
    "noise": "inject noise of a known kind and amount into preference pairs",
    "clean": "remove or repair the pairs whose labels were found to be wrong",
    "annotate": "judge every label by the hidden states of a model, before training",
    "audit": "rank pairs by how likely their labels are wrong, before or after training",
    "study": "compare methods under noise: a grid of runs, a table, a report and plots",
}
MODULES = {"noise": "trl_capo.data.noise", "clean": "trl_capo.data.clean", "annotate": "trl_capo.scoring.annotate"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code: 0 for success, 2 for a mistake in the arguments or data."""
    parser = argparse.ArgumentParser("trl-capo", description="Confidence-aware preference optimization (CAPO).")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, purpose in COMMANDS.items():
        subparsers.add_parser(name, help=purpose, add_help=False)
    parsed, arguments = parser.parse_known_args(argv)
    if parsed.command == "train" and {"--dry_run", "--dry-run"} & set(arguments):
        return import_module("trl_capo.train.dry_run").main(arguments)
    return run(f"trl-capo {parsed.command}", _start, parsed.command, arguments)


def _start(command: str, arguments: list[str]) -> int:
    """Run a command, `train` and `evaluate` through `accelerate launch`, with all of their arguments."""
    module = import_module(MODULES.get(command, f"trl_capo.{command}.command"))
    if command not in LAUNCHED:
        return module.main(arguments)
    import torch  # here, so that `trl-capo --help` does not import it
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from trl.cli.accelerate_config import resolve_accelerate_config_argument

    _, launch_options = parse_with_rest(arguments, module.ARGUMENT_TYPES, module.PROG, module.USAGE)
    options = resolve_accelerate_config_argument(launch_options)
    if not options and not torch.cuda.is_available():  # else accelerate warns, and gives the process one core
        os.environ.setdefault("OMP_NUM_THREADS", str(psutil.cpu_count(logical=False) or 1))
        logging.getLogger("accelerate.commands.launch").setLevel(logging.ERROR)
    signal.signal(signal.SIGTERM, _forward)
    os.environ.setdefault("PET_SIGNALS_TO_HANDLE", "SIGINT,SIGHUP,SIGQUIT")  # torchrun would kill 30 s after SIGTERM
    status = 0
    try:
        launch_command(launch_command_parser().parse_args([*options, "--module", module.__name__, *arguments]))
    except subprocess.CalledProcessError as error:  # the process has printed its error
        status = error.returncode
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
    return 128 - status if status < 0 else status  # as shells report signals


def _forward(signum: int, frame: object) -> None:
    """Pass a signal on to the launched processes, which save a checkpoint while this one waits for them."""
    started = psutil.Process().children()
    for process in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signum)
    if not started:
        sys.exit(128 + signum)


if __name__ == "__main__":
    sys.exit(main())
