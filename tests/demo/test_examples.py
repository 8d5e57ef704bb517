"""The example scripts run as they stand, on a tiny model."""

import re
import runpy
import sys
from pathlib import Path

from conftest import make_pairs

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_comparison_prints_every_language_and_the_noise_rates(tmp_path, model_dir, monkeypatch, capsys):
    for split in ("train", "test"):
        make_pairs().to_json(tmp_path / "data" / f"{split}.jsonl", force_ascii=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["compare.py", model_dir, str(tmp_path / "data")])
    runpy.run_path(str(EXAMPLES / "compare.py"))
    out = capsys.readouterr().out
    shares = re.findall(r"^(\S+): DPO (\d+) %, CAPO (\d+) % of the test pairs", out, re.MULTILINE)
    assert [language for language, *_ in shares] == ["de", "sw", "日本"]
    assert all(0 <= int(share) <= 100 for _, *pair in shares for share in pair)
    assert re.search(r"'sw': 0\.\d+", out)
