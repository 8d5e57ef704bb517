"""What the tests of the demo's scripts share: what is installed, and how to read a row."""

import importlib.util
from pathlib import Path

import build_demo
import pytest

SCRIPTS = Path(build_demo.__file__).parent


def skip_without(*modules: str) -> None:
    missing = [module.replace("_", "-") for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def english(row: dict) -> str:
    return row["prompt"][-1]["content"]


def answer(row: dict, name: str) -> str:
    return row[name][0]["content"]
