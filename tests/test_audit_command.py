"""`trl-capo audit` after a real training, and what it says to input that it cannot use."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
from audit_data import make_log, row
from conftest import CPU_ARGUMENTS, make_pairs

from trl_capo import train
from trl_capo.audit.audit import FILES, audit
from trl_capo.audit.command import main
from trl_capo.noise import inject_noise
from trl_capo.pair_log import INFO, fingerprint


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_dir, other_model_dir) -> str:
    """Output folder of a training of two epochs on noisy pairs, with its log."""
    folder = tmp_path_factory.mktemp("run")
    make_pairs().to_json(folder / "pairs.jsonl", force_ascii=False)
    options = {"model_name_or_path": model_dir, "dataset_name": folder / "pairs.jsonl", "pair_log": True}
    options |= CPU_ARGUMENTS | {"max_steps": -1, "num_train_epochs": 2, "output_dir": folder / "output"}
    options |= {"inject_noise": "flip", "inject_rate": 0.4}
    assert train.main([word for name, value in options.items() for word in (f"--{name}", str(value))]) == 0
    return str(folder / "output")


@pytest.fixture
def call(capfd):
    """Exit code, standard output and error of the command."""

    def call(*arguments) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return (code, *capfd.readouterr())

    return call


def test_an_audit_of_a_training_finds_its_data_with_their_noise(run, tmp_path, call):
    code, output, errors = call(run, "--output_dir", tmp_path / "audit", "--top", "5")
    assert (code, errors) == (0, "")
    assert {path.name for path in (tmp_path / "audit").iterdir()} == set(FILES)
    noisy = inject_noise(make_pairs(), "flip", 0.4)
    rows = pq.read_table(tmp_path / "audit" / "suspects.parquet").to_pylist()
    assert sorted(found["pair"] for found in rows) == list(range(24))
    for found in rows:
        assert {name: found[name] for name in ("prompt", "chosen", "rejected", "id")} == {
            name: noisy[found["pair"]][name] for name in ("prompt", "chosen", "rejected", "id")
        }
        assert found["group"] == noisy[found["pair"]]["language"]
        assert found["epochs"] == 2
        assert 0 <= found["score"] <= 1
    lines = (tmp_path / "audit" / "suspects.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["rank"] for line in lines] == [1, 2, 3, 4, 5]
    report = (tmp_path / "audit" / "report.md").read_text(encoding="utf-8")
    assert f"It is known which labels are wrong ({sum(noisy['is_noisy'])} of 24)" in report
    assert "AUROC" in output
    assert output.split()[0] == "language"
    page = (tmp_path / "audit" / "suspects.html").read_text(encoding="utf-8")
    assert fingerprint(noisy) in page
    assert all(group in output for group in ("de", "sw", "日本", "all pairs"))


def test_the_folder_of_the_log_serves_too_and_an_audit_can_be_made_again(run, tmp_path, call):
    shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("*.safetensors", "checkpoint*"))
    for name in ("copy", "copy/pair_log", "copy"):
        code, _, errors = call(tmp_path / name)
        assert (code, errors) == (0, "")
        assert {path.name for path in (tmp_path / "copy" / "audit").iterdir()} == set(FILES)


def test_python_gives_what_the_files_say(run, tmp_path):
    noisy = inject_noise(make_pairs(), "flip", 0.4)
    found = audit(run, noisy, group_column=None, top=3, output_dir=tmp_path / "audit")
    rows = list(found.ranking.rows(0, 3))
    lines = (tmp_path / "audit" / "suspects.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert found.wrong.tolist() == noisy["is_noisy"][:]
    assert [line[0] for line in found.rates] == ["group", "all pairs"]


def test_a_column_of_the_data_makes_other_groups(run, tmp_path, call):
    data = inject_noise(make_pairs(), "flip", 0.4)
    data.add_column("kind", ["odd" if index % 2 else "even" for index in range(24)]).to_parquet(tmp_path / "d.parquet")
    options = ("--dataset_name", tmp_path / "d.parquet", "--group_column", "kind", "--output_dir", tmp_path / "audit")
    code, output, errors = call(run, *options, "--score", "first_margin")
    assert (code, errors) == (0, "")
    assert [line.split()[0] for line in output.splitlines()[:3]] == ["kind", "even", "odd"]


def test_without_a_data_set_pairs_are_ranked_without_texts(tmp_path, call):
    rows = [row(pair, 0, pair - 3.0) for pair in range(1, 9)]
    make_log(tmp_path / "pair_log", rows, 9)
    code, output, errors = call(tmp_path / "pair_log")
    assert (code, errors) == (0, "")
    assert "The log names no data set, so the files have no texts." in output
    assert "1 of 9 pairs were never seen and are not ranked." in output
    found = pq.read_table(tmp_path / "audit" / "suspects.parquet").to_pylist()
    assert [line["pair"] for line in found] == list(range(1, 9))
    assert {line["prompt"] for line in found} == {None}
    assert not (tmp_path / "audit" / "data_map.png").exists()  # one pass: nothing varies


def test_logs_beside_each_other_have_audits_of_their_own(tmp_path):
    for name in ("first", "second"):
        make_log(tmp_path / "logs" / name, [row(pair, 0, pair - 3.0) for pair in range(8)], 8)
        assert audit(tmp_path / "logs" / name).folder == tmp_path / "logs" / f"{name}-audit"
    assert "# Audit of first\n" in (tmp_path / "logs" / "first-audit" / "report.md").read_text(encoding="utf-8")


def test_a_log_that_lacks_steps_is_said_to(tmp_path, call):
    rows = [row(pair, 1, pair - 3.0, step=6 + 3 * pair) for pair in range(7)]
    make_log(tmp_path / "pair_log", rows, 7, shard=2)  # steps 6 to 9, 12 to 15, 18 to 21, 24
    code, output, _ = call(tmp_path)
    assert code == 0
    for text in (output, (tmp_path / "audit" / "report.md").read_text(encoding="utf-8")):
        assert "The log begins with step 6." in text
        assert "The log lacks steps 10 to 11, 16 to 17, 22 to 23: files are gone, or nothing was logged then." in text
    next((tmp_path / "pair_log").glob("steps-00000012*")).unlink()
    assert "The log lacks steps 10 to 17, 22 to 23:" in call(tmp_path)[1]


def test_a_reference_that_is_mostly_wrong_is_told_where_it_was_asked(tmp_path, call):
    """It prefers the rejected answer of 51 of 100 pairs in eu, of 50 of 100 in de, and of all 99 in sw: too few."""
    against = {"eu": (100, 51), "de": (100, 50), "sw": (99, 99)}
    signs = [
        (group, -1.0 if place < many else 1.0) for group, (size, many) in against.items() for place in range(size)
    ]
    rows = [
        row(pair, 0, pair % 7 - 3.0, group=group, reference_margin=sign) for pair, (group, sign) in enumerate(signs)
    ]
    make_log(tmp_path / "asked" / "pair_log", rows, len(rows), asks_reference=True)
    make_log(tmp_path / "not" / "pair_log", rows, len(rows))
    told = "The reference prefers the rejected answer of most pairs in eu (51%). Unless most labels are wrong there,"
    assert told in call(tmp_path / "asked")[1]
    assert told in " ".join((tmp_path / "asked" / "audit" / "report.md").read_text(encoding="utf-8").split())
    assert "prefers the rejected answer of most" not in call(tmp_path / "not")[1]
    hostile = [line | {"group": "e\x1b[31mu"} for line in rows]
    make_log(tmp_path / "hostile" / "pair_log", hostile, len(rows), asks_reference=True)
    output = call(tmp_path / "hostile")[1]
    assert r"of most pairs in e\x1b[31mu (" in output
    assert "\x1b" not in output


def test_a_whole_log_lacks_nothing(run, tmp_path, call):
    code, output, _ = call(run, "--output_dir", tmp_path / "audit")
    assert code == 0
    for text in (output, (tmp_path / "audit" / "report.md").read_text(encoding="utf-8")):
        assert "The log" not in text


def test_a_column_is_noisy_that_says_neither_true_nor_false_is_no_truth(tmp_path):
    data = make_pairs(8)
    make_log(tmp_path / "pair_log", [row(pair, 0, pair - 3.0) for pair in range(8)], 8, fingerprint=fingerprint(data))
    for values in (["no"] * 8, [None, True] * 4, [[True]] * 8):
        assert audit(tmp_path, data.add_column("is_noisy", values)).wrong is None
    assert audit(tmp_path, data.add_column("is_noisy", [False, True] * 4)).wrong.tolist() == [False, True] * 4


def without_steps(folder) -> None:
    for shard in folder.glob("*.parquet"):
        shard.unlink()


def of_other_pairs(folder) -> None:
    info = json.loads((folder / INFO).read_text())
    (folder / INFO).write_text(json.dumps(info | {"fingerprint": "0"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "there is no pair log, neither there nor in its folder 'pair_log'"),
        (without_steps, "the pair log is empty"),
        (lambda folder: (folder / INFO).write_text("{"), "log.json' cannot be read"),
        (of_other_pairs, "its 24 pairs are not the 24 that were trained on"),
    ],
    ids=["no log", "empty", "damaged", "other pairs"],
)
def test_logs_that_cannot_be_used_are_refused(run, tmp_path, call, damage, message):
    shutil.copytree(f"{run}/pair_log", tmp_path / "copy" / "pair_log")
    damage(tmp_path / "copy" / "pair_log")
    code, output, errors = call(tmp_path / "copy")
    assert (code, output) == (2, "")
    assert errors.startswith("trl-capo audit: error: ")
    assert message in errors
    assert not (tmp_path / "copy" / "audit").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top", "0"], "top=0: so many suspects are written. Give a whole number above 0"),
        (["--top", "many"], "--top: invalid int value: 'many'"),
        (["--score", "luck"], "score='luck': there is no such score. Choose one of mean_margin, first_margin."),
        (["--group_column", "tongue"], "group_column='tongue': the data set has no such column"),
        (["--dataset_train_split", "test"], "dataset_train_split='test': the data set has no such split"),
        (["--dataset_name", "missing.jsonl"], "dataset_name='missing.jsonl': there is no such file"),
        (["--output_dir", "full"], "output_dir='full': the folder holds more than an earlier audit (notes.txt)"),
        (["--output_dir", "full/notes.txt"], "output_dir='full/notes.txt'"),
        (["--tip", "3"], "--tip"),
    ],
    ids=str,
)
def test_options_that_cannot_be_used_are_refused(run, tmp_path, monkeypatch, call, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    code, output, errors = call(run, *(["--output_dir", "audit"] if "--output_dir" not in options else []), *options)
    assert (code, output) == (2, "")
    assert message in errors
    assert not (tmp_path / "audit").exists()


def test_data_that_the_log_names_and_that_are_gone_are_asked_for(tmp_path, call):
    make_log(tmp_path / "pair_log", [row(0, 0, 1.0)], 1, source={"dataset_name": "gone.jsonl"})
    code, _, errors = call(tmp_path)
    assert code == 2
    assert "dataset_name='gone.jsonl': there is no such file" in errors
    assert "if they are elsewhere now, give dataset_name" in errors


def test_a_column_needs_a_data_set(tmp_path, call):
    make_log(tmp_path / "pair_log", [row(0, 0, 1.0)], 1)
    code, _, errors = call(tmp_path, "--group_column", "language")
    assert code == 2
    assert "group_column='language': the log does not name its data set" in errors
    code, _, errors = call(tmp_path, "--dataset_train_split", "train")
    assert code == 2
    assert "dataset_train_split='train' without a data set" in errors
