"""What a study's data and model hold, so that a folder has runs of the same pairs and the same weights only.

A path says nothing of what is in it. Where the files behind it change, runs would be compared that cannot be, and what
was remembered of the old model would be taken for the new one's.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from datasets import Dataset

from trl_capo.paths import find_path
from trl_capo.study.files import read_json, write_json

INPUTS = "inputs.json"
MODEL_FILES = (".json", ".safetensors", ".bin", ".jinja", ".model", ".txt")
WHOLE, SAMPLES, SAMPLE = 2**24, 64, 2**16
"""Files up to WHOLE bytes are read whole, of larger ones SAMPLES pieces of SAMPLE bytes: a training changes all."""


def describe_inputs(parts: Mapping[str, Dataset], model: str) -> dict[str, str]:
    """A hash of the rows of every part, by its name, and of the model's files; of a model on the hub, none."""
    found = {f"the {name} pairs": _rows_hash(part) for name, part in parts.items()}
    folder = find_path(model)
    return found if folder is None else found | {"the model's files": _files_hash(folder)}


def settle_inputs(folder: Path, found: dict[str, str]) -> None:
    """Write down what a study's folder is made with; without runs, nothing is remembered of what was there before.

    Raises:
        ValueError: it has runs that were made with something else.
    """
    if any(folder.glob("runs/*/result.json")):
        refuse_other_inputs(folder, found)
    else:
        for path in folder.glob("memory/*"):
            path.unlink()
    write_json(folder / INPUTS, found)


def refuse_other_inputs(folder: Path, found: Mapping[str, str]) -> None:
    """Raise ValueError if the study in the folder is known to be made with other inputs."""
    known = read_json(folder / INPUTS) if (folder / INPUTS).is_file() else found  # a folder of an earlier version
    changed = [name for name, value in found.items() if known.get(name) != value]
    if changed:
        raise ValueError(
            f"output_dir={str(folder)!r} is of a study whose files have changed since it began: {', '.join(changed)}. "
            "Choose another output_dir, or delete its folder `runs`."
        )


def _rows_hash(rows: Dataset) -> str:
    found = hashlib.sha256()
    for table in rows.with_format("arrow").iter(1000):  # images stay the bytes that they are
        for row in table.to_pylist():
            found.update(json.dumps(row, sort_keys=True, default=repr).encode() + b"\n")
    return found.hexdigest()


def _files_hash(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in MODEL_FILES and path.is_file()):
        size = path.stat().st_size
        found.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            if size <= WHOLE:
                found.update(file.read())
                continue
            for index in range(SAMPLES):
                file.seek(index * (size - SAMPLE) // (SAMPLES - 1))
                found.update(file.read(SAMPLE))
    return found.hexdigest()
