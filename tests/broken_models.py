"""Model folders that cannot be used: MODELS and AS_LOADED map a name to a function that spoils a good one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from broken_data import CONTROLS, HUGE, RIGHT_TO_LEFT, nested

Spoil = Callable[[Path], Any]


def content(name: str, text: str | bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def with_json(name: str, **changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return spoil


def without(*names: str) -> Spoil:
    return lambda folder: [(folder / name).unlink(missing_ok=True) for name in names]


def cut(name: str, size: int) -> Spoil:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def _folder_for_file(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return spoil


def _sharded(where: str) -> Spoil:
    """Weights in a shard that an index names, which is not there or lies elsewhere."""

    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        index = {"metadata": {"total_size": 1}, "weight_map": {"lm_head.weight": where}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return spoil


def _huge_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")


WEIGHTS = "model.safetensors"
MODELS: dict[str, Spoil] = {
    **{
        f"{name}: {kind}": content(name, text)
        for name in ("config.json", "tokenizer_config.json", "tokenizer.json")
        for kind, text in {
            "empty": "",
            "cut": '{"a": ',
            "list": "[]",
            "null": "null",
            "text": '"a"',
            "latin-1": b'{"a": "\xe4"}',
            "deep": nested(5000),
        }.items()
        if (name, kind) != ("tokenizer_config.json", "latin-1")
    },
    "no config": without("config.json"),
    "no weights": without(WEIGHTS),
    "no tokenizer": without("tokenizer.json", "tokenizer_config.json"),
    "empty folder": lambda folder: shutil.rmtree(folder) or folder.mkdir(),
    "config is a folder": _folder_for_file("config.json"),
    "weights are a folder": _folder_for_file(WEIGHTS),
    "unknown architecture": with_json("config.json", model_type="nosuch", architectures=["Nosuch"]),
    "huge architecture": with_json("config.json", model_type=HUGE),
    "unsafe architecture": with_json("config.json", model_type=RIGHT_TO_LEFT + CONTROLS),
    "no architecture": content("config.json", "{}"),
    "another task": with_json("config.json", architectures=["LlamaForSequenceClassification"]),
    "text as a size": with_json("config.json", hidden_size="many"),
    "null as a size": with_json("config.json", hidden_size=None),
    "no heads": with_json("config.json", num_attention_heads=0),
    "unknown dtype": with_json("config.json", dtype="float99"),
    "list as quantisation": with_json("config.json", quantization_config=[1]),
    "weights empty": content(WEIGHTS, b""),
    "weights of text": content(WEIGHTS, "hello"),
    "weights cut": cut(WEIGHTS, 2000),
    "weights cut in the header": cut(WEIGHTS, 100),
    "weights of a huge header": _huge_header,
    "shard is not there": _sharded("model-00001-of-00001.safetensors"),
    "shard elsewhere": _sharded("../../../../etc/passwd"),
}

AS_LOADED: dict[str, Spoil] = {  # what only the loading of the weights shows
    "wrong sizes": with_json("config.json", hidden_size=64),
    "negative size": with_json("config.json", hidden_size=-32),
    "small vocabulary": with_json("config.json", vocab_size=10),
    "index of no JSON": lambda folder: (
        (folder / WEIGHTS).rename(folder / "model-1.safetensors"),
        (folder / "model.safetensors.index.json").write_text("{"),
    ),
}
