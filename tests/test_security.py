"""Nothing that is given as a model, an adapter, a checkpoint or data runs as code, and nothing is written elsewhere.

`Plant` is a pickle that makes a folder where it is loaded; the last test of it shows that it would.
"""

import ast
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import CPU_ARGUMENTS, make_pairs
from refusals import MAINS, refusal, write_yaml

PROJECT = Path(__file__).parents[1]
SAVING = CPU_ARGUMENTS | {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
CODE = "import os; os.mkdir({!r})\nfrom transformers import LlamaConfig as Config, LlamaForCausalLM as Model\n"


class Plant:
    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def plant(file: Path, ran: Path, bare: bool) -> None:
    if bare:
        file.write_bytes(pickle.dumps(Plant(ran)))
    else:
        torch.save({"lm_head.weight": torch.zeros(1), "more": Plant(ran)}, file)


@pytest.fixture
def ran(tmp_path) -> Path:
    return tmp_path / "ran"


@pytest.fixture
def options(tmp_path, model_dir) -> dict:
    make_pairs().to_json(tmp_path / "data.jsonl", force_ascii=False)
    return {"model_name_or_path": model_dir, "dataset_name": str(tmp_path / "data.jsonl")}


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize("own_type", [True, False])
def test_code_in_a_model_folder_does_not_run_unasked(tmp_path, options, ran, capfd, command, own_type):
    """Of a type of its own the model cannot be used; of a known type, Transformers' own code is used in its place."""
    model = Path(shutil.copytree(options["model_name_or_path"], tmp_path / "model"))
    (model / "evil.py").write_text(CODE.format(str(ran)))
    for name, own in (
        ("config.json", {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.Model", None]}),
    ):
        content = json.loads((model / name).read_text()) | {"auto_map": own}
        (model / name).write_text(json.dumps(content | ({"model_type": "evil"} if own_type else {})))
    arguments = options | {"model_name_or_path": str(model), "output_dir": str(tmp_path / "out")}
    arguments |= SAVING if command == "train" else {}
    if own_type:
        assert "custom code" in refusal(command, write_yaml(tmp_path, arguments), tmp_path, capfd)
    else:
        assert MAINS[command](write_yaml(tmp_path, arguments)) == 0
    assert not ran.exists()


@pytest.mark.parametrize("name", ["data.py", "train.py", "dataset_infos.py"])
def test_code_in_a_data_folder_does_not_run(tmp_path, ran, capfd, name):
    (tmp_path / "data").mkdir()
    make_pairs().to_json(tmp_path / "data" / "train.jsonl", force_ascii=False)
    (tmp_path / "data" / name).write_text(CODE.format(str(ran)))
    options = {
        "dataset_name": str(tmp_path / "data"),
        "output_dir": str(tmp_path / "out"),
        "kind": "flip",
        "rate": 0.2,
    }
    assert MAINS["noise"](write_yaml(tmp_path, options)) == (2 if name == "data.py" else 0)
    assert not ran.exists()


@pytest.mark.parametrize("bare", [True, False])
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_pickle_in_place_of_weights_is_not_loaded(tmp_path, options, ran, capfd, command, bare):
    model = Path(shutil.copytree(options["model_name_or_path"], tmp_path / "model"))
    (model / "model.safetensors").unlink()
    plant(model / "pytorch_model.bin", ran, bare)
    arguments = options | {"model_name_or_path": str(model), "output_dir": str(tmp_path / "out")}
    arguments |= SAVING if command == "train" else {}
    message = refusal(command, write_yaml(tmp_path, arguments), tmp_path, capfd)
    assert "pytorch_model.bin holds something other than weights" in message
    assert not ran.exists()


@pytest.mark.parametrize("bare", [True, False])
def test_a_pickle_in_place_of_an_adapter_is_not_loaded(tmp_path, options, lora_dir, ran, capfd, bare):
    adapter = Path(shutil.copytree(lora_dir, tmp_path / "adapter"))
    (adapter / "adapter_model.safetensors").unlink()
    plant(adapter / "adapter_model.bin", ran, bare)
    message = refusal("evaluate", write_yaml(tmp_path, options | {"adapter": str(adapter)}), tmp_path, capfd)
    assert "adapter_model.bin holds something other than weights" in message
    assert not ran.exists()


def test_weights_in_a_pickle_of_tensors_are_used(tmp_path, options):
    from safetensors.torch import load_file

    model = Path(shutil.copytree(options["model_name_or_path"], tmp_path / "model"))
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    assert MAINS["evaluate"](write_yaml(tmp_path, options | {"model_name_or_path": str(model)})) == 0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, model_dir) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    make_pairs().to_json(folder / "data.jsonl", force_ascii=False)
    options = {"model_name_or_path": model_dir, "dataset_name": str(folder / "data.jsonl")}
    assert MAINS["train"](write_yaml(folder, options | SAVING | {"output_dir": str(folder / "out")})) == 0
    return folder / "out" / "checkpoint-1"


@pytest.mark.parametrize("bare", [True, False])
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_a_pickle_in_a_checkpoint_is_not_loaded(tmp_path, options, checkpoint, ran, capfd, name, bare):
    """Transformers reads tensors and plain values alone of the first three, and nothing of training_args.bin."""
    spoiled = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    plant(spoiled / name, ran, bare)
    (spoiled / "capo_state.json").unlink()  # else the sizes in it tell that a file was exchanged
    resume = {"resume_from_checkpoint": str(spoiled), "max_steps": 2, "output_dir": str(tmp_path / "out")}
    arguments = write_yaml(tmp_path, options | SAVING | resume)
    if name == "training_args.bin":
        assert MAINS["train"](arguments) == 0
    else:
        assert MAINS["train"](arguments) == 2
        said = capfd.readouterr().err
        assert f"it is no whole checkpoint: {name}: it holds something other than tensors" in said
    assert not ran.exists()


def test_the_plant_would_run(ran):
    pickle.loads(pickle.dumps(Plant(ran)))
    assert ran.exists()


def test_the_package_starts_no_shell_and_loads_no_pickle():
    """Read from the sources: no call that could, but torch.load of weights alone."""
    for file in sorted((PROJECT / "trl_capo").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name, keywords = ast.unparse(node.func), {key.arg: ast.unparse(key.value) for key in node.keywords}
                assert name not in (
                    "eval",
                    "exec",
                    "os.system",
                    "os.popen",
                    "pickle.load",
                    "pickle.loads",
                    "yaml.load_all",
                )
                assert "shell" not in keywords, file
                assert keywords.get("allow_pickle") != "True", file
                assert name != "torch.load" or keywords["weights_only"] == "True", file


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_files_are_written_below_the_output_folder_and_in_caches_only(tmp_path, options, command):
    """Through the installed command, in an empty folder, with a home and a folder for temporary files of its own."""
    own = {"HOME": "home", "TMPDIR": "temporary"}
    for name in ("work", *own.values()):
        (tmp_path / name).mkdir()
    arguments = options | {"output_dir": "out"} | (SAVING if command == "train" else {})
    config = write_yaml(tmp_path, arguments)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_", "MPL"))}
    environment = kept | {name: str(tmp_path / folder) for name, folder in own.items()} | {"HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-m", "trl_capo.cli", command, *config]
    done = subprocess.run(words, cwd=tmp_path / "work", env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    written -= {str(path.relative_to(tmp_path)) for path in before}
    caches = ("home/.cache/huggingface/", "home/.cache/matplotlib/")
    assert {path for path in written if not path.startswith(("work/out/", *caches))} == set()
    assert any(path.startswith("work/out/") for path in written)
