"""The command `trl-capo audit`: its options, and what it says. docs/audit.md explains what comes out."""

import sys
from collections.abc import Sequence

from datasets import disable_progress_bars

from trl_capo.arguments import Parser
from trl_capo.audit.audit import Audit, audit
from trl_capo.audit.judgement import EVIDENCE
from trl_capo.groups import parse_group_column
from trl_capo.models import processes
from trl_capo.plain import plain, print_error
from trl_capo.report import check_available
from trl_capo.text_table import text_table


def make_parser() -> Parser:
    parser = Parser(
        prog="trl-capo audit",
        description="Rank the pairs of a training by how likely their labels are wrong. See docs/audit.md.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN_OR_LOG", help="output folder of a training with `pair_log`, or a log")
    parser.add_argument("--dataset_name", help="the pairs as the training had them; default: what the log names")
    parser.add_argument("--dataset_config", help="configuration of a hub data set")
    parser.add_argument("--dataset_train_split", help="the split that was trained on")
    parser.add_argument(
        "--group_column", default="auto", help="column of the groups; auto: those of the training; none: no groups"
    )
    parser.add_argument(
        "--score",
        default="mean_margin",
        help=f"margins to judge by: {', '.join(EVIDENCE)} (for trainings of many epochs that memorise labels)",
    )
    parser.add_argument("--top", type=int, default=200, help="suspects in the CSV, JSONL and HTML files")
    parser.add_argument("--output_dir", help="default: `audit` beside a log `pair_log`, else `NAME-audit`")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    try:
        args = make_parser().parse_args(sys.argv[1:] if argv is None else argv)
        check_available()
        processes()
        disable_progress_bars()
        found = audit(
            args.run,
            args.dataset_name,
            dataset_config=args.dataset_config,
            dataset_train_split=args.dataset_train_split,
            group_column=parse_group_column(args.group_column),
            evidence=args.score,
            top=args.top,
            output_dir=args.output_dir,
        )
    except (ValueError, OSError) as error:
        print_error("trl-capo audit", error)
        return 2
    _say(found)
    return 0


def _say(found: Audit) -> None:
    print(text_table(found.rates))
    pairs = found.ranking.pairs
    if pairs.total > len(pairs.pair):
        print(f"{pairs.total - len(pairs.pair):,} of {pairs.total:,} pairs were never seen and are not ranked.")
    for remark in found.remarks:
        print(plain(remark))
    if found.ranking.data is None:
        print(
            "The log names no data set, so the files have no texts. Give --dataset_name; of a mixture, call "
            "trl_capo.audit.audit.audit with its pairs."
        )
    print(plain(f"Report: {found.folder / 'report.md'}"))


if __name__ == "__main__":
    sys.exit(main())
