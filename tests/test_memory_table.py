"""docs/memory.md shows what its command prints."""

from pathlib import Path

from trl_capo.memory_table import table

PAGE = (Path(__file__).parents[1] / "docs" / "memory.md").read_text(encoding="utf-8")


def test_the_page_shows_the_table_below_its_command():
    command = "python -m trl_capo.memory_table"
    assert table() in PAGE[PAGE.index(command) :]
