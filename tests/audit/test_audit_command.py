"""`trl-capo audit` after a real training, and the mistakes that it reports."""

import json
import shlex

import pyarrow.parquet as pq
import pytest
from audit_logs import make_log, row
from conftest import CPU_ARGUMENTS, as_conversation, forked, make_pairs, run_main

from trl_capo.audit.command import AuditArguments, audit, main
from trl_capo.common.fingerprint import fingerprint
from trl_capo.data import clean
from trl_capo.data.load import load_pairs
from trl_capo.data.noise import inject_noise
from trl_capo.train import command as train

HTML = "<script>alert(1)</script>"
PAIRS = make_pairs().map(lambda row: {"chosen": row["chosen"] + HTML})
FILES = {"suspects.parquet", "suspects.csv", "suspects.jsonl", "suspects.html"}
FILES |= {"report.md", "noise_rates.png"}


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_dir) -> str:
    """Output folder of a two-epoch run on noisy pairs, with its log."""
    folder = tmp_path_factory.mktemp("run")
    PAIRS.to_json(folder / "pairs.jsonl", force_ascii=False)
    options = CPU_ARGUMENTS | {"model_name_or_path": model_dir, "dataset_name": folder / "pairs.jsonl"}
    options |= {"max_steps": -1, "num_train_epochs": 2, "output_dir": folder / "output", "pair_log": True}
    options |= {"inject_noise": "flip", "inject_rate": 0.4}
    code, _, errors = forked(train.main, [f"--{name}={value}" for name, value in options.items()])
    assert code == 0, errors
    return str(folder / "output")


@pytest.fixture(scope="module")
def noisy():
    return inject_noise(PAIRS, "flip", 0.4)


def test_an_audit_of_a_training_finds_its_data_with_their_noise_and_shows_html_as_text(run, noisy, tmp_path):
    code, output, errors = run_main(main, run, "--output_dir", tmp_path, "--top", "5")
    assert code == 0, errors
    assert {path.name for path in tmp_path.iterdir()} == FILES
    table = pq.read_table(tmp_path / "suspects.parquet").sort_by("pair")
    expected = {name: noisy[name][:] for name in ("prompt", "chosen", "rejected", "id")}
    expected |= {"pair": list(range(24)), "group": noisy["language"][:], "epochs": [2] * 24}
    assert table.select(list(expected)).to_pydict() == expected
    assert len((tmp_path / "suspects.jsonl").read_text(encoding="utf-8").splitlines()) == 5
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert f"The data say which labels are wrong ({sum(noisy['is_noisy'])} of 24)" in report
    assert output.split()[0] == "language"
    assert all(group in output for group in ("de", "sw", "日本", "all pairs", "AUROC"))
    page = (tmp_path / "suspects.html").read_text(encoding="utf-8")
    assert fingerprint(noisy) in page
    assert "alert(1)" in page
    assert HTML not in page


def test_python_audits_a_data_set_with_other_groups(run, noisy, tmp_path):
    data = noisy.add_column("kind", ["odd", "even"] * 12)
    for column, names in ((None, ["group", "all pairs"]), ("kind", ["kind", "even", "odd", "all pairs"])):
        found = audit(AuditArguments(run, group_column=column, output_dir=str(tmp_path)), data)
        assert [line[0] for line in found.rates] == names
    assert found.errors.pairs["wrong"].sort_index().tolist() == noisy["is_noisy"][:]


@pytest.mark.parametrize(("log", "folder"), [("run/pair_log", "run/audit"), ("log", "log-audit")])
def test_a_log_without_data_is_audited_beside_it_again_and_with_warnings(tmp_path, log, folder):
    make_log(tmp_path / log, [row(pair, 0, pair - 3.0) for pair in range(1, 9)], 9)
    (tmp_path / folder).mkdir()
    found = audit(AuditArguments(str(tmp_path / log)))
    assert found.folder == tmp_path / folder
    assert {path.name for path in found.folder.iterdir()} == FILES
    texts = ["1 pair of 9 not ranked", "The log names no data"]
    report = (found.folder / "report.md").read_text(encoding="utf-8")
    for warning, start in zip(found.warnings, texts, strict=True):
        assert warning.startswith(start)
        assert f"- {start}" in report
    table = pq.read_table(found.folder / "suspects.parquet")
    assert (table["pair"].to_pylist(), table["group"].null_count) == (list(range(1, 9)), 8)


def test_the_reports_command_cleans_the_pairs_that_were_trained_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs = make_pairs().map(as_conversation)
    pairs.to_json("the pairs.jsonl", force_ascii=False)
    rows = [row(pair, epoch, pair - 11.5) for epoch in range(2) for pair in range(24)]
    source = {"dataset_name": "the pairs.jsonl", "group_column": "auto"}
    make_log(tmp_path / "run" / "pair_log", rows, 24, fingerprint=fingerprint(pairs), source=source)
    decision = {"pair": 1, "fingerprint": fingerprint(pairs), "decision": "drop"}
    (tmp_path / "decisions.jsonl").write_text(json.dumps(decision))
    report = (audit(AuditArguments("run")).folder / "report.md").read_text(encoding="utf-8")
    (command,) = [shlex.split(line) for line in report.splitlines() if line.startswith("      trl-capo clean ")]
    code, _, errors = run_main(clean.main, *command[2:])
    assert code == 0, errors
    assert load_pairs("cleaned")["train"]["id"][:] == [pairs["id"][0], *pairs["id"][2:]]
