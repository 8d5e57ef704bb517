"""Recorded results: an audit and the committed study, within 1e-4, since the last digits differ between processors."""

import json
import re
import tarfile
from pathlib import Path

import golden_cases
import pandas as pd
import pytest
from conftest import run_main

from trl_capo.audit import command as audit
from trl_capo.study import command as study

GOLDENS = Path(__file__).with_name("goldens")
REPOSITORY = Path(__file__).parents[1]


def table_of(text: str) -> list[list[str]]:
    """The cells of the first Markdown table in a text."""
    lines = re.search(r"(\|.*\n)+", text).group().splitlines()
    rows = [[cell.strip() for cell in line[2:-2].split(" | ")] for line in lines]
    return [rows[0], *rows[2:]]


def assert_same_text(found: str, expected: str):
    """The words are equal, and numbers differ by at most 1 in the last digit that is shown."""
    number = r"[-+]?\d[\d,]*(?:\.\d+)?"
    assert re.sub(number, "#", found) == re.sub(number, "#", expected)
    for one, other in zip(re.findall(number, found), re.findall(number, expected), strict=True):
        digits = len(other.partition(".")[2])
        assert float(one.replace(",", "")) == pytest.approx(float(other.replace(",", "")), abs=1.01 * 10**-digits)


def test_the_audit_of_a_fixed_log_finds_the_recorded_scores_and_rates(tmp_path):
    recorded = json.loads((GOLDENS / "audit.json").read_text(encoding="utf-8"))
    golden_cases.audited_pairs().to_json(tmp_path / "pairs.jsonl", force_ascii=False)
    golden_cases.write_pair_log(tmp_path / "run" / "pair_log", recorded["fingerprint"])
    options = {"--dataset_name": tmp_path / "pairs.jsonl", "--output_dir": tmp_path / "audit"}
    code, _, err = run_main(audit.main, tmp_path / "run", *(word for option in options.items() for word in option))
    assert code == 0, err
    expected = recorded["mean_margin"]
    columns = pd.DataFrame({name: values for name, values in expected.items() if name != "rates"})
    rows = pd.read_parquet(tmp_path / "audit" / "suspects.parquet").sort_values("pair", ignore_index=True)
    pd.testing.assert_frame_equal(rows[columns.columns], columns, check_dtype=False, rtol=1e-4, atol=1e-4)
    assert columns["score"][rows.sort_values("rank")["pair"]].is_monotonic_decreasing
    rates = table_of((tmp_path / "audit" / "report.md").read_text(encoding="utf-8").partition("## Noise rates")[2])
    for found, wanted in zip(rates[1:], expected["rates"], strict=True):
        assert_same_text(" | ".join(found), " | ".join(wanted))


def test_the_committed_runs_of_the_study_give_the_committed_report(tmp_path):
    docs = REPOSITORY / "docs" / "study"
    with tarfile.open(docs / "runs.tar.gz") as runs:
        runs.extractall(tmp_path, filter="data")
    plan = REPOSITORY / "configs" / "study" / "demo.yaml"
    code, _, err = run_main(study.main, "--config", plan, "--output_dir", tmp_path, "--report_only")
    assert code == 0, err
    found, committed = ((folder / "report.md").read_text(encoding="utf-8") for folder in (tmp_path, docs))
    assert_same_text(found, committed)
