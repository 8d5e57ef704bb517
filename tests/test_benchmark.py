"""The benchmark scripts still run on the code as it is; what they measure is not tested."""

import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parent.parent / "scripts"


def test_the_estimate_can_be_timed():
    command = [sys.executable, str(SCRIPTS / "benchmark.py"), "--estimate"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1000:]
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines()[-6:]]
    assert [(int(row[0]), int(row[1])) for row in rows] == [(n, pairs) for n in (1, 12, 60) for pairs in (8, 64)]
    assert all(float(row[2]) > 0 for row in rows)
