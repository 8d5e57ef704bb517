"""Report an audit: noise rates and the command that cleans the data in Markdown, and a plot (needs Matplotlib)."""

from pathlib import Path
from typing import Any

from trl_capo.audit.mislabels import FLIP_SCORE, LOOK_SCORE, LabelErrors, auroc
from trl_capo.common.figures import new_rows, plot_style, save
from trl_capo.common.text import Rows, count, escape_markdown, markdown_table, one_line, percent

LISTED_GROUPS = 60  # in the plot


def rate_table(errors: LabelErrors, group_name: str) -> Rows:
    """Return headings, a row for every group and one for all pairs, with the truth where it is known."""
    headings = [group_name, "pairs", "noise rate, % [95 %]", "training, %", "flip", "look"]
    headings += ["true, %", "AUROC"] if "wrong" in errors.pairs else []
    rows = []
    for group, pairs in [*errors.pairs.groupby("group"), (None, errors.pairs)]:
        name = "all pairs" if group is None else group or "(no group)"
        rates = errors.groups.loc[pairs["group"]].mean()
        interval = None if group is None else rates[["low", "high"]].tolist()
        cells = [name, count(len(pairs)), percent(rates["rate"], interval), percent(rates["training_rate"])]
        cells += [count(int((pairs["suggestion"] == word).sum())) for word in ("flip", "look")]
        if "wrong" in pairs:
            cells += [percent(pairs["wrong"].mean()), percent(auroc(pairs["log_odds"], pairs["wrong"]))]
        rows.append(cells)
    return [headings, *rows] if any(errors.groups.index) else [headings, ["all pairs", *rows[0][1:]]]


def report(errors: LabelErrors, rates: Rows, notes: list[str], command: str, title: str) -> str:
    """Write a report with the table from `rate_table`, the plot, and a command to clean the data."""
    pairs, words = errors.pairs, list(errors.pairs["suggestion"])
    lines = [
        f"# {escape_markdown(title)}\n",
        f"{count(len(pairs), 'pair')} ranked by the probability of a wrong label, the score: {words.count('flip'):,} "
        f"have {FLIP_SCORE:g} or more (flip), and {words.count('look'):,} {LOOK_SCORE:g} or more (look).\n",
    ]
    if "wrong" in pairs:
        known = f"{pairs['wrong'].sum():,} of {len(pairs):,}"
        first = percent(pairs["wrong"].head(max(1, int(0.05 * len(pairs)))).mean())
        lines.append(f"The data say which labels are wrong ({known}): {first} % of the first 5 %.\n")
    basis = "the probe's" if "probe" in pairs else "CAPO's, or the log's where CAPO made none"
    caution = "Pairs on which the model is confidently wrong look like wrong labels: read them before you flip."
    lines += ["## Noise rates\n", markdown_table(rates), "", f"- The noise rates are {basis}."]
    lines += [f"- {escape_markdown(line)}" for line in (caution, *notes)]
    lines += [
        f"\n![Noise rate of every group, or of the {LISTED_GROUPS} noisiest](noise_rates.png)",
        "\n## Next steps\n",
        "- Open `suspects.html` in a browser, decide on the worst pairs, and export the decisions.",
        "- Apply them. Rules on scores, such as `--drop_top=10%`, need the path of suspects.parquet, `--suspects`:\n",
        f"      {one_line(command)}\n",
    ]
    return "\n".join(lines)


def plot_rates(errors: LabelErrors, path: Path) -> Any:
    """Draw the noise rates with their 95 % intervals, highest at the top, and the true rates where they are known."""
    names = {group: one_line(group) for group in errors.groups.index}
    names[""] = "no group" if len(names) > 1 else "all pairs"
    groups = errors.groups.sort_values("rate", ascending=False, kind="stable")[:LISTED_GROUPS]
    with plot_style(names.values()):
        height, overall = 1.4 + 0.28 * len(groups), errors.groups["rate"][errors.pairs["group"]].mean()
        figure, axes = new_rows([names[name] for name in groups.index], height, overall, "all pairs, estimated")
        reach = [groups["rate"] - groups["low"], groups["high"] - groups["rate"]]
        style = {"fmt": "o", "color": "0.15", "label": "estimated, 95 % interval"}
        axes.errorbar(groups["rate"], range(len(groups)), xerr=reach, **style)
        if "wrong" in errors.pairs:
            true = errors.pairs.groupby("group")["wrong"].mean().loc[groups.index]
            axes.plot(true, range(len(true)), "x", color="tab:red", markersize=7, label="true")
        axes.set(xlabel="share of wrong labels", xlim=(0.0, None))
        axes.xaxis.set_major_formatter("{x:.0%}")
        figure.legend(loc="outside upper center", ncols=3)
        save(figure, path)
    return figure
