"""`trl-capo evaluate` as a command: options, YAML, what it prints and writes.

One test starts the installed command in two processes; the rest calls `trl_capo.evaluate.main`. What it measures:
test_evaluate.py; its errors: test_evaluate_bad_input.py.
"""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import free_port
from pair_oracle import make_pool
from PIL import Image
from test_distributed import run

from trl_capo.evaluate import EvaluateArguments, evaluate

FILES = ["accuracy.png", "margins.png", "metrics.json", "report.md"]


def written(folder: Path) -> dict:
    return json.loads((folder / "out" / "metrics.json").read_text(encoding="utf-8"))


def same_figures(one: dict, other: dict):
    one, other = (json.loads(json.dumps(figures)) for figures in (one, other))
    assert one.pop("seconds") > 0
    assert other.pop("seconds") > 0
    assert one.keys() == other.keys()
    for key in one.keys() - {"models", "differences"}:
        assert one[key] == other[key]
    for name, model in one["models"].items():
        for group, figures in {"": model["overall"], **model["groups"]}.items():
            expected = other["models"][name]["groups"][group] if group else other["models"][name]["overall"]
            assert figures.keys() == expected.keys()
            for key, value in figures.items():
                assert value == pytest.approx(expected[key], rel=1e-4, abs=1e-5)
        assert model["macro"] == pytest.approx(other["models"][name]["macro"], rel=1e-4)


def assert_picture(file: Path) -> tuple[int, int]:
    """Drawn in more than one shade, and nothing cut off at an edge."""
    with Image.open(file) as image:
        assert image.format == "PNG"
        grey = np.asarray(image.convert("RGB").convert("L"))
    assert grey.std() > 5
    assert len(np.unique(grey)) > 4
    edges = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    assert (edges == 255).all(), file
    return grey.shape


def test_everything_is_written_and_documented(command, options, tmp_path):
    code, output, errors = command()
    assert code == 0
    assert "pair/s" in errors
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES
    figures = written(tmp_path)
    del options["output_dir"]
    same_figures(figures, evaluate(EvaluateArguments(**options)).figures)
    assert figures["versions"].keys() >= {"trl-capo", "trl", "transformers", "torch", "peft", "datasets"}
    documented = (Path(__file__).parents[1] / "docs" / "evaluate.md").read_text(encoding="utf-8")
    (model,) = figures["models"].values()
    for key in (*figures, *model, *model["overall"]):
        assert re.search(rf"[`.]{key}[`.]", documented), key
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    for text in (output, report):
        assert all(name in text for name in ("de", "sw", "日本", "24"))
        assert f"{100 * model['overall']['accuracy']:.1f}" in text
        assert f"{100 * model['groups']['日本']['reference_free_accuracy']:.1f}" in text
    for name in FILES[:2]:
        assert_picture(tmp_path / "out" / name)


def test_the_command_line_wins_over_the_yaml_file(command, options, tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.dump(options | {"beta": 0.7, "seed": 5, "group_column": "none"}))
    assert command(**dict.fromkeys(options), config=tmp_path / "run.yaml", beta=0.3)[0] == 0
    figures = written(tmp_path)
    assert (figures["beta"], figures["seed"], figures["group_column"]) == (0.3, 5, None)
    (model,) = figures["models"].values()
    assert model["groups"] == {}


