"""Report an audit: noise rates and the command that cleans the data in Markdown, and a plot (needs Matplotlib)."""

from pathlib import Path
from typing import Any

from trl_capo.audit.mislabels import FLIP_SCORE, LOOK_SCORE, LabelErrors, auroc
from trl_capo.common.figures import new_rows, plot_style, save
from trl_capo.common.text import Rows, count, escape_markdown, markdown_table, one_line, percent

LISTED_GROUPS = 60  # in the plot


def rate_table(errors: LabelErrors, group_name: str) -> Rows:
    """Return headings, a row for every group and one for all pairs, with the truth where it is known."""
    headings = [group_name, "pairs", "noise rate, % [95 %]", "mixture, %", "training, %", "flip", "look"]
    headings += ["true, %", "AUROC"] if "wrong" in errors.pairs else []
    rows = []
    for group, pairs in [*errors.pairs.groupby("group"), (None, errors.pairs)]:
        name = "all pairs" if group is None else group or "(no group)"
        rates = errors.groups.loc[pairs["group"]].mean()
        interval = None if group is None else rates[["low", "high"]].tolist()
        cells = [name, count(len(pairs)), percent(rates["rate"], interval)]
        cells += [percent(rates["mixture_rate"]), percent(rates["training_rate"])]
        cells += [count(int((pairs["suggestion"] == word).sum())) for word in ("flip", "look")]
        if "wrong" in pairs:
            cells += [percent(pairs["wrong"].mean()), percent(auroc(pairs["log_odds"], pairs["wrong"]))]
        rows.append(cells)
    return [headings, *rows] if any(errors.groups.index) else [headings, ["all pairs", *rows[0][1:]]]


def report(errors: LabelErrors, rates: Rows, notes: list[str], command: str, title: str) -> str:
    """Write a report with the table from `rate_table`, the plot, and a command to clean the data."""
    pairs, suggested = errors.pairs, errors.pairs["suggestion"].value_counts()
    lines = [
        f"# {escape_markdown(title)}\n",
        f"{count(len(pairs), 'pair')} ranked by the estimated probability that the label is wrong (the score): "
        f"{suggested.get('flip', 0):,} with a score of {FLIP_SCORE:g} or more (suggestion: flip) and "
        f"{suggested.get('look', 0):,} with {LOOK_SCORE:g} or more (look). In tests, labels with a high score were "
        "wrong somewhat less often than the score says.\n",
    ]
    if "wrong" in pairs:
        known = f"{pairs['wrong'].sum():,} of {len(pairs):,}"
        first = percent(pairs["wrong"].head(max(1, int(0.05 * len(pairs)))).mean())
        lines.append(f"The data say which labels are wrong ({known}): {first} % of the first 5 %.\n")
    basis = "mean of the mixture's and CAPO's estimates. The interval is wide where they disagree."
    if errors.single_pass:
        basis = "CAPO's estimate. On margins of a single pass the mixture finds too much noise."
    if errors.groups["training_rate"].isna().all():
        basis = "the mixture's estimate, because CAPO made none for these groups."
        basis += " On margins of a single pass it is far too high: trust the order only." if errors.single_pass else ""
    caution = "Pairs on which the model is confidently wrong look like wrong labels: read them before you flip."
    lines += ["## Noise rates\n", markdown_table(rates), ""]
    lines += [f"- {escape_markdown(line)}" for line in (f"Noise rate: {basis}", caution, *notes)]
    more = f": the {LISTED_GROUPS} highest" if len(errors.groups) > LISTED_GROUPS else ""
    lines += [
        f"\n![Noise rate of every group{more}](noise_rates.png)",
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
        height, overall = 1.4 + 0.28 * len(groups), "all pairs, estimated"
        figure, axes = new_rows([names[group] for group in groups.index], height, errors.overall_rate, overall)
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
