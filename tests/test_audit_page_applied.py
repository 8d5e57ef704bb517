"""From a training to clean data: an audit, its page in a real browser, and the commands that its report names."""

import json
import shlex
import shutil

import pytest
from audit_data import make_log, row
from conftest import as_conversation, make_pairs
from page_browser import export, press
from test_clean_command import swapped

from trl_capo import cli
from trl_capo.audit.audit import audit
from trl_capo.data import load_preference_data
from trl_capo.noise import inject_noise
from trl_capo.pair_log import fingerprint

NOISE = {"inject_noise": "flip", "inject_rate": 0.4, "inject_seed": 3, "inject_score_column": None}


@pytest.fixture(params=["texts", "messages", "with noise"])
def audited(request, tmp_path, monkeypatch):
    """The pairs that a training had, and its audit; the lower the row, the likelier the label is wrong."""
    monkeypatch.chdir(tmp_path)
    pairs = make_pairs()
    pairs = pairs.map(as_conversation) if request.param == "messages" else pairs
    pairs.to_json("the pairs.jsonl", force_ascii=False)
    source = {"dataset_name": "the pairs.jsonl", "group_column": "auto"}
    if request.param == "with noise":
        source |= NOISE
        pairs = inject_noise(pairs, "flip", 0.4, seed=3)
    rows = [row(pair, epoch, pair - 11.5) for epoch in range(2) for pair in range(24)]
    make_log(tmp_path / "run" / "pair_log", rows, 24, fingerprint=fingerprint(pairs), source=source)
    return pairs, audit("run")


def commands(audited) -> list[list[str]]:
    report = (audited.folder / "report.md").read_text(encoding="utf-8")
    return [shlex.split(line)[1:] for line in report.splitlines() if line.startswith("      trl-capo ")]


def test_decisions_made_on_the_page_are_applied(audited, open_page, tmp_path):
    pairs, found = audited
    page = open_page(found.folder / "suspects.html")
    press(page, "f", "d", "k", "f")
    (tmp_path / "decisions.jsonl").write_text(export(page), encoding="utf-8")
    *before, apply, _ = commands(found)
    assert [cli.main(words) for words in (*before, apply)] == [0] * (1 + len(before))
    rows = pairs.to_list()
    expected = [swapped(rows[0]), rows[2], swapped(rows[3]), *rows[4:]]
    assert load_preference_data("cleaned")["train"].to_list() == expected


def test_the_reports_commands_are_for_the_pairs_that_were_trained_on(audited):
    pairs, found = audited
    line = {"pair": 1, "fingerprint": fingerprint(pairs), "decision": "drop"}
    with open("decisions.jsonl", "w") as file:
        file.write(json.dumps(line))
    rows = pairs.to_list()
    *before, apply, rule = commands(found)
    assert [cli.main(words) for words in (*before, apply)] == [0] * (1 + len(before))
    assert load_preference_data("cleaned")["train"].to_list() == [rows[0], *rows[2:]]
    shutil.rmtree("cleaned")
    assert cli.main(rule) == 0
    assert load_preference_data("cleaned")["train"].to_list() == rows[2:]
