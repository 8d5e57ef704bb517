"""What `trl-capo clean` does: write a data set without the pairs, or with the labels, that were found to be wrong.

    trl-capo clean --dataset_name pairs.jsonl --output_dir cleaned --decisions decisions.jsonl
    trl-capo clean --dataset_name pairs.jsonl --output_dir cleaned --suspects suspects.parquet --drop_top 10%

One split is cleaned, the others are copied. The folder is in the form of `save_to_disk`, with `changes.jsonl`, a line
for every changed pair, and `clean.json`, which says what was done; it appears whole or not at all.
"""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version

from datasets import DatasetDict

from trl_capo import __version__
from trl_capo.arguments import Parser, parse, refuse_unknown
from trl_capo.cleaning import Cleaned, Rules, clean
from trl_capo.data import check_preference_data, load_preference_data, select_split
from trl_capo.groups import find_groups, parse_group_column
from trl_capo.models import processes
from trl_capo.pair_log import fingerprint
from trl_capo.plain import plain, print_error
from trl_capo.saving import new_folder, write_data_set
from trl_capo.text_table import text_table
from trl_capo.verdicts import read_decisions, read_suspects
from trl_capo.weights import WEIGHT

DONE = ("keep", "flip", "drop")


@dataclass
class CleanArguments:
    """Which data set to clean, by what, and where to."""

    dataset_name: str | None = field(default=None, metadata={"help": "Pairs: hub name, local folder or file."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a hub data set."})
    dataset_split: str = field(default="train", metadata={"help": "The split that was audited."})
    output_dir: str | None = field(default=None, metadata={"help": "A new or empty folder for the data set."})
    decisions: str | None = field(default=None, metadata={"help": "JSONL file of decisions; they outrank all rules."})
    suspects: str | None = field(
        default=None, metadata={"help": "The audit's suspects, .parquet, .csv or .jsonl: needed by the options below."}
    )
    drop_top: str | None = field(default=None, metadata={"help": "Drop the worst: '10%%' of all pairs, or a number."})
    flip_top: str | None = field(default=None, metadata={"help": "Flip the worst: '5%%' of all pairs, or a number."})
    drop_above: float | None = field(default=None, metadata={"help": "Drop pairs with a score above this one."})
    flip_above: float | None = field(default=None, metadata={"help": "Flip pairs with a score above this one."})
    weight: bool = field(
        default=False,
        metadata={"help": "Add a column `weight`, 1 - 2 x score, at least 0, which CAPOTrainer honours."},
    )
    group_column: str | None = field(
        default="auto",
        metadata={"help": "Column to count by; 'auto': `language` where there is one; 'none': no groups."},
    )

    def __post_init__(self) -> None:
        self.group_column = parse_group_column(self.group_column)

    def rules(self) -> Rules:
        """The rules for the suspects."""
        return Rules(self.drop_top, self.flip_top, self.drop_above, self.flip_above, self.weight)

    def check(self) -> None:
        """Raise one ValueError that names everything that is missing or does not fit together."""
        missing = [name for name in ("dataset_name", "output_dir") if getattr(self, name) is None]
        problems = [f"{', '.join(missing)} missing: what to read, and where to write."] if missing else []
        given = self.rules().given()
        if given and self.suspects is None:
            named = ", ".join(f"{name}={value!r}" for name, value in given.items())
            problems.append(f"{named} without suspects: scores are needed. Give the file that `trl-capo audit` wrote.")
        if self.suspects is not None and not given:
            problems.append(f"suspects={self.suspects!r} without a rule. Give one of {', '.join(vars(Rules()))}.")
        if self.suspects is None and self.decisions is None and not given:
            problems.append("nothing to do: give decisions, or suspects and a rule.")
        problems += self.rules().problems()
        if problems:
            raise ValueError("\n".join(problems))


@dataclass(frozen=True)
class Result:
    """What was cleaned, the numbers of pairs of every group, by what was done with them, and of pairs with a score."""

    cleaned: Cleaned
    group_column: str | None
    counts: dict[str, Counter]
    scored: int


def clean_data_set(args: CleanArguments) -> Result:
    """Write the data set that the arguments describe.

    Raises:
        ValueError, OSError: something is missing or does not fit; the message is for the user.
    """
    args.check()
    output = new_folder(args.output_dir)
    processes()
    splits = load_preference_data(args.dataset_name, config=args.dataset_config)
    dataset = select_split(splits, args.dataset_split, "dataset_split")
    check_preference_data(**{args.dataset_split: dataset})
    column, labels = find_groups(dataset, args.group_column, args.dataset_split)
    decisions = None if args.decisions is None else read_decisions(args.decisions, dataset)
    suspects = None if args.suspects is None else read_suspects(args.suspects, dataset)
    cleaned = clean(dataset, decisions=decisions, suspects=suspects, rules=args.rules())
    counts: dict[str, Counter] = {label: Counter() for label in sorted(set(labels or []))}
    for label, what in zip(labels or [], cleaned.done, strict=bool(labels)):
        counts[label][what] += 1
    record = asdict(args) | {
        "fingerprint": fingerprint(dataset),
        **_numbers(Counter(cleaned.done)),
        "groups": {group: _numbers(count) for group, count in counts.items()},
        "versions": {"trl-capo": __version__, "datasets": version("datasets")},
    }
    files = {
        "clean.json": json.dumps(record, indent=2, ensure_ascii=False) + "\n",
        "changes.jsonl": "".join(json.dumps(change, ensure_ascii=False) + "\n" for change in cleaned.changes),
    }
    write_data_set(DatasetDict({**splits, args.dataset_split: cleaned.dataset}), files, output)
    return Result(cleaned, column, counts, len(suspects or {}))


def _numbers(count: Counter) -> dict[str, int]:
    return {"pairs": count.total()} | {what: count[what] for what in DONE}


def clean_table(result: Result) -> str:
    """A line a group and one for all pairs: pairs, and how many of them were kept, flipped and dropped."""
    rows = [[plain(result.group_column or "group"), "pairs", "kept", "flipped", "dropped"]]
    for group, count in (*result.counts.items(), ("all pairs", Counter(result.cleaned.done))):
        rows.append([plain(group), *(f"{number:,}" for number in _numbers(count).values())])
    return text_table(rows)


def make_parser() -> Parser:
    usage = "trl-capo clean [--config FILE.yaml] [--OPTION VALUE ...]"
    return Parser((CleanArguments,), prog="trl-capo clean", usage=usage)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    try:
        parser = make_parser()
        (args,), from_yaml, from_argv = parse(sys.argv[1:] if argv is None else argv, parser)
        refuse_unknown(from_yaml + from_argv, parser)
        result = clean_data_set(args)
    except (ValueError, OSError) as error:
        print_error("trl-capo clean", error)
        return 2
    print(clean_table(result))
    if args.weight:
        weights = result.cleaned.dataset[WEIGHT][:]
        print(f"Mean weight of the {len(weights):,} pairs that are left: {sum(weights) / len(weights):.3f}.")
    total = len(result.cleaned.done)
    if result.scored < total and (args.weight or args.drop_above is not None or args.flip_above is not None):
        weight = ", and their weight is 1" if args.weight else ""
        print(
            f"{total - result.scored:,} of {total:,} pairs have no score in {plain(args.suspects)}: no rule changed "
            f"them{weight}. The audit's suspects.parquet has the score of every pair that was trained on."
        )
    print(plain(f"Data set written to {args.output_dir}."))
    return 0


if __name__ == "__main__":
    sys.exit(main())
