"""Parse options and YAML files as TRL does, and report mistakes of the user in one message with exit code 2.

Heavy imports are inside the functions, so that `trl-capo --help` does not import torch.
"""

import difflib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

from trl_capo.common.text import escape


def parse(argv: Sequence[str], types: tuple[type, ...], prog: str, usage: str | None = None) -> tuple[Any, ...]:
    """Parse options, and those of the YAML file that `--config` names, into one instance per dataclass.

    Options override the file, whose section `env` sets environment variables. Mistakes are ValueErrors or OSErrors.
    """
    parsed, launch_options = parse_with_rest(argv, types, prog, usage)
    if launch_options:
        raise ValueError(f"{prog} has no option {launch_options[0]}.")
    return parsed


def parse_with_rest(argv: Sequence[str], types: tuple, prog: str, usage: str | None = None) -> tuple[tuple, list]:
    """Parse as `parse` does; also return the options of `accelerate launch`, and TRL's for it, YAML file first."""
    import yaml
    from accelerate.commands.launch import launch_command_parser
    from trl import TrlParser

    class Parser(TrlParser):
        def error(self, message: str) -> None:
            raise ValueError(message)

    parser = Parser(types, prog=prog, usage=usage)
    words = [part for word in argv for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    try:
        *parsed, rest = parser.parse_args_and_config(words, return_remaining_strings=True)
    except yaml.YAMLError as error:
        raise ValueError(f"the file of --config is not valid YAML: {error}") from error
    if rest:
        launch_options = launch_command_parser()._option_string_actions
        known = {"--accelerate_config", *parser._option_string_actions, *launch_options}
        options = [word.split("=", 1)[0] for word in rest if word.startswith("--")] or rest
        if unknown := [option for option in options if option not in known]:
            close = [match for option in unknown for match in difflib.get_close_matches(option, known, 1, 0.75)]
            hint = f" Did you mean {', '.join(close)}?" if close else ""
            raise ValueError(f"{prog} has no option {', '.join(unknown)}.{hint}")
    return tuple(parsed), rest


def run(prog: str, function: Callable[..., int | None], *args: Any) -> int:
    """Call a function and return its exit code (None is 0); report a mistake of the user on stderr and return 2."""
    try:
        return function(*args) or 0
    except (ValueError, OSError, ImportError, NotImplementedError) as error:
        if os.environ.get("RANK", "0") == "0":  # every process makes the same mistake
            print(f"{prog}: error: {escape(str(error) or type(error).__name__)}", file=sys.stderr)
        return 2


def model_problem(name: str | None, error: Exception) -> str:
    """Say on one line why a model cannot be loaded; errors of the hub about missing folders do not mention folders."""
    path = str(name)
    if name is None or ((path.startswith((".", "/", "~")) or path.count("/") > 1) and not os.path.isdir(path)):
        return "there is no such folder, and no such model on the hub"
    if os.path.isfile(os.path.join(path, "adapter_config.json")):
        return "it is an adapter; merge it into its base (merge_and_unload), or pass a PeftModel to CAPOTrainer"
    return " ".join(str(error).split())


def processes() -> Any:
    """Return the PartialState of this group of processes, which on CPUs needs `cpu=True` to find the others."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())


def need(*packages: str) -> None:
    """Raise ValueError if a package of the extra `report` is not installed."""
    if missing := [package for package in packages if importlib.util.find_spec(package) is None]:
        raise ValueError(f"{' and '.join(missing)} not installed: run pip install 'trl-capo[report]'")


def versions() -> dict[str, str]:
    """Return the versions of the packages on which results depend."""
    return {name: version(name) for name in ("trl-capo", "trl", "transformers", "peft", "torch", "datasets")}
