"""Report an audit: noise rates and the command that cleans the data in Markdown, and plots (needs Matplotlib)."""

from pathlib import Path
from typing import Any

from trl_capo.audit.mislabels import FLIP_SCORE, LOOK_SCORE, LabelErrors, auroc
from trl_capo.common.figures import MARKERS, new_figure, new_rows, plot_style, save
from trl_capo.common.text import Rows, count, escape_markdown, markdown_table, one_line, percent, shorten

LEGEND_GROUPS, LISTED_GROUPS, MAP_POINTS = 20, 60, 20_000


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


def report(errors: LabelErrors, rates: Rows, plots: dict[str, str], notes: list[str], command: str, title: str) -> str:
    """Write a report with the table from `rate_table`, plots (files and captions), and a command to clean the data."""
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
    lines += ["", *(f"![{caption}]({name})" for name, caption in plots.items())]
    lines += [
        "\n## Next steps\n",
        "- Open `suspects.html` in a browser, decide on the worst pairs, and export the decisions.",
        "- Apply them. Other options, such as `--suspects=suspects.parquet --drop_top=10%`, apply a rule on the "
        "scores:\n",
        f"      {one_line(command)}\n",
    ]
    return "\n".join(lines)


def plot_audit(errors: LabelErrors, folder: Path) -> tuple[dict[str, str], list[str]]:
    """Draw noise_rates.png, and data_map.png if pairs were seen twice; return files with captions, and notes."""
    names = {group: one_line(group) for group in errors.groups.index}
    names[""] = "no group" if len(names) > 1 else "all pairs"
    plots, notes = {}, []
    with plot_style(names.values()):
        if errors.pairs["epochs"].max() > 1:
            plots[save(data_map(errors, names), folder / "data_map.png")] = "Data map: confidence and variability"
        else:
            (folder / "data_map.png").unlink(missing_ok=True)  # of an earlier audit
            notes.append("There is no data map: pairs were seen once, so their confidence has no variability.")
        plots[save(noise_rates(errors, names), folder / "noise_rates.png")] = "Noise rate of every group"
    if len(errors.groups) > LISTED_GROUPS:
        notes.append(f"The plot of noise rates shows the {LISTED_GROUPS} highest of {len(errors.groups):,}.")
    return plots, notes


def data_map(errors: LabelErrors, names: dict[str, str]) -> Any:
    """Plot mean confidence against variability (Swayamdipta et al. 2020) of at most MAP_POINTS pairs."""
    figure, axes = new_figure(8.5, 5.5)
    sizes = errors.pairs["group"].value_counts()
    drawn = errors.pairs.sample(min(len(errors.pairs), MAP_POINTS), random_state=0)
    for place, (group, pairs) in enumerate(drawn.groupby("group")):
        label = f"{shorten(names[group], 30)} ({sizes[group]:,})" if group in sizes.index[:LEGEND_GROUPS] else None
        style = {"color": f"C{place}", "marker": MARKERS[place % len(MARKERS)]}
        axes.scatter(pairs["variability"], pairs["mean_confidence"], 9, alpha=0.55, linewidths=0, label=label, **style)
    figure.legend(loc="outside right upper", title="pairs" if len(sizes) <= LEGEND_GROUPS else "largest groups")
    axes.set_xlabel("variability: standard deviation of the confidence over the passes")
    axes.set(ylabel="mean confidence that the label is right", ylim=(-0.02, 1.02))
    for height, words in ((0.02, "low confidence: probably wrong"), (0.96, "high confidence: probably right")):
        axes.text(0.99, height, words, transform=axes.transAxes, fontsize=8, color="0.35", ha="right")
    return figure


def noise_rates(errors: LabelErrors, names: dict[str, str]) -> Any:
    """Plot the noise rates with their 95 % intervals, highest at the top, and the true rates where they are known."""
    groups = errors.groups.sort_values("rate", ascending=False, kind="stable")[:LISTED_GROUPS]
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
    return figure
