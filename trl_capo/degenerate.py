"""Signs that a training goes nowhere, read from the means that are logged anyway, and what to try.

The thresholds were held against the training logs of runs of the study on the demo's data (docs/study.md: CAPO, DPO
and robust DPO, 0 to 40 % flips, one to three epochs). None had more than 56 % of a window's pairs contradicted, a mean
scale below 0.23 or, at a noise rate of 0.05 or more, a mean confidence above 0.99. Chosen rewards fell in all of them,
as they do in DPO: to -7.5 at most after one epoch, and to -10 and below in robust DPO and in CAPO's three epochs.
"""

from collections.abc import Mapping

MIN_PAIRS = 64
"""Windows are pooled until they have this many pairs: by chance alone, all of 4 are contradicted now and then."""
ALL_CONTRADICTED = 0.95
GIVEN_UP = 0.05
CERTAIN = 0.999
TELLING_RATE = 0.05
"""Below this noise rate a pair of which the model knows nothing has a confidence above 0.95 already."""
FALLEN = -10.0
"""In units of reward: at beta 0.1, chosen answers have become exp(100) times less likely."""


class DegenerationWatch:
    """Looks at the means of logging windows; every sign is told once."""

    def __init__(self) -> None:
        self._pairs, self._sums = 0, {}
        self._told: set[str] = set()

    def add(self, means: Mapping[str, float], pairs: int) -> list[str]:
        """Take in a window and return the new warnings.

        Args:
            means: over the window's pairs, by the names of `trl_capo.recorder`.
            pairs: how many they are.
        """
        self._pairs += pairs
        self._sums = {key: self._sums.get(key, 0.0) + pairs * value for key, value in means.items()}
        if self._pairs < MIN_PAIRS:
            return []
        pooled, count = {key: value / self._pairs for key, value in self._sums.items()}, self._pairs
        self._pairs, self._sums = 0, {}
        signs = {name: text for name, text in _signs(pooled, count).items() if name not in self._told}
        self._told |= signs.keys()
        return list(signs.values())


def _signs(means: Mapping[str, float], pairs: int) -> dict[str, str]:
    """What is wrong with the pairs of these means, by a name for each; NaN is left to others."""
    found = {}
    contradicted, scale = means["capo/contradicted"], means["capo/scale"]
    rate, confidence = means["capo/noise_rate"], means["capo/confidence"]
    chosen, rejected = means["rewards/chosen"], means["rewards/rejected"]
    if contradicted >= ALL_CONTRADICTED:
        found["contradicted"] = (
            f"{contradicted:.0%} of the last {pairs:,} pairs are contradicted: the model prefers their rejected "
            "answers, more than its reference does. Check that chosen and rejected are not swapped in the data, and "
            "that ref_model is the model that the training starts from; else lower the learning rate."
        )
    if rate > 0 and scale <= GIVEN_UP:
        found["given up"] = (
            f"the mean scale of the last {pairs:,} pairs is {scale:.3f}: nearly all labels are taken for flipped, and "
            "nothing is learned from them. Set a lower noise_rate or a higher confidence_temperature, and look at "
            "capo/contradicted: it tells how many pairs the model ranks against their label."
        )
    if rate >= TELLING_RATE and confidence >= CERTAIN:
        found["certain"] = (
            f"the mean confidence in the last {pairs:,} labels is {confidence:.4f} at a noise rate of {rate:.2f}: all "
            "scales are at their maximum and tell no pair from another. The model may have learned flipped labels by "
            "heart: train for fewer epochs, lower the learning rate, or set a higher beta or confidence_temperature."
        )
    if means.get("capo/weight") == 0:
        found["no weight"] = (
            f"the last {pairs:,} pairs all have the weight 0: nothing is learned from them. Look at the data's column "
            "`weight`."
        )
    if chosen <= FALLEN and rejected <= FALLEN and chosen <= rejected / 2:
        found["falling"] = (
            f"over the last {pairs:,} pairs the mean rewards are {chosen:.1f} for chosen and {rejected:.1f} for "
            "rejected answers: both fall together, so that the model comes to write neither (likelihood displacement, "
            "arXiv 2410.08847). Lower the learning rate, set a higher beta, or add the chosen answers' own likelihood "
            "to the loss: loss_type [sigmoid, sft]."
        )
    return found
