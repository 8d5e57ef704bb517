"""The rooms of the package: arrows go down only, read from the imports themselves."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "trl_capo"

# From the bottom up. A module may import from lower layers, and within its own only what stands before it there.
LAYERS = [
    ["losses", "agreement", "baselines", "metrics", "statistics", "fonts", "plain", "frozen", "citation", "memory"],
    ["messages", "paths", "data_files", "value_types", "yaml_files"],
    ["degenerate", "memory_table", "repeats", "text_table"],
    ["plots", "groups", "answers", "draws", "config", "arguments", "evaluate_arguments", "launch"],
    ["checkpoints", "termination"],
    ["data", "noise_checks", "noise", "noise_arguments", "pairs", "noise_rate", "seam", "scoring", "models"],
    ["nonfinite", "recorder", "resuming", "loading", "tables", "report", "token_lengths"],
    ["study_methods", "study_checks", "study_config", "study_data", "study_table", "study_plots", "study_report"],
    ["trainer", "study_trainer", "study_run"],
    ["train", "dry_run_report", "dry_run", "evaluate", "study", "noise_command", "study_command", "env_command"],
    ["cli"],
]
ORDER = [module for layer in LAYERS for module in layer]
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def imported(module: str) -> set[str]:
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trl_capo."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("trl_capo.")}
    return names


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
    long = {path.name: count for path in PACKAGE.glob("*.py") if (count := len(path.read_text().splitlines())) > 250}
    assert long == {}
