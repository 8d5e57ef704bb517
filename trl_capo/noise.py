"""Noise of a known kind and amount, put into preference pairs on purpose.

To measure how a method stands noise, the noise must be known pair by pair. Every function here takes a
`datasets.Dataset` and returns one with the same rows in the same order and a new column `is_noisy`, true exactly for
the rows that were changed. Training never sees that column. Which rows: draws.py. What happens to columns that belong
to an answer, and the kinds of noise in full: docs/noise.md.

Not covered: streams, which would have to be read twice.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import compress
from typing import Any

import numpy as np
from datasets import Dataset

from trl_capo.answers import Answer, answer_start, near_tie, paired_columns, question
from trl_capo.draws import Rate, check_rate, flip_probabilities, row_rates, uniform_draws
from trl_capo.noise_checks import IS_NOISY, checked_dataset, labels_for, row_labels, row_scores
from trl_capo.row_changes import answer_columns, change_rows, swap_answers

logger = logging.getLogger(__name__)

KINDS = ("flip", "flip_ambiguous", "near_tie", "wrong_language")
_DONORS_TRIED = 100
_DESC = "Injecting noise"
_Change = Callable[[int, Mapping[str, Any]], Any]


def inject_noise(
    dataset: Dataset,
    kind: str,
    rate: Rate,
    *,
    seed: int = 0,
    group_column: str | None = "auto",
    score_column: str | None = None,
) -> Dataset:
    """Inject noise by the name of its kind.

    Args:
        dataset: preference pairs.
        kind: "flip" (`flip_labels`), "flip_ambiguous" (`flip_ambiguous`), "near_tie" (`replace_rejected`) or
            "wrong_language" (`wrong_language_chosen`).
        rate: share of the pairs to change, in [0, 1), or a mapping from groups to shares; the key "*" stands for all
            groups that are not named, which otherwise stay as they are. 0 changes nothing.
        seed: of the draws; a whole number, 0 or more.
        group_column: the column of the groups, "auto" for `language` where there is one, or None.
        score_column: of "flip_ambiguous" alone, and needed there.

    Raises:
        ValueError: something does not fit; the message names the option, its value, the reason and the remedy.
    """
    refuse_noise(kind, rate, score_column)
    options = {"seed": seed, "group_column": group_column}
    if kind == "flip_ambiguous":
        return flip_ambiguous(dataset, rate, score_column=score_column, **options)
    inject = {"flip": flip_labels, "near_tie": replace_rejected, "wrong_language": wrong_language_chosen}
    return inject[kind](dataset, rate, **options)


def refuse_noise(kind: str, rate: Rate, score_column: str | None) -> None:
    """Refuse what cannot be asked of `inject_noise`, whatever the data are; all problems in one ValueError."""
    problems = []
    if kind not in KINDS:
        problems.append(f"kind={kind!r}: there is no such noise. Choose one of {', '.join(map(repr, KINDS))}.")
    elif kind != "flip_ambiguous" and score_column is not None:
        problems.append(
            f"score_column={score_column!r}: noise of the kind {kind!r} uses no scores. Leave it out, or choose "
            "'flip_ambiguous'."
        )
    try:
        check_rate(rate)
    except ValueError as error:
        problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))


def flip_labels(dataset: Dataset, rate: Rate, *, seed: int = 0, group_column: str | None = "auto") -> Dataset:
    """Swap chosen and rejected at a rate, with every pair of columns that is named after them.

    A pair whose answers are equal has no label to flip and stays as it is. Arguments: `inject_noise`.
    """
    dataset = checked_dataset(dataset, rate)
    rates = row_rates(rate, len(dataset), labels_for(rate, dataset, group_column))
    return _swap(dataset, uniform_draws(seed, len(dataset)) < rates)


def flip_ambiguous(
    dataset: Dataset, rate: Rate, *, score_column: str | None, seed: int = 0, group_column: str | None = "auto"
) -> Dataset:
    """Flip as `flip_labels` does, ambiguous pairs more often: P(flip) falls with |score|, and its mean is the rate.

    `P_i = sigmoid(a - 2 |score_i| / m)`: m is the mean |score| of the data set, and a is such that the mean of P is
    the rate, over the data set or, with a mapping, over each group. If all scores are 0, P is the rate. At high rates
    the most ambiguous labels are wrong more often than not.

    Args:
        score_column: how sure the label is, as a number of either sign: a judge's score of chosen less that of
            rejected, or the margin of a reference model. The others: `inject_noise`.
    """
    dataset = checked_dataset(dataset, rate)
    scores, labels = row_scores(dataset, score_column), labels_for(rate, dataset, group_column)
    probabilities = flip_probabilities(scores, row_rates(rate, len(dataset), labels), labels)
    return _swap(dataset, uniform_draws(seed, len(dataset)) < probabilities)


def replace_rejected(dataset: Dataset, rate: Rate, *, seed: int = 0, group_column: str | None = "auto") -> Dataset:
    """Make pairs uninformative at a rate: rejected becomes chosen with one letter doubled, in the last message.

    Seed and row decide which letter. An answer without text, such as a tool call, stays. Arguments: `inject_noise`.
    """
    dataset = checked_dataset(dataset, rate, replaced="rejected")
    rates = row_rates(rate, len(dataset), labels_for(rate, dataset, group_column))
    places = uniform_draws(seed, len(dataset), stream=1)

    def change(index: int, row: Mapping[str, Any]) -> Answer | None:
        start = answer_start(row["chosen"], row["rejected"], "prompt" in row)
        answer = near_tie(row["chosen"], start, places[index])
        return None if answer == row["rejected"] else answer

    return _replace(dataset, uniform_draws(seed, len(dataset)) < rates, "rejected", change)


def wrong_language_chosen(
    dataset: Dataset, rate: Rate, *, seed: int = 0, group_column: str | None = "auto"
) -> Dataset:
    """Replace chosen, at a rate, by the chosen answer of a row of another group.

    It comes from a row with the same prompt (system messages aside) where there is one, else from any row; seed and
    row decide which. It differs from both answers of the pair; where none is found, the pair stays as it is.
    Arguments: `inject_noise`.
    """
    dataset = checked_dataset(dataset, rate, replaced="chosen")
    labels = row_labels(dataset, group_column)
    if labels is None or len(set(labels)) < 2:
        found = "there is no group column" if labels is None else f"all rows belong to the group {labels[0]!r}"
        raise ValueError(
            f"group_column={group_column!r}: an answer in a wrong language comes from another group, and {found}. "
            "Name a column that tells at least two languages apart."
        )
    rows = dataset.select_columns(answer_columns(dataset))
    asking: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        asking.setdefault(question(row), []).append(index)
    by_group = np.argsort(labels, kind="stable")
    ends = {labels[row]: place + 1 for place, row in enumerate(by_group)}
    sizes = {label: labels.count(label) for label in ends}
    places = uniform_draws(seed, len(dataset), stream=1)

    def change(index: int, row: Mapping[str, Any]) -> Answer | None:
        label, start = labels[index], answer_start(row["chosen"], row["rejected"], "prompt" in row)
        same_prompt = [donor for donor in asking[question(row)] if labels[donor] != label]
        any_prompt = np.roll(by_group, -ends[label])[: len(labels) - sizes[label]]
        for donors in (same_prompt, any_prompt):
            for turn in range(min(len(donors), _DONORS_TRIED)):
                donor = rows[int(donors[(int(places[index] * len(donors)) + turn) % len(donors)])]
                theirs = donor["chosen"][answer_start(donor["chosen"], donor["rejected"], "prompt" in donor) :]
                answer = row["chosen"][:start] + theirs
                if theirs and answer not in (row["chosen"], row["rejected"]):
                    return answer
        return None

    return _replace(dataset, uniform_draws(seed, len(dataset)) < row_rates(rate, len(rows), labels), "chosen", change)


def _swap(dataset: Dataset, drawn: np.ndarray) -> Dataset:
    """Swap the answers of the drawn rows, and all columns that are named after them."""
    return _marked(*swap_answers(dataset, np.flatnonzero(drawn), _DESC), drawn)


def _replace(dataset: Dataset, drawn: np.ndarray, answer: str, change: _Change) -> Dataset:
    """Replace an answer of the drawn rows; what other columns say of it is not known of the new one: null."""
    pairs = paired_columns(dataset.column_names)
    own = list(pairs if answer == "chosen" else pairs.values())
    unknown = {name: None for name in own if name != answer}

    def replace(index: int, row: Mapping[str, Any]) -> dict[str, Any] | None:
        changed = change(index, row)
        return None if changed is None else unknown | {answer: changed}

    sources = {"rejected": "chosen"} if answer == "rejected" else {}
    return _marked(*change_rows(dataset, np.flatnonzero(drawn), replace, own, sources, _DESC), drawn)


def _marked(dataset: Dataset, changed: set[int], drawn: np.ndarray) -> Dataset:
    """The data set with `is_noisy`, true for the changed rows; warns of drawn ones that could not be changed."""
    if len(changed) < drawn.sum():
        logger.warning(
            f"{drawn.sum() - len(changed):,} of {drawn.sum():,} drawn pairs cannot be changed and stay as they are "
            "(docs/noise.md says which)"
        )
    return dataset.add_column(IS_NOISY, [index in changed for index in range(len(dataset))])


def noise_counts(labels: Sequence[str] | None, is_noisy: Iterable[bool]) -> dict[str, tuple[int, int]]:
    """The numbers of pairs and of noisy pairs of every group, sorted by its name; without groups, nothing."""
    pairs, noisy = Counter(labels), Counter(compress(labels or [], is_noisy))
    return {label: (pairs[label], noisy[label]) for label in sorted(pairs)}
