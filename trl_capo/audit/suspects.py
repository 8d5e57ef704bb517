"""The ranking, worst first, and its files: suspects.parquet with every pair, .csv and .jsonl with the first ones."""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from trl_capo.audit.dynamics import Dynamics
from trl_capo.audit.judgement import Judgement, suggestions
from trl_capo.audit.texts import TEXTS, in_words
from trl_capo.tables import cell

_NUMBERS = ("first_confidence", "final_confidence", "mean_confidence", "variability", "area_under_margin")
SCHEMA = pa.schema(
    [
        ("pair", pa.int64()),
        ("id", pa.string()),
        ("group", pa.string()),
        ("score", pa.float64()),
        ("rank", pa.int64()),
        ("suggestion", pa.string()),
        ("reasons", pa.list_(pa.string())),
        *((name, pa.string()) for name in TEXTS),
        *((name, pa.float32()) for name in _NUMBERS),
        ("forgetting", pa.int32()),
        ("epochs", pa.int32()),
        ("fingerprint", pa.string()),
    ]
)
_CHUNK = 4096
_NOISIER = 1.25
"""So many times the overall noise rate make it a reason that a pair is of its group."""


@dataclass(frozen=True)
class Ranking:
    """N judged pairs, and the data set that they are of (None: unknown)."""

    pairs: Dynamics
    judgement: Judgement
    data: Dataset | None

    @property
    def order(self) -> np.ndarray:
        """(N,) places of the pairs, worst first; of equals the one with the lower margin, then the earlier one."""
        return np.lexsort((self.pairs.mean_margin, -self.judgement.log_odds))

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[dict[str, Any]]:
        """The suspects from rank start + 1 to `stop`, as SCHEMA."""
        order = self.order[start:stop]
        for first in range(0, len(order), _CHUNK):
            yield from self._chunk(order[first : first + _CHUNK], start + first)

    def _chunk(self, places: np.ndarray, before: int) -> Iterator[dict[str, Any]]:
        pairs, scores = self.pairs, self.judgement.scores[places]
        asked = suggestions(scores).tolist()
        for step, (place, texts) in enumerate(zip(places.tolist(), self._texts(pairs.pair[places]), strict=True)):
            yield {
                "pair": int(pairs.pair[place]),
                "id": texts.pop("id"),
                "group": str(self.judgement.groups[self.judgement.place[place]]) or None,
                "score": float(scores[step]),
                "rank": before + step + 1,
                "suggestion": asked[step],
                "reasons": self.reasons(place),
                **texts,
                **{name: float(getattr(pairs, name)[place]) for name in _NUMBERS[:-1]},
                "area_under_margin": float(pairs.mean_margin[place]),
                "forgetting": int(pairs.forgetting[place]),
                "epochs": int(pairs.epochs[place]),
                "fingerprint": pairs.fingerprint,
            }

    def _texts(self, numbers: np.ndarray) -> Iterator[dict[str, str | None]]:
        """The texts and the `id` of rows of the data."""
        if self.data is None:
            yield from (dict.fromkeys((*TEXTS, "id")) for _ in numbers)
            return
        columns = [name for name in (*TEXTS, "id") if name in self.data.column_names]
        for row in self.data.select_columns(columns).with_format(None).select(numbers):
            yield in_words(row)

    def reasons(self, place: int) -> list[str]:
        """What speaks for and against the label of the pair at that place, in words."""
        pairs, judgement = self.pairs, self.judgement
        mean, first = float(pairs.mean_margin[place]), float(pairs.first_margin[place])
        passes, against = int(pairs.epochs[place]), int(pairs.disagreements[place])
        preferred = [("the rejected answer", against), ("the chosen answer", int(pairs.agreements[place]))]
        side, count = next((found for found in preferred if found[1]), ("neither answer", passes))
        found = []
        if passes == 1:
            found.append(f"before it learned from the pair, the model preferred {side} (margin {first:+.2f})")
        else:
            times = f"in all {passes} passes" if count == passes else f"in {count} of {passes} passes"
            found.append(f"the model preferred {side} {times} (mean margin {mean:+.2f})")
            if against and first < 0:
                found.append(f"it did so before it had learned from the pair (margin {first:+.2f})")
            elif against and first > 0:
                found.append(f"before it had learned from the pair it preferred the chosen one (margin {first:+.2f})")
        if pairs.forgetting[place]:
            count = int(pairs.forgetting[place])
            found.append(f"it agreed with the label and then no longer did, {count} time{'s' if count > 1 else ''}")
        group = judgement.place[place]
        if judgement.rates[group] > _NOISIER * judgement.overall_rate and judgement.groups[group]:
            found.append(f"about {judgement.rates[group]:.0%} of the labels of {judgement.groups[group]!r} look wrong")
        return found


def write_suspects(ranking: Ranking, top: int, folder: Path) -> list[dict[str, Any]]:
    """Write the three files; returns the first `top` suspects."""
    worst = list(ranking.rows(0, top))
    with pq.ParquetWriter(folder / "suspects.parquet", SCHEMA, compression="zstd") as writer:
        for chunk in _chunks(ranking.rows()):
            writer.write_table(pa.Table.from_pylist(chunk, SCHEMA))
    with (folder / "suspects.jsonl").open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(_json_line(row) for row in worst)
    # With a byte order mark, by which spreadsheets know UTF-8.
    with (folder / "suspects.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, SCHEMA.names, quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows({name: cell(value) for name, value in row.items()} for row in worst)
    return worst


def _json_line(row: dict[str, Any]) -> str:
    """A line of JSON, which is one for readers too that take Unicode's line separators for ends of lines."""
    text = json.dumps(row, ensure_ascii=False)
    return re.sub("[\x85\u2028\u2029]", lambda letter: f"\\u{ord(letter[0]):04x}", text) + "\n"


def _chunks(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    chunk: list[dict[str, Any]] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
