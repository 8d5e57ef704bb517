"""The floors of the package and the budgets of the repository, read from the files themselves."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "trl_capo"
FLOORS = {
    "core": set(),
    "common": set(),
    "callbacks": {"core", "common"},
    "data": {"core", "common"},
    "scoring": {"core", "common", "data"},
    "train": {"core", "common", "callbacks", "data", "scoring"},
    "evaluate": {"core", "common", "callbacks", "data", "scoring"},
    "audit": {"core", "common", "callbacks", "data"},
    "study": {"core", "common", "callbacks", "data", "scoring", "audit"},  # whose result is a method's data
}
"""What each folder may import besides itself. `__init__.py` and `cli.py` are above all of them."""
METHOD = ("core/losses.py", "core/noise_model.py", "core/noise_rate.py", "scoring/probe.py")
LINES = {"trl_capo": 5400, "trl_capo/core": 1200, "tests": 6500, "scripts": 1200}


def imported_folders(path: Path) -> set[str]:
    """The folders of the package that a module imports anything from, at any place in it."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    return {module.split(".")[1] for module in modules if module.startswith("trl_capo.")}


def test_every_folder_has_its_floor():
    assert {path.parent.name for path in PACKAGE.rglob("*.py")} - {"trl_capo", "page"} == set(FLOORS)


@pytest.mark.parametrize("folder", FLOORS)
def test_folders_import_lower_floors_only(folder):
    for path in (PACKAGE / folder).rglob("*.py"):
        assert imported_folders(path) & set(FLOORS) <= FLOORS[folder] | {folder}, path


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("folder", LINES)
def test_folders_keep_their_budget_of_lines(folder):
    sizes = {path: lines(path) for path in (REPOSITORY / folder).rglob("*.py")}
    assert sum(sizes.values()) <= LINES[folder]
    assert {str(path): count for path, count in sizes.items() if count > 250} == {}


def test_the_method_has_fewer_than_500_lines():
    assert sum(lines(PACKAGE / name) for name in METHOD) < 500
