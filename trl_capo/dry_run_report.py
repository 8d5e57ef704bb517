"""What a dry run says, on one screen."""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields
from enum import Enum
from typing import Any

from trl_capo.arguments import without_renaming
from trl_capo.config import CAPOConfig
from trl_capo.memory import GIB, ModelShape, Setting, estimate
from trl_capo.plain import plain
from trl_capo.text_table import text_table
from trl_capo.token_lengths import Lengths, length_rows, length_warnings
from trl_capo.train import MISTAKES

WIDTH = 110
TIGHT = 0.9
"""Of the memory there is: more than this the estimate should not fill."""
TELLING = (
    *("noise_rate", "use_reference_margin", "confidence_temperature", "group_column", "beta", "loss_type"),
    *("max_length", "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("num_train_epochs", "max_steps", "dtype", "bf16", "gradient_checkpointing"),
    *("precompute_ref_log_probs", "use_peft", "load_in_4bit"),
    *("eval_strategy", "save_strategy", "save_steps", "seed"),
)
"""Settings that are worth showing where they are the defaults."""


@dataclass
class Findings:
    """What was found; what could not be looked at stays empty.

    Args:
        problems: what makes the training impossible; each may have several lines.
        warnings: what may be meant.
        settings, steps, memory: lines.
        pairs: that are trained on; of a stream those looked at.
        sampled: whether they are a stream's first.
        elsewhere: whether the training is for another machine than this.
        lengths: per group.
        group_name: the heading over the groups.
        max_length: what lengths are held against.
    """

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    settings: list[str] = field(default_factory=list)
    steps: str = ""
    memory: list[str] = field(default_factory=list)
    pairs: int = 0
    sampled: bool = False
    elsewhere: bool = False
    lengths: dict[str, Lengths] = field(default_factory=dict)
    group_name: str = "group"
    max_length: int | None = None

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Within it, the mistakes that end a training before it begins become problems instead."""
        try:
            yield
        except MISTAKES as error:
            self.problems.append(str(error) or type(error).__name__)


def settings_lines(parsed: Sequence[Any]) -> list[str]:
    """The settings that differ from their defaults, and below them the defaults of TELLING."""
    changed, same = [], []
    for options in parsed[:-1]:  # the last one asks for the dry run
        defaults = _defaults(options)
        for option in fields(options):
            value = getattr(options, option.name)
            shown = value.value if isinstance(value, Enum) else value
            if option.name.endswith("_token"):
                shown = value and "***"
            if value != getattr(defaults, option.name):
                changed.append(f"{option.name}={shown}")
            elif option.name in TELLING:
                same.append(f"{option.name}={shown}")
    return [*_wrapped("set: ", plain(", ".join(changed)), "  "), *_wrapped("default: ", ", ".join(same), "  ")]


def _defaults(options: Any) -> Any:
    """An object of the same class with no option set but those that the machine may insist on."""
    if not isinstance(options, CAPOConfig):
        required = {o.name: None for o in fields(options) if o.default is o.default_factory is MISSING}
        return type(options)(**required)
    with without_renaming():
        own = CAPOConfig(output_dir="", use_cpu=options.use_cpu, bf16=options.bf16, fp16=options.fp16)
    own.use_cpu, own.bf16, own.fp16 = False, not options.fp16, False
    return own


def memory_lines(
    shape: ModelShape, setting: Setting, device: tuple[int, str] | None, warnings: list[str]
) -> list[str]:
    """The estimate, against the memory and name of the device, where it is known; where it is too much, a warning."""
    terms = estimate(shape, setting)
    total = sum(terms.values())
    parts = ", ".join(f"{name} {_size(size)}" for name, size in terms.items() if size >= total / 100)
    trained = f"; {shape.adapter:,} in adapters are trained" if shape.adapter else ""
    of = f", of {_size(device[0])} here ({device[1]})" if device else ""
    if device and total > TIGHT * device[0]:
        warnings.append(
            f"the training takes about {_size(total)} a device, and here are {_size(device[0])} ({device[1]}). Where "
            "there is no more: a smaller per_device_train_batch_size or max_length, gradient_checkpointing, "
            "precompute_ref_log_probs, LoRA, or sharding (docs/memory.md)."
        )
    return [
        f"about {_size(total)} a device{of}, at {setting.pairs} pairs of {setting.tokens:,} tokens",
        *_wrapped("", parts, ""),
        f"parameters {shape.parameters:,}{trained}",
    ]


def _size(number: float) -> str:
    return f"{number / GIB:,.1f} GiB" if number >= GIB else f"{number / 2**20:,.0f} MiB"


def report(found: Findings) -> str:
    """All of it as text."""
    parts = []
    if found.settings:
        parts.append(_section("Settings", found.settings))
    if found.lengths:
        of = " (the first rows of a stream)" if found.sampled else ""
        title = f"Tokens of prompt and longer completion{of}, max_length {found.max_length}"
        table = text_table(length_rows(found.lengths, found.group_name, found.max_length))
        parts.append(_section(title, table.splitlines()))
    warnings = found.warnings + (length_warnings(found.lengths, found.max_length) if found.lengths else [])
    lines = [f"Steps: {found.steps}"] if found.steps else []
    lines += (
        [f"Memory, estimated: {found.memory[0]}", *("  " + line for line in found.memory[1:])] if found.memory else []
    )
    parts.append("\n".join(lines))
    parts += [_list("Warnings", warnings), _list("Problems", found.problems)]
    counts = f"{_count(len(found.problems), 'problem')}, {_count(len(warnings), 'warning')}"
    parts.append(f"Dry run: {counts}. Nothing was trained or written.")
    return "\n\n".join(part for part in parts if part)


def _section(title: str, lines: Sequence[str]) -> str:
    return "\n".join([title, *("  " + line for line in lines)])


def _list(title: str, items: Sequence[str]) -> str:
    lines = []
    for item in items:
        first, *rest = plain(item).splitlines()
        lines += _wrapped("- ", first, "  ")
        lines += [line for text in rest for line in _wrapped("  ", text, "    ")]
    return "\n".join([title + ":", *lines]) if items else ""


def _wrapped(head: str, text: str, indent: str) -> list[str]:
    return textwrap.wrap(head + text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
