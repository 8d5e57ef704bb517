"""YAML files are read as PyYAML reads them, but for what nobody means. What is refused: test_broken_input.py."""

import math
import re

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from trl_capo.yaml_files import read_yaml

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


class Writer(yaml.Dumper):
    """Quotes text like 0E0, a number where 1e-4 is one; PyYAML itself follows YAML 1.1, where neither is."""


Writer.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


@example(content={"0E0": {"1e-4": ["-2E3", 1e-4]}})
@given(content=st.dictionaries(st.text(min_size=1), VALUES, max_size=4))
def test_what_was_written_is_read(tmp_path_factory, content):
    file = tmp_path_factory.mktemp("yaml") / "file.yaml"
    file.write_text(yaml.dump(content, Dumper=Writer), encoding="utf-8")
    assert read_yaml(str(file)) == content


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("a: 1e-4", {"a": 0.0001}),
        ("a: -2E3\nb: 1.e5\nc: 1e", {"a": -2000.0, "b": 100000.0, "c": "1e"}),
        ("a: &x {b: 1}\nc: *x", {"a": {"b": 1}, "c": {"b": 1}}),
        ("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}", {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}}),
        ("\ufeffa: ä", {"a": "ä"}),
        ("{}", {}),
    ],
)
def test_numbers_anchors_and_byte_order_marks(tmp_path, text, content):
    (tmp_path / "file.yaml").write_text(text, encoding="utf-8")
    assert read_yaml(str(tmp_path / "file.yaml")) == content


def test_utf_16_with_its_mark_and_not_a_number(tmp_path):
    (tmp_path / "file.yaml").write_bytes("a: .nan".encode("utf-16"))
    assert math.isnan(read_yaml(str(tmp_path / "file.yaml"))["a"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: {c: 1,\n  c: 2}", "line 3, column 3: 'c' comes twice"),
        ("a: 1\nb: [", "line 2, column 5: "),
        ("a: &a [*a]", "nested more than 20 levels deep"),
        ("- a", "it must be a mapping of options, not a list"),
        ("1: a", "options have names, and 1 is none"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path, text, said):
    (tmp_path / "file.yaml").write_text(text)
    with pytest.raises(ValueError, match="config='.*file.yaml'") as error:
        read_yaml(str(tmp_path / "file.yaml"))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "kind"), [("gone.yaml", FileNotFoundError), (".", OSError), ("a\0b", ValueError)])
def test_what_is_no_file_is_named(tmp_path, name, kind):
    with pytest.raises(kind, match="config="):
        read_yaml(str(tmp_path / name))
