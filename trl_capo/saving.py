"""Data sets written into a new folder, which appears whole or not at all."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from datasets import DatasetDict

from trl_capo.paths import output_folder


def new_folder(name: str) -> Path:
    """The folder to write a data set into; nothing is made.

    Raises:
        ValueError: it is there and not empty, or it could not be written into.
    """
    folder = output_folder(name).resolve()
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(f"output_dir={name!r} is there already. Choose another folder, or remove it.")
    return folder


def write_data_set(splits: DatasetDict, files: Mapping[str, str], output: Path) -> None:
    """Write the splits, and text files beside them, into a folder beside the output, and give it that name at last."""
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        splits.save_to_disk(unfinished)
        for name, text in files.items():
            (unfinished / name).write_text(text, encoding="utf-8")
        os.replace(unfinished, output)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
