"""The benchmark runs with the package as it is; what it measures is not tested."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_benchmark_compares_both_trainers():
    script = Path(__file__).parent.parent / "scripts" / "benchmark.py"
    sizes = {"pairs": 1, "tokens": 16, "steps": 2, "layers": 1, "vocabulary": 100, "languages": 3}
    options = ["--train", "full", *(word for name, size in sizes.items() for word in (f"--{name}", str(size)))]
    done = subprocess.run([sys.executable, str(script), *options], capture_output=True, text=True, check=True)
    cells = [cell.strip() for cell in done.stdout.splitlines()[-1].split("|")[1:-1]]
    assert cells[:3] == ["full", "1", "16"]
    assert all(float(cell) > 0 for cell in cells[3:5])
