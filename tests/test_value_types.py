"""Values against the types of dataclasses: by hand, and for every default of every option there is."""

from dataclasses import fields
from typing import Any, Literal, get_type_hints

import pytest
from transformers import IntervalStrategy

from trl_capo.config import CAPOConfig
from trl_capo.evaluate_arguments import EvaluateArguments
from trl_capo.value_types import fits, type_problems

FITTING = [
    (1, float), (1, int), (1.5, float), ("a", str), (True, bool), (None, str | None), ([], list[str]),
    ({"a": 1}, dict), ({"a": True}, dict[str, bool]), ("no", IntervalStrategy), (False, str | Literal[False]),
    (3, Any), (["a"], list[str]), ({"a": 1}, EvaluateArguments), ([1, 2.5], list[float] | None),
]  # fmt: skip
OTHERS = [
    (True, float), (True, int), (1.0, int), (1, str), (1, bool), (None, str), ("a", list[str]), ([1], list[str]),
    ([["a"]], list[str]), ({"a": 1}, dict[str, bool]), ([], dict), (False, IntervalStrategy),
    (True, str | Literal[False]), ([1], EvaluateArguments), (["a"], list[float] | None), ((), list[str]),
]  # fmt: skip


@pytest.mark.parametrize(("value", "hint"), FITTING, ids=str)
def test_values_of_the_type(value, hint):
    assert fits(value, hint)
    assert type_problems({"name": value}, {"name": hint}) == []


@pytest.mark.parametrize(("value", "hint"), OTHERS, ids=str)
def test_values_of_another_type(value, hint):
    assert not fits(value, hint)
    (problem,) = type_problems({"name": value}, {"name": hint})
    assert problem.startswith(f"name={value!r}: give ")


@pytest.mark.parametrize("kind", [CAPOConfig, EvaluateArguments])
def test_every_option_can_be_put_into_words_and_its_value_is_of_its_type(kind, tmp_path):
    on_cpu = {"use_cpu": True, "bf16": False} if kind is CAPOConfig else {}
    options, hints = kind(output_dir=str(tmp_path), **on_cpu), get_type_hints(kind)
    for field in fields(kind):
        assert type_problems({field.name: object()}, hints), field.name
        value = getattr(options, field.name)
        assert fits(getattr(value, "value", value), hints[field.name]) or field.name == "accelerator_config"


def test_words():
    hints = {"a": float | str | None, "b": list[float], "c": bool, "d": Literal["x", "y"], "e": dict | str | None}
    values = {"a": [], "b": 3, "c": None, "d": True, "e": 5, "other": 3}
    assert type_problems(values, hints) == [
        "a=[]: give a number or text.",
        "b=3: give a list, each entry a number.",
        "c=None: give true or false. It is empty: leave it out, or give a value.",
        "d=True: give 'x' or 'y'. YAML reads a bare no, yes, on or off as true or false: put it in quotes.",
        "e=5: give a mapping or text.",
    ]
