"""Pairs for the page of suspects, and texts that would do harm in a page that did not take them for text."""

from trl_capo.audit.page import write_page

FINGERPRINT = "5eed" * 16
HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(2)>",
    "<!-- <script> \"double\" 'single' `back` ${alert(3)} &lt; &amp;",
    "line\u2028and\u2029paragraph",
    "half \ud800 a pair",
    "turned \u202e round \x00 \x1b[31m \x7f",
]


def suspect(index, group="en", prompt="Prompt", chosen="Yes.", rejected="No.", **changes):
    measures = dict.fromkeys(("first_confidence", "final_confidence", "mean_confidence", "variability"), 0.25)
    row = {"pair": 10 * index, "id": None, "group": group, "score": 1 - index / 10000, "rank": index + 1}
    texts = {"reasons": ["Doubtful."], "prompt": prompt, "chosen": chosen, "rejected": rejected}
    return row | {"suggestion": "look"} | texts | measures | {"area_under_margin": -1.5, "forgetting": 1} | changes


def write(folder, suspects, **changes):
    path = folder / "suspects.html"
    given = {"title": "Suspects of a run", "fingerprint": FINGERPRINT, "group_name": "language", "counts": None}
    write_page(path, [{"epochs": 3} | row for row in suspects], **(given | changes))
    return path
