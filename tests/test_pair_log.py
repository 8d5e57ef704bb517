"""The pair log's folder: what is written is read, cut at a step, and refused where it is damaged or something else."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import as_conversation, make_pairs
from datasets import Dataset, load_dataset

from trl_capo.pair_log import MEASURES, SCHEMA, LogInfo, PairLog, check_folder, fingerprint, read_log

INFO = LogInfo(24, "abc", {"dataset_name": "pairs.jsonl"})


def rows_of_steps(*steps: int) -> list[dict]:
    """Two rows a step, no two of which are alike; every third has no group."""
    measures = {name: float(place) for place, name in enumerate(MEASURES)}
    numbers = [2 * step + half for step in steps for half in (0, 1)]
    return [
        {"step": n // 2, "epoch": n // 9, "pair": n, "group": ["de", None, "日本"][n % 3]}
        | {name: value + n for name, value in measures.items()}
        for n in numbers
    ]


def table(*steps: int) -> pa.Table:
    return pa.Table.from_pylist(rows_of_steps(*steps), schema=SCHEMA)


def read(folder: Path) -> list[dict]:
    return [row for batch in read_log(folder).batches() for row in batch.to_pylist()]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A log of steps 1 to 9 in shards of three."""
    log = PairLog(tmp_path / "deep" / "log", INFO)
    for first in (1, 4, 7):
        log.write(table(first, first + 1, first + 2))
    return tmp_path / "deep" / "log"


def test_what_is_written_is_read(folder):
    log = read_log(folder)
    assert log.info == INFO
    assert [shard.name for shard in log.shards] == [
        "steps-00000001-00000003.parquet",
        "steps-00000004-00000006.parquet",
        "steps-00000007-00000009.parquet",
    ]
    assert read(folder) == rows_of_steps(*range(1, 10))
    some = list(log.batches(["pair"], rows=2))
    assert [batch.schema.names for batch in some] == [["pair"]] * 9
    assert [batch["pair"].to_pylist() for batch in some] == [[2 * step, 2 * step + 1] for step in range(1, 10)]
    PairLog(folder, INFO, 9).write(table())
    assert read(folder) == rows_of_steps(*range(1, 10))


@pytest.mark.parametrize("step", range(11))
def test_a_log_is_cut_at_any_step(folder, step):
    """And written on, as the training goes on."""
    log = PairLog(folder, INFO, step)
    if step:
        assert read(folder) == rows_of_steps(*range(1, min(step, 9) + 1))
    log.write(table(step + 1, step + 2))
    assert read(folder) == rows_of_steps(*range(1, min(step, 9) + 1), step + 1, step + 2)


@pytest.mark.parametrize("step", [0, 5])
def test_that_the_reference_was_asked_before_is_not_forgotten(tmp_path, step):
    """By a training that goes on without asking it; one that starts anew has a log of its own."""
    PairLog(tmp_path, replace(INFO, asks_reference=True)).write(table(1, 2, 3))
    PairLog(tmp_path, INFO, step).write(table(step + 1))
    assert read_log(tmp_path).info.asks_reference is (step > 0)


def test_who_is_killed_while_cutting_leaves_no_row_twice_and_no_gap(folder):
    """The shard that was cut is still there beside its part, and the later ones are gone."""
    whole = folder / "steps-00000004-00000006.parquet"
    shutil.copy(whole, folder.parent / "copy")
    PairLog(folder, INFO, 5)
    shutil.copy(folder.parent / "copy", whole)
    (folder / "steps-00000004-00000005.parquet.part").write_bytes(b"half")
    (folder / "log.json.part").write_text("{")
    assert read(folder) == rows_of_steps(*range(1, 6))
    PairLog(folder, INFO, 5).write(table(6))
    assert read(folder) == rows_of_steps(*range(1, 7))
    assert sorted(path.name for path in folder.iterdir()) == [
        "log.json",
        "steps-00000001-00000003.parquet",
        "steps-00000004-00000005.parquet",
        "steps-00000006-00000006.parquet",
    ]


def test_later_shards_go_first(folder, monkeypatch):
    """So a kill between two of them leaves a log without a gap."""
    gone = []
    monkeypatch.setattr(Path, "unlink", lambda path, **_: gone.append(path.name))
    PairLog(folder, INFO, 1)
    assert [name[6:14] for name in gone] == ["00000007", "00000004", "00000001"]


def damage(shard: Path) -> None:
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])


def other_columns(shard: Path) -> None:
    pa.parquet.write_table(pa.table({"step": [1]}), shard)


@pytest.mark.parametrize("spoil", [damage, other_columns, lambda shard: shard.write_bytes(b"")])
def test_a_spoilt_shard_is_named_by_who_reads_and_who_goes_on(folder, spoil):
    spoil(folder / "steps-00000004-00000006.parquet")
    with pytest.raises(ValueError, match=r"steps-00000004-00000006.parquet' is damaged, or no shard of a pair log"):
        read_log(folder)
    with pytest.raises(ValueError, match=r"steps-00000004-00000006.parquet' is damaged, or no shard of a pair log"):
        PairLog(folder, INFO, 9)
    PairLog(folder, INFO).write(table(1))
    assert read(folder) == rows_of_steps(1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "log.json' cannot be read"),
        ("[]", "log.json' cannot be read"),
        ('{"format": 1}', "it was written by another version"),
        ('{"format": 2, "pairs": 3}', "fingerprint"),
        ('{"format": 2, "pairs": "3", "fingerprint": "x"}', "a value is of another type"),
        ('{"format": 2, "pairs": 3, "fingerprint": "x", "source": [1]}', "log.json' cannot be read"),
        ('{"format": 2, "pairs": 3, "fingerprint": "x", "source": {"dataset_name": 5}}', "a value is of another type"),
    ],
)
def test_a_log_without_sound_information_is_refused(folder, content, said):
    (folder / "log.json").write_text(content)
    with pytest.raises(ValueError, match=said):
        read_log(folder)


