"""Which checkpoint a training goes on from: the last whole one.

Transformers writes `trainer_state.json` last, so a checkpoint without a readable one was killed while it was written.
`capo_state.json` comes right before it, when all processes have written their files, and has the sizes of these: a
folder that was half deleted, or whose files are cut off, is known by them. Files of the right size are opened, and
their checksums computed, by the first process for all of them.
"""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import sort_checkpoints

from trl_capo.damaged_files import find_damage
from trl_capo.messages import get_logger
from trl_capo.paths import find_path

logger = get_logger(__name__)

CAPO_STATE_NAME = "capo_state.json"
PARTS = ("files", "loss", "last_logged", "metrics", "tokens", "pairs")
"""Of CAPO's own state."""


def choose_checkpoint(asked: str | bool | None, output_dir: str) -> str | None:
    """The checkpoint to resume from, or None to start from the beginning.

    Args:
        asked: as `resume_from_checkpoint`: a folder; True for the last whole checkpoint of `output_dir`, where there
            is one; False or None for none.
        output_dir: of the training.

    Raises:
        ValueError: the folder that is asked for is no whole checkpoint.
    """
    if not asked:
        return None
    if not torch.distributed.is_initialized():
        return _choose(asked, output_dir)
    chosen = [None, None]
    if torch.distributed.get_rank() == 0:
        try:
            chosen = [_choose(asked, output_dir), None]
        except ValueError as error:
            chosen = [None, str(error)]
    torch.distributed.broadcast_object_list(chosen)
    if chosen[1] is not None:
        raise ValueError(chosen[1])
    return chosen[0]


def _choose(asked: str | bool, output_dir: str) -> str | None:
    if asked is not True:
        folder = find_path(asked)
        fault = "there is no such folder" if folder is None else find_fault(folder)
        if fault is not None:
            raise ValueError(
                f"resume_from_checkpoint={asked!r}: it is no whole checkpoint: {fault}. Give another folder, or "
                "`true` for the last whole one of output_dir."
            )
        return str(folder)
    for folder in reversed(sort_checkpoints(output_dir)):
        fault = find_fault(Path(folder))
        if fault is None:
            return folder
        logger.warning(f"{folder} is passed over, as it is no whole checkpoint: {fault}.")
    logger.warning(f"There is no whole checkpoint in {output_dir}: training starts from the beginning.")
    return None


def find_fault(checkpoint: Path) -> str | None:
    """What is missing from a checkpoint, in a few words; None if it is whole."""
    if not checkpoint.is_dir():
        return "there is no such folder"
    try:
        saved = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        TrainerState(**saved | {"global_step": int(saved["global_step"])})
        own = (checkpoint / CAPO_STATE_NAME).exists()
        files = {part: read_state(checkpoint)[part] for part in PARTS}["files"] if own else {}
    except FileNotFoundError:
        return f"{TRAINER_STATE_NAME}, which is written last, is missing"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{TRAINER_STATE_NAME} or {CAPO_STATE_NAME} is cut off, or something else"
    sizes = _sizes(checkpoint)
    missing = [name for name in files if name not in sizes]
    changed = [name for name, size in files.items() if sizes.get(name, size) != size]
    if missing or changed:
        return f"{missing[0]} is missing" if missing else f"{changed[0]} has not the size that was written"
    if not any(name.startswith("rng_state") for name in sizes):
        return "it has the model alone, not where its training was (save_only_model)"
    for name in sizes:
        if damage := find_damage(checkpoint / name, loads="/" not in name):
            return f"{name}: {damage}"
    return None


def write_state(checkpoint: Path, state: dict[str, Any]) -> None:
    """Write CAPO's own state, and what is there of the checkpoint: all but Transformers' trainer state."""
    files = {name: size for name, size in _sizes(checkpoint).items() if name != CAPO_STATE_NAME}
    (checkpoint / CAPO_STATE_NAME).write_text(json.dumps({**state, "files": files}), encoding="utf-8")


def read_state(checkpoint: Path) -> dict[str, Any] | None:
    """What `write_state` wrote; None of a checkpoint that is not CAPO's."""
    file = checkpoint / CAPO_STATE_NAME
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def _sizes(folder: Path) -> dict[str, int]:
    """The size in bytes of every file below the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
