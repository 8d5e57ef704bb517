"""Define the plan of a study: methods, noise, seeds and learning rates, and the runs that they make."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import fmean
from typing import Any

from trl_capo.core.pairs import parse_column
from trl_capo.data.clean import RULES
from trl_capo.study.methods import METHODS

RESULT = "result.json"
MethodBudget = tuple[str, float]  # a method and its number of epochs; each pair has a learning rate of its own


@dataclass(frozen=True)
class Run:
    """One training run: what it does not share with the other runs of the study."""

    method: str
    noise: str
    seed: int
    epochs: float
    learning_rate: float

    @property
    def name(self) -> str:
        name = f"{self.method}-{self.noise}-seed{self.seed}-{self.epochs:g}ep-lr{self.learning_rate:.2e}"
        return name.replace("/", "_")


CACHE_RUN = Run("dpo", "none", 0, 0, 0.0)  # a run of no epochs, which fills the caches that the other runs share


@dataclass
class StudyPlan:
    """The options of a study's YAML file, which docs/study.md explains; ValueError if the plan cannot be run."""

    model_name_or_path: str
    dataset_name: str
    output_dir: str
    methods: dict[str, Any]
    noise: dict[str, Any]
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
    remember_frozen_layers: bool = False

    def __post_init__(self) -> None:
        self.group_column = parse_column(self.group_column)
        if len(self.learning_rates) > 1 and not self.tuning:
            raise ValueError(f"learning_rates={self.learning_rates} needs tuning runs, which select one of them")
        try:
            self.learning_rates = [float(rate) for rate in self.learning_rates]
            self.methods = {label: {"method": label} | (options or {}) for label, options in self.methods.items()}
            for run in self.possible_runs():
                self.noise[run.noise]["rate"]
                label, options = run.method, self.methods[run.method]
                if (method := METHODS.get(options["method"])) is None:
                    raise ValueError(f"methods: {label}: there is no such method; choose one of {', '.join(METHODS)}")
                fixed = {"max_length", "truncation_mode"} | ({"loss_type", "loss_weights"} if method.loss else set())
                if wrong := fixed & set(options):
                    raise ValueError(f"methods: {label}: {', '.join(wrong)} cannot be set for this method")
                if wrong := {*options.get("clean", {})} - {*RULES}:
                    raise ValueError(f"methods: {label}: clean: {', '.join(wrong)} is none of {', '.join(RULES)}")
                if method.needs_whole_batch and (self.training | options).get("gradient_accumulation_steps", 1) != 1:
                    raise ValueError(f"methods: {label} needs whole batches, so gradient_accumulation_steps must be 1")
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"methods, noise, grid or tuning of the study: missing or misplaced: {error}") from error
        if self.baseline not in self.methods:
            raise ValueError(f"baseline={self.baseline!r} is not one of the methods ({', '.join(self.methods)})")

    def folder(self, run: Run) -> Path:
        return Path(self.output_dir) / "runs" / run.name

    def settings(self, run: Run) -> dict[str, Any]:
        """Return everything that determines the result of a run, as JSON stores it."""
        own = {"output_dir", "methods", "noise", "grid", "learning_rates", "tuning", "baseline"}
        shared = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in own}
        options = self.methods.get(run.method, {"method": run.method})
        inject = self.noise.get(run.noise, {"kind": "flip", "rate": 0})  # CACHE_RUN has no noise
        return json.loads(json.dumps({**vars(run), "options": options, "inject": inject, "shared": shared}))

    def result(self, run: Run) -> dict[str, Any] | None:
        """Return the result of a run, None if it is not finished; ValueError if it was made with other settings."""
        path = self.folder(run) / RESULT
        if not path.is_file():
            return None
        result = json.loads(path.read_text(encoding="utf-8"))
        made, now = (settings | settings["shared"] for settings in (result["settings"], self.settings(run)))
        other = [f"{name}={value!r}" for name, value in made.items() if value != now.get(name) and name != "shared"]
        if other:
            raise ValueError(
                f"output_dir={self.output_dir!r}: the run {run.name} was made with {', '.join(other)}. Choose another "
                "output_dir or label, or delete the folder of the run"
            )
        return result

    def budgets(self) -> dict[MethodBudget, set[str]]:
        """Return what needs a learning rate, with its kinds of noise in the grid."""
        noise: dict[MethodBudget, set[str]] = {}
        for block in self.grid:
            for method in block["methods"]:
                noise.setdefault((method, block["epochs"]), set()).update(block["noise"])
        return noise

    def tuning_runs(self) -> list[Run]:
        """Return the runs that select learning rates, on the noise that the grid has for a method, or else on all."""
        if len(set(self.learning_rates)) == 1:
            return []
        runs = [
            Run(method, noise, seed, epochs, rate)
            for seed in self.tuning["seeds"]
            for noise in self.tuning["noise"]
            for (method, epochs), own in self.budgets().items()
            if noise in own or own.isdisjoint(self.tuning["noise"])
            for rate in self.learning_rates
        ]
        return list(dict.fromkeys(runs))

    def grid_runs(self, learning_rates: Mapping[MethodBudget, float]) -> list[Run]:
        """Return the runs of the grid whose learning rates are known, block by block and seed by seed."""
        runs = [
            Run(method, noise, seed, block["epochs"], learning_rates[method, block["epochs"]])
            for block in self.grid
            for seed in block["seeds"]
            for noise in block["noise"]
            for method in block["methods"]
            if (method, block["epochs"]) in learning_rates
        ]
        return list(dict.fromkeys(runs))

    def possible_runs(self) -> list[Run]:
        """Return all runs of the study, whichever learning rates are selected."""
        grids = [self.grid_runs(dict.fromkeys(self.budgets(), rate)) for rate in self.learning_rates]
        return list(dict.fromkeys([*self.tuning_runs(), *(run for grid in grids for run in grid)]))

    def validation_accuracies(self) -> dict[MethodBudget, dict[float, float]]:
        """Return the mean accuracy of every learning rate at the end of the tuning runs, if all are finished."""
        found: dict[MethodBudget, dict[float, list[float]]] = {budget: {} for budget in self.budgets()}
        for run in self.tuning_runs():
            result = self.result(run)
            accuracies = found[run.method, run.epochs].setdefault(run.learning_rate, [])
            accuracies.append(result["validation_accuracy"] if result else math.nan)
        means = {budget: {rate: fmean(values) for rate, values in rates.items()} for budget, rates in found.items()}
        return {budget: rates for budget, rates in means.items() if rates and not math.isnan(sum(rates.values()))}

    def selected_rates(self) -> dict[MethodBudget, float]:
        """Return the best learning rates, the lower of two equals, where they are known, or the plan's only one."""
        if not self.tuning_runs():
            return dict.fromkeys(self.budgets(), self.learning_rates[0])
        return {key: max(sorted(rates), key=rates.__getitem__) for key, rates in self.validation_accuracies().items()}
