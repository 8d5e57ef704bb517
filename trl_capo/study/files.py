"""JSON files of a study's folder: written whole or not at all, and read with a word on which one is damaged."""

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any) -> None:
    unfinished = path.with_name(f"unfinished-{path.name}")
    unfinished.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def read_json(path: Path) -> dict[str, Any]:
    """The object in the file.

    Raises:
        ValueError, OSError: it cannot be read; the message is for the user.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}). Delete this file; a run without it is made again.") from error
    return content
