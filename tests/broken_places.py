"""Names of data sets and models under which nothing is, and places where no data can be.

PLACES is like `broken_data.BROKEN`; NAMES maps a case's name to what is given as a name.
"""

import os
from pathlib import Path

from broken_data import CONTROLS, HUGE, LINES, RIGHT_TO_LEFT, Make, in_file


def _link(folder: Path, target: str) -> str:
    (folder / "bad.jsonl").symlink_to(target)
    return str(folder / "bad.jsonl")


def _fifo(folder: Path) -> str:
    os.mkfifo(folder / "bad.jsonl")
    return str(folder / "bad.jsonl")


def _directory(folder: Path) -> str:
    (folder / "bad.jsonl").mkdir()
    return str(folder / "bad.jsonl")


def _below_a_file(folder: Path) -> str:
    return in_file("good.jsonl", LINES)(folder) + "/train.jsonl"


def _closed(folder: Path) -> str:
    path = Path(in_file("bad.jsonl", LINES)(folder))
    path.chmod(0)
    return str(path)


PLACES: dict[str, Make] = {
    "link to itself": lambda folder: _link(folder, "bad.jsonl"),
    "link to nothing": lambda folder: _link(folder, "gone.jsonl"),
    "pipe": _fifo,
    "empty directory named as a file": _directory,
    "below a file": _below_a_file,
    "device": lambda folder: "/dev/null",
} | ({} if os.geteuid() == 0 else {"unreadable": _closed})  # root may read everything

NAMES = {
    "traversal": "../../etc/passwd",
    "long traversal": "../" * 20 + "etc/passwd",
    "traversal to nothing": "../../../nosuch",
    "encoded traversal": "..%2f..%2fetc%2fpasswd",
    "encoded dots": "%2e%2e/%2e%2e/etc",
    "traversal behind an owner": "owner/../../etc/passwd",
    "backslashes": "..\\..\\etc\\passwd",
    "absolute": "/etc/nosuch",
    "absolute, a file": "/etc/passwd",
    "double slash": "//etc//nosuch",
    "home": "~/nosuch/data.jsonl",
    "somebody's home": "~nobodyhere/data",
    "NUL": "data\x00.jsonl",
    "NUL, traversal": "../\x00/etc",
    "line break": "data\nset",
    "line break and a file's ending": "data\nset.jsonl",
    "terminal codes": f"data{CONTROLS.replace(chr(0), '')}",
    "right-to-left": RIGHT_TO_LEFT + "data",
    "surrogate": "data\ud800",
    "surrogate, a file": "./data\ud800.jsonl",
    "huge": HUGE,
    "huge path": "/" + "/".join(["x" * 200] * 300),
    "huge relative path": "./" + HUGE,
    "long file name": "x" * 300 + ".jsonl",
    "blank": " ",
    "dot": ".",
    "dots": "...",
    "slash": "/",
    "only an owner": "owner/",
    "three parts": "a/b/c",
    "address": "https://localhost/data.jsonl",
    "file address": "file:///etc/passwd",
    "other protocol": "s3://bucket/data.jsonl",
    "hub address": "hf://datasets/owner/data",
    "option": "--config",
    "shell": "$(touch ran); `touch ran` | touch ran",
    "glob": "*.jsonl",
    "emoji": "🙂",
}
