"""docs/cluster.md shows what its command prints, for the settings of `configs/`."""

from pathlib import Path

import pytest
import yaml

from trl_capo.memory_table import FULL, LORA, QLORA, table

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")


def test_the_page_shows_the_table_below_its_command():
    command = "python -m trl_capo.memory_table"
    assert table() in PAGE[PAGE.index(command) :]


@pytest.mark.parametrize(("name", "way"), [("full", FULL), ("lora", LORA), ("qlora", QLORA)])
def test_it_is_of_the_settings_of_the_configs(name, way):
    options = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert (options["per_device_train_batch_size"], options["max_length"]) == (way.pairs, way.tokens)
    assert {"float32": 4, "bfloat16": 2}[options["dtype"]] == way.weight_bytes
    assert ("load_in_4bit" in options, options.get("lora_r", 32)) == (way.bits is not None, 32)
