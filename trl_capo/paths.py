"""Names given by a user: a path of this machine, or a name on the hub."""

import tempfile
from pathlib import Path

from huggingface_hub.utils import HFValidationError, validate_repo_id


def find_path(name: str) -> Path | None:
    """The file or folder of that name, `~` expanded; None where nothing is, or where no path can be called so."""
    try:
        path = Path(name).expanduser()
        return path if name and path.exists() else None
    except (OSError, RuntimeError, ValueError):  # a name too long, a home of nobody, a NUL
        return None


def can_be_on_hub(name: str) -> bool:
    """Whether a model or data set on the hub can have that name; `~`, `..` and absolute paths never do."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.isprintable()


def output_folder(name: str | Path, option: str = "output_dir") -> Path:
    """The folder of that name, `~` expanded; nothing is made.

    Raises:
        ValueError: it could not be made, or not written into.
    """
    told = f"{option}={str(name)!r}"
    try:
        folder = Path(name).expanduser()
        if not str(name) or "\0" in str(name):
            raise ValueError("no folder can have that name")
        place = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise ValueError(f"{told}: it cannot be written to ({error.strerror}). Give another {option}.") from error
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{told}: it cannot be used ({error}). Give another {option}.") from error
    return folder
