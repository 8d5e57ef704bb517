"""Files of tensors that cannot be loaded, or not as they were written: right in size, and wrong inside.

torch's files are zip archives with a checksum of every tensor, which torch itself does not look at. safetensors have
none: of them only the head can be wrong. Nothing but tensors and plain values is read, and no tensor is kept.
"""

import pickle
import zipfile
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import safe_open
from transformers.trainer_pt_utils import safe_globals

TORCH = (".pt", ".pth")


def find_damage(file: Path, *, loads: bool) -> str | None:
    """Why the file cannot be loaded, in a few words; None if it can, or if it is none of tensors.

    Args:
        file: of a checkpoint; it is read once as long as it does not change.
        loads: whether it must hold tensors and plain values alone, as those do that Transformers loads.
    """
    status = file.stat()
    return _find_damage(file, loads, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1024)
def _find_damage(file: Path, loads: bool, size: int, changed: int) -> str | None:
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt"):
                return None
        if file.suffix not in TORCH:
            return None
        if zipfile.is_zipfile(file) and torch.serialization.get_crc32_options():
            with zipfile.ZipFile(file) as archive:
                if (part := archive.testzip()) is not None:
                    return f"its part {part!r} has another checksum than was written"
        if loads:
            with safe_globals():
                torch.load(file, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError:
        return "it holds something other than tensors and plain values, or is damaged"
    except Exception as error:  # readers of damaged files end in any way
        return f"it is damaged ({(str(error).strip() or type(error).__name__).splitlines()[0]})"
    return None
