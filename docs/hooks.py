"""Gives the files of the site the paths that they have in the repository, so that links work in both places."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for file in [file for file in files if file.src_dir == config.docs_dir]:
        files.remove(file)
        files.append(_file(config, Path(file.abs_src_path), file.dest_uri))
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "configs/README.md", "examples/README.md"):
        files.append(_file(config, ROOT / name))
    for path in [*ROOT.glob("configs/**/*.yaml"), *ROOT.glob("examples/*.[pi]*"), *ROOT.glob("scripts/**/*.*")]:
        # Browsers show a text, and would download a file of another type.
        files.append(_file(config, path, f"{path.relative_to(ROOT)}.txt"))
    return files


def _file(config: MkDocsConfig, path: Path, dest_uri: str | None = None) -> File:
    file = File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path))
    if dest_uri:
        file.dest_uri = dest_uri
    return file