def test_a_shard_that_is_spoilt_within_is_named_as_it_is_read(folder):
    """Its end, which says what is in it, is sound."""
    shard = folder / "steps-00000004-00000006.parquet"
    content = bytearray(shard.read_bytes())
    content[4:100] = bytes(96)
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=f"{shard.name}' is damaged"):
        read(folder)


def test_what_is_no_log_or_has_no_rows_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"is not a pair log: it has no log.json"):
        read_log(tmp_path)
    PairLog(tmp_path / "empty", INFO)
    with pytest.raises(ValueError, match="the pair log is empty"):
        read_log(tmp_path / "empty")


def test_a_folder_with_other_files_or_of_other_pairs_is_refused(folder):
    """Whether the training goes on or starts; but a log without a step has nothing that could be lost."""
    PairLog(folder.parent / "no step yet", LogInfo(24, "other"))
    others = LogInfo(24, "other")
    for resuming in (False, True):
        check_folder(folder.parent / "none yet", INFO, resuming=resuming)
        check_folder(folder.parent / "no step yet", INFO, resuming=resuming)
        with pytest.raises(
            ValueError, match=r"pair_log='.*log': .* on other pairs. Train on the same data, give anoth"
        ):
            check_folder(folder, others, resuming=resuming)
        with pytest.raises(ValueError, match="on other pairs"):
            PairLog(folder, others, 3 * resuming)
    assert read(folder) == rows_of_steps(*range(1, 10))
    (folder / "model.safetensors").write_text("precious")
    for resuming in (False, True):
        with pytest.raises(ValueError, match=r"the folder holds something else \(model.safetensors\)"):
            check_folder(folder, INFO, resuming=resuming)
    assert json.loads((folder / "log.json").read_text())["fingerprint"] == "abc"


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (0, "replacing the log of an earlier training on the same pairs."),
        (8, None),
        (9, None),
        (12, "the training goes on from step 12, and the log ends with step 9."),
    ],
)
def test_what_is_lost_or_missing_is_warned_of(folder, caplog, step, said):
    PairLog(folder, INFO, step)
    assert [said in record.message for record in caplog.records] == ([True] if said else [])


def test_a_new_log_is_warned_of_where_it_begins_late(tmp_path, caplog):
    PairLog(tmp_path / "new", INFO)
    assert not caplog.records
    PairLog(tmp_path / "late", INFO, 4)
    assert "goes on from step 4, and the log ends with step 0" in caplog.text


def test_steps_that_are_missing_between_shards_are_known(folder):
    assert read_log(folder).gaps == []
    PairLog(folder, INFO, 9).write(table(11, 12))
    PairLog(folder, INFO, 12).write(table(15))
    (folder / "steps-00000004-00000006.parquet").unlink()
    assert read_log(folder).gaps == [(4, 6), (10, 10), (13, 14)]
    (folder / "steps-00000001-00000003.parquet").unlink()
    assert (read_log(folder).first_step, read_log(folder).gaps) == (7, [(10, 10), (13, 14)])


def turn(value):
    """Messages with their keys in another order."""
    return value if isinstance(value, str) else [dict(reversed(message.items())) for message in value]


def test_the_fingerprint_is_of_the_pairs_and_not_of_how_they_are_stored(tmp_path):
    rows = make_pairs()
    for data in (rows, rows.map(as_conversation)):
        data.to_json(tmp_path / "data.jsonl")
        data.to_parquet(tmp_path / "data.parquet")
        stored = [
            load_dataset(kind, data_files=str(tmp_path / name), split="train", cache_dir=str(tmp_path / "cache"))
            for kind, name in (("json", "data.jsonl"), ("parquet", "data.parquet"))
        ]
        reordered = data.select_columns(["rejected", "language", "prompt", "chosen"])
        marked = data.add_column("weight", [1.0] * 24).with_format("numpy")
        picked = Dataset.from_list(data.to_list() + data.to_list()).select(range(24, 48))
        turned = Dataset.from_list([{key: turn(value) for key, value in row.items()} for row in data])
        assert {fingerprint(some) for some in (data, *stored, reordered, marked, picked, turned)} == {
            fingerprint(data)
        }


def test_the_fingerprint_of_other_pairs_is_another():
    rows = make_pairs().to_list()
    swapped = rows[0] | {"chosen": rows[0]["rejected"], "rejected": rows[0]["chosen"]}
    others = [
        rows,
        rows[:-1],
        [rows[1], rows[0], *rows[2:]],
        [swapped, *rows[1:]],
        [rows[0] | {"prompt": "Say 0 in sw:"}, *rows[1:]],
        [{"chosen": row["chosen"], "rejected": row["rejected"]} for row in rows],
    ]
    assert len({fingerprint(Dataset.from_list(some)) for some in others}) == len(others)
