"""The rooms of the package: arrows go down only, read from the imports themselves."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "trl_capo"

# From the bottom up. A module may import from lower layers, and within its own only what stands before it there.
LAYERS = [
    ["losses", "agreement", "metrics", "statistics", "fonts", "plain", "citation", "memory", "precision"],
    ["reference", "messages", "paths", "cells", "data_files", "damaged_files", "value_types", "yaml_files"],
    ["degenerate", "late_problems", "memory_table", "repeats", "text_table", "line_types"],
    ["plots", "groups", "answers", "draws", "config", "arguments", "evaluate_arguments", "launch", "lenient"],
    ["checkpoints", "optimiser", "stand_in"],
    ["data", "weights", "noise_checks", "row_changes", "saving", "noise", "noise_arguments"],
    ["pairs", "noise_rate", "seam", "scoring", "models"],
    [
        "pair_log",
        "pair_logger",
        "nonfinite",
        "recorder",
        "termination",
        "resuming",
        "loading",
        "tables",
        "report",
        "token_lengths",
    ],
    ["audit.texts", "verdicts", "cleaning"],
    ["trainer"],
    [
        "study.files",
        "study.inputs",
        "study.baselines",
        "study.variants",
        "study.packed",
        "study.frozen",
        "study.methods",
    ],
    ["study.checks", "study.config", "study.rates", "study.data", "study.table"],
    ["study.plots", "study.report", "study.trainer", "study.run"],
    [
        "audit.dynamics",
        "audit.mixture",
        "audit.scores",
        "audit.judgement",
        "audit.source",
        "audit.page",
    ],
    ["audit.suspects", "audit.remarks", "audit.plots", "audit.report", "audit.audit", "audit.command"],
    ["rehearsal", "data_mixture", "train_data", "train"],
    ["dry_run_report", "dry_run_data", "dry_run_model", "dry_run_figures", "dry_run"],
    ["evaluate", "noise_command", "clean_command"],
    ["study.schedule", "study.command"],
    ["env_command"],
    ["cli"],
]
ORDER = [module for layer in LAYERS for module in layer]
FILES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
MODULES = sorted(module for module in FILES if not module.endswith("__init__"))


def imported(module: str) -> set[str]:
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.removeprefix("trl_capo.") for name in names if name.startswith("trl_capo.")} & set(ORDER)


def test_every_module_has_its_layer():
    assert sorted(ORDER) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module):
    above = [name for name in imported(module) if ORDER.index(name) >= ORDER.index(module)]
    assert above == []


@pytest.mark.parametrize("module", LAYERS[0])
def test_the_bottom_imports_nothing_of_ours(module):
    assert imported(module) == set()


def test_files_are_small():
    long = {name: count for name, path in FILES.items() if (count := len(path.read_text().splitlines())) > 250}
    assert long == {}
