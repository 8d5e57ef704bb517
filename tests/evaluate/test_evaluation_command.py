"""`trl-capo evaluate` as a command: options, YAML, files and several processes."""

import json
import os
import re
from pathlib import Path

import pytest
import yaml
from accelerate.state import PartialState
from conftest import forked, free_port, run_main, torchrun_variables
from pair_oracle import BETA, make_pool
from scoring_oracle import measure, the_model

from trl_capo.evaluate.command import main


@pytest.fixture
def options(tmp_path, model_dir, other_model_dir) -> dict:
    make_pool().to_json(tmp_path / "pool.jsonl", force_ascii=False)
    models = {"model_name_or_path": model_dir, "ref_model": other_model_dir}
    data = {"dataset_name": f"{tmp_path}/pool.jsonl", "dataset_split": "train"}
    return models | data | {"output_dir": f"{tmp_path}/out"}


def words(options: dict) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def written(folder: Path) -> dict:
    return json.loads((folder / "out" / "metrics.json").read_text(encoding="utf-8"))


def test_everything_is_written_and_documented(options, tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.dump(options | {"beta": 0.7, "group_column": "none", "num_processes": 1}))
    code, output, errors = run_main(main, "--config", tmp_path / "run.yaml", "--beta", BETA, "--group_column", "auto")
    assert code == 0
    assert "Scoring " in errors
    files = ["accuracy.png", "metrics.json", "report.md"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == files
    figures, same = written(tmp_path), {key: options[key] for key in ("model_name_or_path", "ref_model")}
    model = the_model(figures)
    assert model == the_model(measure(tmp_path, **same, per_device_eval_batch_size=8))
    assert (figures["beta"], figures["group_column"], figures["dataset"]["pairs"]) == (BETA, "language", 24)
    documented = (Path(__file__).parents[2] / "docs" / "evaluate.md").read_text(encoding="utf-8")
    for key in (*figures, *model, *model["overall"]):
        assert re.search(rf"[`.]{key}[`.]", documented), key
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    for text in (output, report):
        assert all(name in text for name in ("de", "sw", "日本", f"{100 * model['overall']['accuracy']:.1f}"))


def test_two_processes_measure_what_one_does(options, tmp_path):
    """With 23 pairs, the processes have different numbers of batches."""
    make_pool().select(range(23)).to_json(options["dataset_name"], force_ascii=False)
    alone = words(options | {"per_device_eval_batch_size": 4})
    assert run_main(main, *alone)[0] == 0
    one, port = written(tmp_path), free_port()

    def process(rank: int) -> int:
        PartialState._reset_state()
        os.environ.update(torchrun_variables(rank, 2, port))
        return main(words(options | {"per_device_eval_batch_size": 4, "output_dir": tmp_path / "two" / "out"}))

    second = os.fork()
    if second == 0:
        os._exit(process(1))
    code, output, errors = forked(process, 0)
    assert os.waitpid(second, 0)[1] == code == 0, errors
    assert output.count("all pairs ") == 1
    assert written(tmp_path / "two")["models"] == one["models"]


def test_the_split_is_test_or_the_only_one(options, tmp_path, caplog):
    del options["dataset_split"], options["ref_model"]
    folder = tmp_path / "splits"
    folder.mkdir()
    options["dataset_name"] = folder
    for split, size in {"validation": 5, "test": 7}.items():
        make_pool().select(range(size)).to_json(folder / f"{split}.jsonl")
        assert run_main(main, *words(options))[0] == 0
        assert written(tmp_path)["dataset"] == {"name": str(folder), "split": split, "pairs": size}
        assert ("only the split 'validation'" in caplog.text) == (split == "validation")
        caplog.clear()
