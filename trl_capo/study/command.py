"""The command `trl-capo study`: its options, and what it says. docs/study.md explains the plan's file."""

import sys
import time
from collections.abc import Sequence

from trl_capo.arguments import Parser
from trl_capo.plain import print_error
from trl_capo.report import check_available
from trl_capo.study.config import read_study
from trl_capo.study.schedule import RunFailed, report_done, study


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = Parser(
        prog="trl-capo study",
        description="Compare methods under noise: a grid of runs, a table, a report and plots. See docs/study.md.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="FILE.yaml", help="the study's plan")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; one for each GPU")
    parser.add_argument("--report_only", action="store_true", help="report on the runs that are done, and start none")
    parser.add_argument("--output_dir", help="the study's folder, in place of the file's")
    parser.add_argument("--baseline", help="the method that others are compared with, in place of the file's")
    started = time.monotonic()
    try:
        arguments = parser.parse_args(argv)
        if arguments.jobs < 1:
            raise ValueError(f"--jobs={arguments.jobs}: at least one run must be made at a time.")
        check_available()
        config = read_study(arguments.config, {name: getattr(arguments, name) for name in ("output_dir", "baseline")})
        folder = report_done(config) if arguments.report_only else study(config, arguments.jobs)
    except (ValueError, OSError, RunFailed) as error:
        print_error("trl-capo study", error)
        return 1 if isinstance(error, RunFailed) else 2
    except KeyboardInterrupt:
        print("trl-capo study: interrupted. What is done stays done; the same command goes on.", file=sys.stderr)
        return 130
    print(f"Report: {folder / 'report.md'} ({(time.monotonic() - started) / 60:.0f} minutes)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
