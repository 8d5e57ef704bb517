"""A hash that identifies preference data."""

import hashlib
import json

from datasets import Dataset


def fingerprint(rows: Dataset) -> str:
    """Hash the pairs' texts or messages in their order; the result does not depend on how they are stored."""
    columns = [name for name in ("prompt", "chosen", "rejected") if name in rows.column_names]
    digest = hashlib.sha256()
    for batch in rows.select_columns(columns).with_format(None).iter(1000):
        for row in zip(*map(batch.get, columns), strict=True):
            digest.update(json.dumps(row, sort_keys=True, default=repr).encode() + b"\n")
    return digest.hexdigest()
