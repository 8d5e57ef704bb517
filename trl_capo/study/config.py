"""The plan of a study: a YAML file of methods, noise, seeds and learning rates, checked and unrolled into runs."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

from trl_capo.groups import parse_group_column
from trl_capo.study.checks import plan_problems
from trl_capo.value_types import type_problems
from trl_capo.yaml_files import read_yaml


@dataclass(frozen=True)
class Run:
    """One training: everything that it is made of beside the study's shared settings."""

    method: str
    noise: str
    seed: int
    epochs: float
    learning_rate: float

    @property
    def name(self) -> str:
        parts = (self.method, self.noise, f"seed{self.seed}", f"{self.epochs:g}ep")
        return re.sub(r"[/\\]", "_", "-".join(parts)) + f"-lr{self.learning_rate:.2e}"  # it names a folder


Trained = tuple[str, float]
"""A method and for how many epochs it is trained."""

PREPARATION = Run("dpo", "none", 0, 0, 0.0)
"""Of no epochs: it trains nothing, and fills the memory that the other runs share."""


LONGEST_NAME = 240
"""Of a run, in bytes: file systems have 255 for the name of a folder."""


def _bytes(name: str) -> int:
    return len(name.encode())


@dataclass
class StudyConfig:
    """The options of a study's YAML file; docs/study.md explains them with an example.

    Parameters:
        model_name_or_path, dataset_name: what is trained, and on what.
        output_dir: the study's folder; a study goes on where its folder says it was.
        methods: label -> `{method: a key of METHODS, option: value, ...}`; an option of `CAPOConfig` or of the method.
            The value `true_rate` stands for the share of pairs that the run's noise has changed.
        noise: label -> `{kind, rate, score_column}`, as `trl_capo.noise.inject_noise`.
        grid: blocks of `{methods, noise, seeds, epochs}`; every combination in a block is a run.
        learning_rates: those tried; with several, each method gets the best on the validation split, one for every
            number of epochs in the grid.
        tuning: `{noise, seeds}` of the runs that choose the learning rate, and `epochs` where shorter ones shall do.
        baseline: the method that others are compared with.
        training: options of `CAPOConfig` for all runs.
        lora: options of PEFT's `LoraConfig`; None trains the whole model.
        model: options of `from_pretrained`, such as `dtype`.
        group_column: as `CAPOConfig.group_column`.
        train_split, validation_split, test_split: the data set's splits.
        train_pairs, validation_pairs, test_pairs: take only so many from the front of the split; None for all.
        curve_points: evaluations on the validation split during a run.
        remember_frozen_layers: keep the output of the layers below the lowest trained one (`trl_capo.study.frozen`).

    Raises:
        ValueError: one message that names everything that cannot be used.
    """

    model_name_or_path: str
    dataset_name: str
    output_dir: str
    methods: dict[str, dict[str, Any]]
    noise: dict[str, dict[str, Any]]
    grid: list[dict[str, Any]]
    learning_rates: list[float]
    tuning: dict[str, Any] | None = None
    baseline: str = "dpo"
    training: dict[str, Any] = field(default_factory=dict)
    lora: dict[str, Any] | None = None
    model: dict[str, Any] = field(default_factory=dict)
    group_column: str | None = "auto"
    train_split: str = "train"
    validation_split: str = "validation"
    test_split: str = "test"
    train_pairs: int | None = None
    validation_pairs: int | None = None
    test_pairs: int | None = None
    curve_points: int = 4
    remember_frozen_layers: bool = False

    def __post_init__(self) -> None:
        self.group_column = parse_group_column(self.group_column)
        if isinstance(self.methods, Mapping):  # in YAML, a method without options is a label with nothing behind it
            self.methods = {label: {} if options is None else options for label, options in self.methods.items()}
        problems = plan_problems(self)
        if not problems:
            names = Counter(run.name for run in self.possible_runs())
            problems = [f"two runs would be called {name}: change a label." for name in names if names[name] > 1]
            longest = max(names, key=_bytes)
            if _bytes(longest) > LONGEST_NAME:
                problems.append(f"a run would be called {longest}, which no folder can be: shorten a label.")
        if problems:
            raise ValueError("the study cannot be run as it is:\n" + "\n".join(f"- {line}" for line in problems))

    @property
    def shared(self) -> dict[str, Any]:
        """What all runs have in common: a folder holds runs of one such setting only."""
        own = {"output_dir", "methods", "noise", "grid", "learning_rates", "tuning", "baseline"}
        return json.loads(json.dumps({f.name: getattr(self, f.name) for f in fields(self) if f.name not in own}))

    def settings(self, run: Run) -> dict[str, Any]:
        """Everything that decides a run's result, as JSON has it."""
        options = {"method": run.method, **self.methods.get(run.method, {})}
        inject = self.noise.get(run.noise, {"kind": "flip", "rate": 0})  # the preparation has none
        own = {**vars(run), "options": options, "inject": inject}
        return json.loads(json.dumps({**own, "shared": self.shared}))

    def trained(self) -> dict[Trained, set[str]]:
        """What has a learning rate of its own, each method with every number of epochs, and its noise in the grid."""
        noise: dict[Trained, set[str]] = {}
        for block in self.grid:
            for method in block["methods"]:
                noise.setdefault((method, block["epochs"]), set()).update(block["noise"])
        return noise

    def tuning_epochs(self, epochs: float) -> float:
        """How long the runs are that choose the learning rate of those of so many epochs."""
        return epochs if self.tuning is None else self.tuning.get("epochs", epochs)

    def tuning_runs(self) -> list[Run]:
        """The runs that choose the learning rates, the grid's among them; none where there is no choice.

        Of the noise that tuning names, the grid's own for the method and its epochs: all of it where there is none.
        Shorter runs, with `epochs` in tuning, are the same for all numbers of epochs, with all their noise.
        """
        if len(set(self.learning_rates)) == 1:
            return []
        plan = self.tuning
        runs = [
            Run(method, noise, seed, self.tuning_epochs(epochs), rate)
            for seed in plan["seeds"]
            for noise in plan["noise"]
            for (method, epochs), own in self.trained().items()
            if noise in own or own.isdisjoint(plan["noise"])
            for rate in self.learning_rates
        ]
        return list(dict.fromkeys(runs))

    def grid_runs(self, learning_rate: Mapping[Trained, float]) -> list[Run]:
        """The runs of the grid with these learning rates: block by block, all methods of a seed together."""
        runs = [
            Run(method, noise, seed, block["epochs"], learning_rate[method, block["epochs"]])
            for block in self.grid
            for seed in block["seeds"]
            for noise in block["noise"]
            for method in block["methods"]
        ]
        return list(dict.fromkeys(runs))

    def possible_runs(self) -> list[Run]:
        """Every run there can be, whatever learning rates are chosen."""
        rates = [dict.fromkeys(self.trained(), rate) for rate in dict.fromkeys(self.learning_rates)]
        return list(dict.fromkeys(self.tuning_runs() + [run for chosen in rates for run in self.grid_runs(chosen)]))


def read_study(path: str, overrides: Mapping[str, Any]) -> StudyConfig:
    """Read a study's YAML file; `overrides` that are not None take the place of its values.

    Raises:
        ValueError, OSError: it cannot be read or used; the message is for the user.
    """
    content = read_yaml(path)
    content = {**content, **{key: value for key, value in overrides.items() if value is not None}}
    known = get_type_hints(StudyConfig)
    unknown = [key for key in content if key not in known]
    required = ("model_name_or_path", "dataset_name", "output_dir", "methods", "noise", "grid", "learning_rates")
    missing = [key for key in required if key not in content]
    if unknown or missing:
        lines = [f"unknown: {', '.join(unknown)}"] * bool(unknown) + [f"missing: {', '.join(missing)}"] * bool(missing)
        raise ValueError(f"{path} is not a study: options {'; '.join(lines)}.")
    scalars = {name: hint for name, hint in known.items() if hint in (str, str | None, bool)}
    problems = type_problems(content, scalars)
    if problems:
        raise ValueError("\n".join([f"{path} is not a study:", *problems]))
    return StudyConfig(**content)
