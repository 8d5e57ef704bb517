"""A dry run of the tiny model on rows, and models whose weights' files have only their heads."""

import json

import pytest
import yaml
from conftest import CPU_ARGUMENTS, byte_tokenizer, make_pairs, tiny_config

from trl_capo import cli
from trl_capo.memory import empty_model


@pytest.fixture(name="model_without_weights")
def without_weights(tmp_path) -> str:
    """A folder whose weights' file has a head, and below it a hole."""
    return save_hollow_model(tmp_path / "model", tiny_config(architectures=["LlamaForCausalLM"]))


def save_hollow_model(folder, config) -> str:
    config.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    head, end = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in empty_model(config).state_dict().items():
        start, end = end, end + 4 * tensor.numel()
        head[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(head).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return str(folder)


@pytest.fixture(name="dry_run")
def runner(tmp_path, model_without_weights, capfd):
    """Exit code and output of `trl-capo train --dry_run` on rows; words are added, options win, None removes one."""

    def run(rows=None, words=(), **changes) -> tuple[int, str]:
        rows = make_pairs().to_list() if rows is None else rows
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / "pairs.jsonl").write_text("".join(lines), encoding="utf-8")
        options = CPU_ARGUMENTS | {"dataset_name": str(tmp_path / "pairs.jsonl"), "output_dir": str(tmp_path / "out")}
        options |= {"model_name_or_path": model_without_weights} | changes
        (tmp_path / "run.yaml").write_text(yaml.dump({k: v for k, v in options.items() if v is not None}))
        before = sorted(tmp_path.rglob("*"))
        capfd.readouterr()
        code = cli.main(["train", "--config", str(tmp_path / "run.yaml"), "--dry_run", *words])
        output = capfd.readouterr()
        assert sorted(tmp_path.rglob("*")) == before
        assert "Traceback" not in output.out + output.err
        return code, " ".join(output.out.split()) + (output.err if code == 2 else "")

    return run
