"""What `trl-capo noise` does: write a data set whose preference pairs have noise of a known kind and amount.

    trl-capo noise --dataset_name pairs.jsonl --output_dir noisy --kind flip --rate 0.2
    trl-capo train --dataset_name noisy --model_name_or_path MODEL

One split gets the noise and the column `is_noisy`, the others are copied. The folder is in the form of `save_to_disk`,
with `noise.json` beside it, which says what was done; it appears whole or not at all. Not covered: streams.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version

from datasets import Dataset, DatasetDict

from trl_capo import __version__
from trl_capo.arguments import Parser, parse, refuse_unknown
from trl_capo.data import check_preference_data, load_preference_data, select_split
from trl_capo.groups import find_groups
from trl_capo.models import processes
from trl_capo.noise import IS_NOISY, inject_noise, noise_counts
from trl_capo.noise_arguments import NoiseCommandArguments
from trl_capo.plain import plain, print_error
from trl_capo.saving import new_folder, write_data_set
from trl_capo.text_table import text_table


@dataclass(frozen=True)
class Preparation:
    """The split with its noise, and the numbers of pairs and of noisy pairs of every group."""

    dataset: Dataset
    group_column: str | None
    counts: dict[str, tuple[int, int]]


def prepare(args: NoiseCommandArguments) -> Preparation:
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
    noisy = inject_noise(
        dataset, args.kind, args.rate, seed=args.seed, group_column=args.group_column, score_column=args.score_column
    )
    column, labels = find_groups(noisy, args.group_column, args.dataset_split)
    counts = noise_counts(labels, noisy[IS_NOISY])
    record = asdict(args) | {
        "pairs": len(noisy),
        "noisy": sum(noisy[IS_NOISY]),
        "groups": {group: {"pairs": pairs, "noisy": changed} for group, (pairs, changed) in counts.items()},
        "versions": {"trl-capo": __version__, "datasets": version("datasets")},
    }
    files = {"noise.json": json.dumps(record, indent=2, ensure_ascii=False) + "\n"}
    write_data_set(DatasetDict({**splits, args.dataset_split: noisy}), files, output)
    return Preparation(noisy, column, counts)


def noise_table(done: Preparation) -> str:
    """A line a group and one for all pairs: pairs, noisy pairs and their share."""
    total = {"all pairs": (len(done.dataset), sum(done.dataset[IS_NOISY]))}
    rows = [[plain(done.group_column or "group"), "pairs", "noisy", "%"]]
    for group, (pairs, noisy) in (*done.counts.items(), *total.items()):
        rows.append([plain(group), f"{pairs:,}", f"{noisy:,}", f"{100 * noisy / pairs:.1f}"])
    return text_table(rows)


def make_parser() -> Parser:
    usage = "trl-capo noise [--config FILE.yaml] [--OPTION VALUE ...]"
    return Parser((NoiseCommandArguments,), prog="trl-capo noise", usage=usage)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    try:
        parser = make_parser()
        (args,), from_yaml, from_argv = parse(sys.argv[1:] if argv is None else argv, parser)
        refuse_unknown(from_yaml + from_argv, parser)
        done = prepare(args)
    except (ValueError, OSError) as error:
        print_error("trl-capo noise", error)
        return 2
    print(noise_table(done))
    print(plain(f"Data set written to {args.output_dir}."))
    return 0


if __name__ == "__main__":
    sys.exit(main())
