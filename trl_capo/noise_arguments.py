"""The arguments of noise: of `trl-capo noise`, and those that `trl-capo train` has for it."""

import json
from dataclasses import dataclass, field
from typing import Any

from trl_capo.groups import parse_group_column
from trl_capo.noise import KINDS

_RATE_HELP = 'share of the pairs to change, in [0, 1); or one per group, as JSON: \'{"sw": 0.4, "*": 0.1}\''
_SCORE_HELP = "of 'flip_ambiguous': the column of scores; the smaller |score|, the likelier the flip"


def _parse_rate(option: str, value: Any) -> Any:
    """The option's value: a number or a mapping, on a command line as JSON. Its range is checked with the data."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, object_pairs_hook=_each_once)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{option}={value!r}: a rate is a number, or a mapping from groups to numbers written as JSON, such as "
            '\'{"sw": 0.4, "*": 0.1}\'.'
        ) from error
    except ValueError as error:
        raise ValueError(f"{option}={value!r}: {error}") from error


def _each_once(entries: list[tuple[str, Any]]) -> dict[str, Any]:
    """The mapping; as in YAML, a key that comes twice is an error."""
    names = [name for name, _ in entries]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"{', '.join(map(repr, sorted(twice)))} comes twice. Give each group one rate.")
    return dict(entries)


@dataclass
class NoiseArguments:
    """Noise to put into the training pairs, and never into those of an evaluation."""

    inject_noise: str | None = field(
        default=None, metadata={"help": f"Noise to put into the training pairs, to study it: {', '.join(KINDS)}."}
    )
    # `str` second: the parser takes it for the type, so that a command line can say a number or a mapping.
    inject_rate: float | str | dict | None = field(default=None, metadata={"help": f"Of inject_noise: {_RATE_HELP}."})
    inject_seed: int = field(default=0, metadata={"help": "Of inject_noise: seed of the draws."})
    inject_score_column: str | None = field(default=None, metadata={"help": f"Of inject_noise: {_SCORE_HELP}."})

    def __post_init__(self) -> None:
        self.inject_rate = _parse_rate("inject_rate", self.inject_rate)
        if self.inject_noise is None:
            given = {"inject_rate": self.inject_rate, "inject_score_column": self.inject_score_column}
            given |= {"inject_seed": self.inject_seed or None}
            named = [f"{name}={value!r}" for name, value in given.items() if value is not None]
            if named:
                raise ValueError(
                    f"{', '.join(named)} without inject_noise: there is no noise to inject. Give inject_noise as one "
                    f"of {', '.join(KINDS)}, or leave out the rest."
                )


@dataclass
class NoiseCommandArguments:
    """Which data set to write with which noise."""

    dataset_name: str | None = field(default=None, metadata={"help": "Pairs: hub name, local folder or file."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a hub data set."})
    dataset_split: str = field(default="train", metadata={"help": "The split to inject noise into."})
    output_dir: str | None = field(default=None, metadata={"help": "A new or empty folder for the data set."})
    kind: str | None = field(default=None, metadata={"help": f"Kind of noise: {', '.join(KINDS)}."})
    rate: float | str | dict | None = field(default=None, metadata={"help": f"The {_RATE_HELP}."})
    seed: int = field(default=0, metadata={"help": "Seed of the draws."})
    group_column: str | None = field(
        default="auto",
        metadata={"help": "Column of the groups; 'auto': `language` where there is one; 'none': no groups."},
    )
    score_column: str | None = field(default=None, metadata={"help": _SCORE_HELP[0].upper() + _SCORE_HELP[1:] + "."})

    def __post_init__(self) -> None:
        self.group_column = parse_group_column(self.group_column)
        self.rate = _parse_rate("rate", self.rate)

    def check(self) -> None:
        """Raise one ValueError that names what is missing."""
        missing = [name for name in ("dataset_name", "output_dir", "kind", "rate") if getattr(self, name) is None]
        if missing:
            raise ValueError(f"{', '.join(missing)} missing: what to read, where to write, which noise and how much.")
