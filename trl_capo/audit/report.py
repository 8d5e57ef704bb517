"""The report of an audit, as Markdown: counts, noise rates, the worst pairs to read, and how to go on."""

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from trl_capo import __version__
from trl_capo.audit.judgement import FLIP, LOOK, suggestions
from trl_capo.audit.scores import auroc, precision_at
from trl_capo.audit.suspects import Ranking
from trl_capo.audit.texts import TEXTS, parts
from trl_capo.fonts import one_line
from trl_capo.report import escape, markdown_table
from trl_capo.tables import count_pairs

WORST = 20
LONGEST = 1500
"""The most characters of a message in the report."""


def rate_table(ranking: Ranking, wrong: np.ndarray | None, group_name: str) -> list[list[str]]:
    """Headings, and a row for every group and for all pairs; `wrong` is (N,) the truth, where it is known."""
    found = ranking.judgement
    asked = suggestions(found.scores)
    headings = [group_name, "pairs", "noise rate, % [95 %]", "mixture, %", "training, %", "flip", "look"]
    rows = [headings + (["true, %", "AUROC"] if wrong is not None else [])]

    def row(name: str, member: np.ndarray, rate: str, mixed: float, trained: float) -> list[str]:
        cells = [one_line(name), f"{member.sum():,}", rate, _percent(mixed), _percent(trained)]
        cells += [f"{(asked[member] == word).sum():,}" for word in ("flip", "look")]
        if wrong is not None:
            cells += [_percent(wrong[member].mean()), _percent(auroc(found.log_odds[member], wrong[member]))]
        return cells

    told = [
        f"{_percent(rate)} [{_percent(low)}, {_percent(high)}]"
        for rate, (low, high) in zip(found.rates, found.intervals, strict=True)
    ]
    alone = list(found.groups) == [""]
    for group, name in enumerate([] if alone else found.groups.tolist()):
        rates = found.mixture_rates[group], found.training_rates[group]
        rows.append(row(name or "(no group)", found.place == group, told[group], *rates))
    everyone = np.ones(len(found.place), dtype=bool)
    overall = [float(rates[found.place].mean()) for rates in (found.mixture_rates, found.training_rates)]
    rows.append(row("all pairs", everyone, told[0] if alone else _percent(found.overall_rate), *overall))
    return rows


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.1f}"


def report(
    ranking: Ranking,
    wrong: np.ndarray | None,
    *,
    title: str,
    used: Mapping[str, str],
    group_name: str,
    top: int,
    plots: Mapping[str, str],
    remarks: Iterable[str],
    commands: Sequence[str],
) -> str:
    """The report.

    Args:
        ranking: of N pairs.
        wrong: (N,) which labels are wrong, where it is known.
        title: the run's name.
        used: what was read, by its name.
        group_name: what a group is.
        top: suspects in the CSV, JSONL and HTML files.
        plots: files with what they show.
        remarks: what a reader must know beside them.
        commands: that clean the data.
    """
    pairs, scores = ranking.pairs, ranking.judgement.scores
    lines = [f"# {escape(f'Audit of {title}')}", "", *_counts(ranking), ""]
    if wrong is not None:
        lines += [
            f"It is known which labels are wrong ({wrong.sum():,} of {len(wrong):,}). AUROC of the ranking: "
            f"{100 * auroc(ranking.judgement.log_odds, wrong):.1f} %; wrong among the first 5 %: "
            f"{100 * precision_at(ranking.judgement.log_odds, wrong):.1f} %.",
            "",
        ]
    lines += ["## Noise rates", "", markdown_table(rate_table(ranking, wrong, group_name)), ""]
    lines += [f"- {escape(line)}" for line in [*_rate_notes(ranking), *remarks]] + [""]
    lines += [f"![{escape(shows)}]({name})" for name, shows in plots.items()]
    count = min(WORST, len(scores))
    lines += ["", f"## The {count} worst pairs" if count > 1 else "## The worst pair", ""]
    for row in ranking.rows(0, count):
        lines += _suspect(row, ranking)
    lines += ["## How to go on", "", *_next_steps(min(top, len(scores)), commands), "", "## What was used", ""]
    used = dict(used) | {
        "seen": f"{count_pairs(len(scores))}, each up to {pairs.passes} time{'s' if pairs.passes > 1 else ''}"
    }
    lines += [f"- {name}: {escape(value)}" for name, value in used.items()]
    lines += [f"- versions: trl-capo {__version__}, numpy {version('numpy')}, pyarrow {version('pyarrow')}", ""]
    return "\n".join(lines)


