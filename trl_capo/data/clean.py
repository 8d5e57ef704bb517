"""Clean preference data by what an audit found: flip, drop or weight pairs, and record every change.

    trl-capo clean --dataset_name pairs.jsonl --output_dir cleaned --decisions decisions.jsonl
    trl-capo clean --dataset_name pairs.jsonl --output_dir cleaned --suspects suspects.parquet --drop_top 10%

Decisions made by hand override rules on scores, and where two rules overlap, pairs are flipped, not dropped.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset, Value

from trl_capo.common.command import parse, run
from trl_capo.common.fingerprint import fingerprint
from trl_capo.core.pairs import SWAPPED, TRUSTED, WEIGHT, read_trust
from trl_capo.data.edit import EditArguments, count_changes, load_splits, save_splits, swap_answers
from trl_capo.data.load import check_pairs, load_pairs
from trl_capo.data.noise import IS_NOISY

logger = logging.getLogger(__name__)

Table = pd.DataFrame | None
DECISIONS = {"keep": "kept", "flip": "flipped", "drop": "dropped"}
RULES = ("drop_top", "drop_above", "flip_top", "flip_above")  # later ones override earlier ones


@dataclass
class CleanArguments:
    """What is known about the labels, and rules for suspects on which nobody decided."""

    decisions: str | None = field(default=None, metadata={"help": "Decisions: a .jsonl, .csv or .parquet file."})
    suspects: str | None = field(default=None, metadata={"help": "Suspects: a .parquet, .csv or .jsonl file."})
    drop_top: str | None = field(default=None, metadata={"help": "Drop the worst: '10%%' of all pairs, or a number."})
    drop_above: float | None = field(default=None, metadata={"help": "Drop pairs with a score above this, in [0, 1)."})
    flip_top: str | None = field(default=None, metadata={"help": "Flip the worst: '5%%' of all pairs, or a number."})
    flip_above: float | None = field(default=None, metadata={"help": "Flip pairs with a score above this, in [0, 1)."})
    weight: bool = field(default=False, metadata={"help": "Add a column `weight`: 1 - 2 x score, at least 0."})
    trusted: bool = field(default=False, metadata={"help": "Mark the pairs decided by hand in a column `trusted`."})


def clean(
    dataset: Dataset, *, decisions: Table = None, suspects: Table = None, rules: CleanArguments | None = None
) -> tuple[Dataset, pd.DataFrame]:
    """Flip, drop and weight pairs.

    A flip swaps all columns that belong to the answers, and negates a boolean column `is_noisy`. A label that is wrong
    with probability p has the weight 1 - 2 p, its expected sign, or 0 if that is negative; p is the score, or 1 minus
    the score after a rule flipped the label. Pairs without a score, or decided by hand, have weight 1. `trusted` is
    true for pairs decided by hand, `trusted_swapped` for those flipped, beside earlier ones. Tables: `read_table`.

    Returns the remaining pairs in their order, and N rows with `decision` ("keep", "flip" or "drop"), `why` and
    `score`. Raises ValueError if a rule is invalid, or no pair with a weight is left.
    """
    rules = rules or CleanArguments()
    plan = _plan(len(dataset), decisions, suspects, rules)
    flips, kept = (plan["decision"] == "flip").to_numpy(), np.flatnonzero(plan["decision"] != "drop")
    if not len(kept):
        raise ValueError("every pair would be dropped. Drop fewer.")
    cleaned = swap_answers(dataset.with_format(None), np.flatnonzero(flips))
    if cleaned.features.get(IS_NOISY) == Value("bool"):
        truth = [old if old is None else old ^ flip for old, flip in zip(cleaned[IS_NOISY], flips, strict=True)]
        cleaned = cleaned.remove_columns(IS_NOISY).add_column(IS_NOISY, truth, feature=Value("bool"))
    if rules.weight:
        wrong = plan["score"].where(plan["decision"] == "keep", 1 - plan["score"])
        weights = (1 - 2 * wrong).clip(lower=0).fillna(1.0)
        weights[[] if decisions is None else decisions.index] = 1.0
        if WEIGHT in dataset.column_names or not weights[kept].any():
            raise ValueError("weight: the data have such a column, or all weights would be 0. Leave the option out.")
        cleaned = cleaned.add_column(WEIGHT, weights.to_numpy())
    if rules.trusted:
        trust, decided = read_trust(cleaned), [] if decisions is None else decisions.index
        trust[decided] = np.where((trust[decided] == 3) ^ flips[decided], 3, 2)
        for column, values in ((TRUSTED, trust > 0), (SWAPPED, [{2: False, 3: True}.get(code) for code in trust])):
            cleaned = cleaned.remove_columns({column} & {*cleaned.column_names})
            cleaned = cleaned.add_column(column, values, feature=Value("bool"))
    return cleaned.select(kept), plan


def read_table(option: str, name: str, dataset: Dataset) -> pd.DataFrame:
    """Read `decision` and `note` of `option` "decisions", or `score` and `reasons` of "suspects", worst first.

    The column `pair` becomes the index; the last line on a pair counts. `note` and `reasons` may be missing. Raises
    ValueError if the file cannot be read, or was made for other data.
    """
    column, more = ("score", "reasons") if option == "suspects" else ("decision", "note")
    table = load_pairs(name, option=option)["train"].to_pandas()
    table = table.reindex(columns=["pair", column, more, "fingerprint"])
    valid = table[column].between(0, 1) if column == "score" else table[column].isin(DECISIONS)
    if not (valid & table["pair"].isin(range(len(dataset)))).all():
        raise ValueError(f"{option}={name!r}: a line has no 'pair' of the data, or no valid {column!r}.")
    prints = set(table["fingerprint"].dropna())
    if prints - {fingerprint(dataset)}:
        raise ValueError(f"{option}={name!r} was made for other data (fingerprint). Give the data that were audited.")
    if not prints:
        logger.warning(f"{option}={name!r} has no fingerprint, so nothing shows whether it was made for these data.")
    table = table.drop_duplicates("pair", keep="last").set_index("pair")
    return table.sort_values("score", ascending=False, kind="stable") if column == "score" else table


def _plan(rows: int, decisions: Table, suspects: Table, rules: CleanArguments) -> pd.DataFrame:
    plan = pd.DataFrame({"decision": "keep", "why": "", "score": np.nan}, index=pd.RangeIndex(rows, name="pair"))
    if suspects is not None:
        plan.loc[suspects.index, "score"] = suspects["score"]
        reasons = suspects.reindex(columns=["reasons"])["reasons"].explode().dropna().groupby(level=0).agg(list)
        for option in RULES:
            if getattr(rules, option) is not None:
                worst, why = _select(option, getattr(rules, option), suspects["score"], rows)
                plan.loc[worst, "decision"] = option.partition("_")[0]
                plan.loc[worst, "why"] = ["; ".join([why, *reasons.get(pair, [])]) for pair in worst]
    if decisions is not None:
        notes = decisions.reindex(columns=["note"])["note"].astype("string")
        plan.loc[decisions.index, "decision"] = decisions["decision"]
        plan.loc[decisions.index, "why"] = "decided by hand" + (": " + notes).fillna("")
    return plan


def _select(option: str, value: Any, scores: pd.Series, rows: int) -> tuple[pd.Index, str]:
    """Return the rows that a rule selects, and the rule; scores are sorted, the highest first."""
    if option.endswith("above"):
        if not 0 <= value < 1:
            raise ValueError(f"{option}={value}: scores lie in [0, 1]. Give a number in [0, 1).")
        return scores.index[scores > value], f"{option}={value}"
    try:
        text = str(value)
        number = int(rows * Decimal(text[:-1]) / 100) if text.endswith("%") else int(text)
    except (ArithmeticError, ValueError):
        number = 0
    if not 0 < number <= len(scores):
        raise ValueError(f"{option}={value!r}: give a share such as 10%, or a number up to {len(scores)}.")
    return scores.index[:number], f"{option}={value}, the worst {number:,} of {rows:,} pairs"


def _run(argv: Sequence[str]) -> None:
    data, args = parse(argv, (EditArguments, CleanArguments), "trl-capo clean")
    ruled = args.weight or any(getattr(args, option) is not None for option in RULES)
    if (args.suspects is not None) != ruled or (args.suspects is None and args.decisions is None):
        raise ValueError(f"give decisions, or suspects with a rule ({', '.join(RULES)}, weight), or both.")
    splits, dataset = load_splits(data)
    for warning in check_pairs(dataset, data.dataset_split):
        logger.warning(warning)
    files = {"decisions": args.decisions, "suspects": args.suspects}
    tables = {option: read_table(option, name, dataset) for option, name in files.items() if name}
    cleaned, plan = clean(dataset, **tables, rules=args)
    marks = pd.DataFrame({decision: plan["decision"] == decision for decision in DECISIONS})
    record = count_changes(data, dataset, marks, list(DECISIONS.values())) | asdict(args)
    record["fingerprint"] = fingerprint(dataset)
    if "suspects" in tables and plan["score"].isna().any():
        print(f"{plan['score'].isna().sum():,} of {len(plan):,} pairs have no score; no rule applies to them.")
    changed = plan[plan["decision"] != "keep"].reset_index()
    if any(getattr(args, option) is not None for option in RULES):
        print("Labels that were changed by score agree with what judged them: noise rates found later are too low.")
    ids = dataset.select(changed["pair"])["id"] if "id" in dataset.column_names else [None] * len(changed)
    ids = [name if isinstance(name, int | str | None) else str(name) for name in ids]
    changed.insert(1, "id", pd.Series(ids, dtype=object))
    changes = changed.to_json(orient="records", lines=True, force_ascii=False, double_precision=15).lstrip()
    save_splits(data, {**splits, data.dataset_split: cleaned}, {"clean.json": record, "changes.jsonl": changes})


def main(argv: Sequence[str]) -> int:
    return run("trl-capo clean", _run, argv)
