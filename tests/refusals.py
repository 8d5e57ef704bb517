"""Runs the commands in this process and asserts what every refusal is like."""

import os
from pathlib import Path

import yaml

from trl_capo import evaluate, noise_command, train
from trl_capo.study import command as study_command

MAINS = {"train": train.main, "evaluate": evaluate.main, "noise": noise_command.main, "study": study_command.main}
LINES, CHARACTERS = 20, 3_000


def write_yaml(folder: Path, options: dict) -> list[str]:
    (folder / "options.yaml").write_text(yaml.dump(options))
    return ["--config", str(folder / "options.yaml")]


def left_in(folder: Path) -> list[tuple[str, int]]:
    """Everything below the folder, with the times of its last change."""
    return sorted((str(path), path.lstat().st_mtime_ns) for path in folder.rglob("*"))


def refusal(command: str, arguments: list[str], folder: Path, capfd, before_loading: bool = True) -> str:
    """The error of a command, which must be the only one, safe and short, and leave the folder as it was."""
    before, workplace = left_in(folder), sorted(os.listdir())
    capfd.readouterr()
    code = MAINS[command](arguments)
    output, errors = capfd.readouterr()
    assert code in (1, 2), f"exit code {code}"
    assert "Traceback" not in output + errors
    assert not (before_loading and "Loading weights" in errors)
    program = f"trl-capo {command}: error: "
    assert errors.count(program) == 1, errors[:2000]
    message = errors[errors.index(program) :].rstrip("\n")
    assert message.count("\n") < LINES, message
    assert len(message) <= CHARACTERS, message[:CHARACTERS]
    assert all(letter.isprintable() or letter == "\n" for letter in message), ascii(message)
    assert len(message) > len(program)
    assert left_in(folder) == before
    assert sorted(os.listdir()) == workplace
    return message
