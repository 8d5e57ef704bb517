"""What a reader of an audit must know of its log: what it lacks, and where the model it came from may mislead."""

from trl_capo.audit.suspects import Ranking
from trl_capo.pair_log import Log
from trl_capo.plain import first_few

FEWEST = 100
"""Pairs of a group whose reference is judged: in fewer, chance would make too many references look wrong."""


def remarks_on(log: Log, ranking: Ranking) -> list[str]:
    """All of them, a line each."""
    return [*_gaps(log), *(_misled(ranking) if log.info.asks_reference else [])]


def _gaps(log: Log) -> list[str]:
    """What the log lacks, as far as its steps tell, and what that means for an audit."""
    found = []
    if log.first_step > 1:
        found.append(
            f"The log begins with step {log.first_step:,}. What it says of first sight, before the model had learned "
            "from a pair, is that only of pairs that were not trained on in earlier steps."
        )
    if log.gaps:
        gaps = first_few(f"{first:,} to {last:,}" if first < last else f"{first:,}" for first, last in log.gaps)
        found.append(
            f"The log lacks steps {gaps}: files are gone, or nothing was logged then. Pairs of these steps count as "
            "seen less often, or as never seen."
        )
    return found


def _misled(ranking: Ranking) -> list[str]:
    """Groups in which the reference, of which the training asked what labels are wrong, may be worse than a coin.

    Of a group's labels a share r is right, and of its better answers the reference prefers a share a. It prefers a
    share r (1 - a) + (1 - r) a of the rejected answers: with r above half that is more than half only if a is less.
    """
    judged = ranking.judgement
    against = ranking.pairs.reference_margin < 0
    found = []
    for place, name in enumerate(judged.groups.tolist()):
        member = judged.place == place
        share = against[member].mean()
        if member.sum() >= FEWEST and share > 0.5:
            found.append(f"{name or 'pairs without a group'} ({share:.0%})")
    if not found:
        return []
    return [
        f"The reference prefers the rejected answer of most pairs in {first_few(found)}. Unless most labels are wrong "
        "there, or it is chance, it is wrong itself; and the training asked it which labels to believe, so that right "
        "ones may look wrong. A log trained with use_reference_margin: false is safe from that."
    ]