def test_two_processes_of_the_installed_command_measure_what_one_does(options, tmp_path):
    """23 pairs, so that the processes have different numbers of them, and a group that one of them has not."""
    rows = make_pool().select(range(23)).remove_columns("language").add_column("language", ["most"] * 22 + ["one"])
    rows.to_json(options["dataset_name"], force_ascii=False)
    port = free_port()
    launch = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU", "use_cpu": False}
    launch |= {"num_processes": 2, "num_machines": 1, "machine_rank": 0, "main_process_port": port}
    files = [str(tmp_path / name) for name in ("run.yaml", "two.yaml")]
    for file, content in zip(files, (options, launch), strict=True):
        Path(file).write_text(yaml.dump(content))
    installed = [str(Path(sys.executable).with_name("trl-capo")), "evaluate", "--config", files[0]]
    run([*installed, "--accelerate_config", files[1]], OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    del options["output_dir"]
    same_figures(written(tmp_path), evaluate(EvaluateArguments(**options)).figures)


def test_the_split_is_test_or_the_only_one(command, options, tmp_path, caplog):
    folder = tmp_path / "splits"
    folder.mkdir()
    sizes = {"validation": 5, "test": 7}
    for split, size in sizes.items():
        make_pool().select(range(size)).to_json(folder / f"{split}.jsonl")
        assert command(dataset_name=folder, dataset_split=None)[0] == 0
        assert written(tmp_path)["dataset"] == {"name": str(folder), "split": split, "pairs": size}
        said = [message for message in caplog.messages if "no split but 'validation'" in message]
        assert len(said) == 1  # of the first run; the second has a choice
    (folder / "test.jsonl").rename(folder / "train.jsonl")
    code, _, errors = command(dataset_name=folder, dataset_split=None)
    assert code == 2
    assert all(word in errors for word in ("dataset_split='test'", "'train'", "'validation'"))


def test_thirty_languages_have_room(command, options, tmp_path):
    rows, sizes = make_pool(60).remove_columns("language"), {}
    for count in (3, 30):
        names = [f"Language_{index % count:02} (Script)" for index in range(60)]
        rows.add_column("language", names).to_json(options["dataset_name"])
        assert command(output_dir=tmp_path / str(count))[0] == 0
        sizes[count] = [assert_picture(tmp_path / str(count) / name) for name in FILES[:2]]
    for few, many in zip(*sizes.values(), strict=True):
        assert max(many) > 2 * min(few)


def test_markup_and_slashes_in_names_are_shown_as_they_are(command, options, tmp_path):
    names = ["zh/hans", "[bold]", "a|b", "हिन्दी"] * 6
    make_pool().remove_columns("language").add_column("language", names).to_json(options["dataset_name"])
    _, output, _ = command()
    assert {name: name in output for name in names} == dict.fromkeys(names, True)
    (model,) = written(tmp_path)["models"].values()
    assert set(model["groups"]) == set(names)
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    rows = [line.replace(r"\|", "") for line in report.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1  # a name's bar opens no column


def test_missing_groups_are_counted_once(command, options, tmp_path, caplog):
    rows = make_pool().remove_columns("language").add_column("language", ["de", None, None] * 8)
    rows.to_json(options["dataset_name"])
    _, output, _ = command()
    assert len([message for message in caplog.messages if "16 of 24" in message]) == 1
    assert "(none)" in output
    (model,) = written(tmp_path)["models"].values()
    assert {group: part["pairs"] for group, part in model["groups"].items()} == {"de": 8, "(none)": 16}


def test_names_of_folders_leave_room_for_the_differences(command, options, tmp_path):
    """In a terminal of 80 columns, with paths that are longer than that."""
    folder = tmp_path / ("long_" * 20)
    models = [str(shutil.copytree(options[key], folder / key)) for key in ("model_name_or_path", "ref_model")]
    _, output, _ = command(model_name_or_path=None, ref_model=None, compare=models)
    table = output[output.rindex("Differences", 0, output.rindex("Differences")) :]
    assert all(text in table for text in ("de", "sw", "日本", "all pairs"))
    (difference,) = written(tmp_path)["differences"].values()
    for part in (difference["overall"], *difference["groups"].values()):
        low, high = (f"{100 * bound:+.1f}" for bound in part["interval_95"])
        assert f"[{low}, {high}]" in table


def test_all_ties_are_said(command, options, tmp_path):
    _, output, _ = command(ref_model=options["model_name_or_path"])
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    for text in (output, report):
        assert "every pair is a tie" in " ".join(text.split())
        rows = [line.replace("|", " ").split() for line in text.splitlines()]
        assert [row[1:4] for row in rows if row[:1] == ["sw"]] == [["8", "-", "100.0"]]


def test_a_disk_that_fills_up_is_one_error(command, monkeypatch, tmp_path):
    def write(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trl_capo.report._make_files", write)
    code, _, errors = command()
    assert code == 2
    folder = str(tmp_path / "out")
    assert f"trl-capo evaluate: error: output_dir={folder!r}: [Errno 28] No space left on device" in errors
    assert "Traceback" not in errors
