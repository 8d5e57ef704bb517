"""Recorded results: an audit and the committed study, within 1e-4, since the last digits differ between processors."""

import json
import re
import tarfile
from pathlib import Path

import golden_cases
import pyarrow.parquet as pq
import pytest
from conftest import run_main

GOLDENS = Path(__file__).with_name("goldens")
REPOSITORY = Path(__file__).parents[1]


def golden(name: str) -> dict:
    return json.loads((GOLDENS / f"{name}.json").read_text(encoding="utf-8"))


def assert_close(found, expected, place=""):
    """Compare JSON: numbers within 1e-4, relative or absolute, and all else exactly."""
    if isinstance(expected, dict):
        assert set(found) == set(expected), place
        for key, value in expected.items():
            assert_close(found[key], value, f"{place}/{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), place
        for index, value in enumerate(expected):
            assert_close(found[index], value, f"{place}/{index}")
    elif isinstance(expected, int | float) and not isinstance(expected, bool):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4), place
    else:
        assert found == expected, place


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
    from trl_capo.audit.command import main

    recorded = golden("audit")
    golden_cases.audited_pairs().to_json(tmp_path / "pairs.jsonl", force_ascii=False)
    golden_cases.write_pair_log(tmp_path / "run" / "pair_log", recorded["fingerprint"])
    options = {"--dataset_name": tmp_path / "pairs.jsonl", "--output_dir": tmp_path / "audit"}
    code, _, err = run_main(main, tmp_path / "run", *(word for option in options.items() for word in option))
    assert code == 0, err
    rows = sorted(pq.read_table(tmp_path / "audit" / "suspects.parquet").to_pylist(), key=lambda row: row["pair"])
    expected = recorded["mean_margin"]
    columns = [name for name in expected if name != "rates"]
    assert_close({name: [row[name] for row in rows] for name in columns}, {name: expected[name] for name in columns})
    order = [row["pair"] for row in sorted(rows, key=lambda row: row["rank"])]
    assert_close([expected["score"][pair] for pair in order], sorted(expected["score"], reverse=True))
    rates = table_of((tmp_path / "audit" / "report.md").read_text(encoding="utf-8").partition("## Noise rates")[2])
    for found, wanted in zip(rates[1:], expected["rates"], strict=True):
        assert_same_text(" | ".join(found), " | ".join(wanted))


def test_the_committed_runs_of_the_study_give_the_committed_report(tmp_path):
    from trl_capo.study.command import main

    study = REPOSITORY / "docs" / "study"
    with tarfile.open(study / "runs.tar.gz") as runs:
        runs.extractall(tmp_path, filter="data")
    plan = REPOSITORY / "configs" / "study" / "demo.yaml"
    code, _, err = run_main(main, "--config", plan, "--output_dir", tmp_path, "--report_only")
    assert code == 0, err
    found, committed = ((folder / "report.md").read_text(encoding="utf-8") for folder in (tmp_path, study))
    assert_same_text(found, committed)