def _counts(ranking: Ranking) -> list[str]:
    asked = suggestions(ranking.judgement.scores)
    lines = [
        f"{count_pairs(len(asked))} ranked by how likely the label is wrong: {(asked == 'flip').sum():,} with a "
        f"score of {FLIP:g} or more (suggestion: flip), {(asked == 'look').sum():,} with {LOOK:g} or more (look). The "
        "score estimates the probability that the label is wrong; in tests, labels with a high score were wrong "
        "somewhat less often than it says."
    ]
    unseen = ranking.pairs.total - len(asked)
    if unseen:
        lines += [
            "",
            f"{count_pairs(unseen)} of the data never seen, so not ranked: dropped as too long, not reached, or not "
            "logged.",
        ]
    return lines


def _rate_notes(ranking: Ranking) -> list[str]:
    lines = [
        "Noise rate: the mean of two estimates that err in different ways, the mixture's on the margins of all passes "
        "and the training's own at first sight; the interval is wide where they disagree."
    ]
    if np.isnan(ranking.judgement.training_rates).all():
        lines = ["Noise rate: of the mixture alone, since the training estimated none for these groups."]
        if ranking.judgement.at_first_sight:
            lines.append("Of margins at first sight a mixture finds far too much: take the order, and not the scores.")
    elif ranking.judgement.at_first_sight:
        lines = ["Noise rate: the training's own estimate. Of margins at first sight the mixture finds too much."]
    lines.append("Pairs on which the model itself is surely wrong look like wrong labels: read before you flip.")
    return lines


def _suspect(row: Mapping[str, Any], ranking: Ranking) -> list[str]:
    named = [f"pair {row['pair']}", *([row["id"]] if row["id"] else []), *([row["group"]] if row["group"] else [])]
    lines = [f"### {row['rank']}. {escape(', '.join(named))}", ""]
    lines += [f"Score {row['score']:.3f}, suggestion: {row['suggestion']}", ""]
    lines += [f"- {escape(reason)}" for reason in row["reasons"]] + [""]
    if ranking.data is None:
        return lines
    texts = ranking.data.select_columns([name for name in TEXTS if name in ranking.data.column_names])
    for name, value in texts.with_format(None)[row["pair"]].items():
        lines += [f"**{name}**", "", *(_passage(role, text) for role, text in parts(value)), ""]
    return lines


def _passage(role: str, text: str) -> str:
    """A message as HTML of one line, in which Markdown means nothing; every line of it has its own direction."""
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text):,} characters)"
    said = "".join(
        f'<div dir="auto">{html.escape(one_line(line)) or "&nbsp;"}</div>' for line in re.split("\r\n?|\n", text)
    )
    return f"<blockquote>{f'<em>{html.escape(one_line(role))}</em>' if role else ''}{said}</blockquote>\n"


def _next_steps(top: int, commands: Sequence[str]) -> list[str]:
    noise = len(commands) > 2
    return [
        f"- Open `suspects.html` in a browser, read the {top:,} worst pairs, decide (keep, flip, drop), and export "
        "the decisions.",
        "- `suspects.parquet` has every ranked pair, `suspects.csv` and `suspects.jsonl` the worst ones.",
        f"- {'Write the pairs with the noise that the training had; then apply' if noise else 'Apply'} the decisions, "
        "or rules on the scores (`trl-capo clean --help`):",
        "",
        *(f"      {one_line(command)}" for command in commands),
    ]
