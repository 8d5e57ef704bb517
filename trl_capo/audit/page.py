"""The suspects as one HTML file to read and decide in: it needs no network and no server, and can be sent by mail.

The template is page.html, with page.css and the scripts put into it. The pairs lie in the page as JSON, which the
scripts show as text alone; a Content-Security-Policy lets no other script run and nothing be fetched.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

SCRIPTS = ("page.js", "decisions.js", "compare.js", "start.js")


def write_page(
    path: Path,
    suspects: Sequence[Mapping[str, Any]],
    *,
    title: str,
    fingerprint: str,
    group_name: str,
    counts: Mapping[str, int] | None,
) -> None:
    """Write the page.

    Args:
        path: of the file, UTF-8.
        suspects: the rows to show, worst first, as in docs/audit.md; a number that is not finite counts as missing.
        title: stands at the top.
        fingerprint: of the data set; stands in every decision, and decisions are kept and imported under it alone.
            In the page it stands once, and not in every suspect.
        group_name: what a group is, such as `language`.
        counts: group -> pairs of it in the whole data set; None where there are no groups.
    """
    data = {
        "title": title,
        "fingerprint": fingerprint,
        "groupName": group_name,
        "counts": counts,
        "suspects": [
            {name: _finite(value) for name, value in suspect.items() if name != "fingerprint"} for suspect in suspects
        ],
    }
    style, script = _template("page.css"), "".join(map(_template, SCRIPTS))
    parts = {"style": style, "script": script, "style_hash": _hash(style), "script_hash": _hash(script)}
    page = Template(_template("page.html")).substitute(parts, data=_json(data))
    path.write_text(page, encoding="utf-8", newline="\n")


def _template(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    """As a Content-Security-Policy names what stands between two tags."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _json(data: Any) -> str:
    """JSON without what could end the script element that it stands in, and without what UTF-8 cannot write."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029\ud800-\udfff]", lambda letter: f"\\u{ord(letter[0]):04x}", text)
