"""Names that are paths, names that can be on the hub, and folders that can be written."""

import os
from pathlib import Path

import pytest
from broken_data import HUGE
from broken_places import NAMES

from trl_capo.paths import can_be_on_hub, find_path, output_folder


def test_a_path_is_found_if_it_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a").mkdir()
    assert find_path("~/a") == find_path(str(tmp_path / "a")) == tmp_path / "a"
    assert [find_path(name) for name in (str(tmp_path / "b"), "a\0b", HUGE, "~nobodyhere")] == [None] * 4


@pytest.mark.parametrize("name", ["squad", "owner/data", "owner/data-1.0_x"])
def test_names_of_the_hub(name):
    assert can_be_on_hub(name)


@pytest.mark.parametrize("case", NAMES)
def test_names_that_are_none_of_the_hub(case):
    assert not can_be_on_hub(NAMES[case])


def test_an_output_folder_need_not_be_there_and_is_not_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert output_folder("~/deep/out") == tmp_path / "deep" / "out"
    assert output_folder("out") == Path("out")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["", "a\0b", "~nobodyhere/a", HUGE, "/dev/null", "/dev/null/a", "loop"])
def test_a_folder_that_cannot_be_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    os.symlink("loop", "loop")
    with pytest.raises(ValueError, match="output_dir=.*Give another output_dir"):
        output_folder(name)
