"""Whether the options of the optimiser and of the learning rate's schedule can be used: both are made, for nothing.

Transformers makes them when training starts, and what is wrong with their options ends it there.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim import Optimizer
from transformers import PreTrainedModel, Trainer, get_scheduler
from transformers.trainer_optimizer import _parse_optim_args, is_optimizer_factory
from transformers.trainer_utils import SchedulerType

from trl_capo.config import CAPOConfig

STEPS = 1000
"""Of a schedule that is tried, where the number is not known."""
_WITHOUT_OPTIONS = (SchedulerType.CONSTANT, SchedulerType.CONSTANT_WITH_WARMUP)


def optimiser_problems(args: CAPOConfig, model: PreTrainedModel | None) -> list[str]:
    """Why the optimiser or its schedule cannot be made, in a sentence or two each.

    Args:
        args: of the training.
        model: whose modules some optimisers choose from, on any device; None if there is none.
    """
    if args.optim_target_modules and model is None:
        return []
    problems, optimizer = [], None
    told = f"optim={str(args.optim.value)!r}" + (f" with optim_args={args.optim_args!r}" if args.optim_args else "")
    with _refusing(problems, told, "the optimiser cannot be made"):
        optimizer = _make(args, model)
        problems += _without_effect(args, model)
    kind = args.lr_scheduler_type
    told = f"lr_scheduler_type={str(getattr(kind, 'value', kind))!r}"
    told += f" with lr_scheduler_kwargs={args.lr_scheduler_kwargs!r}" if args.lr_scheduler_kwargs else ""
    with _refusing(problems, told, "the schedule of the learning rate cannot be made"):
        if args.lr_scheduler_kwargs and kind in _WITHOUT_OPTIONS:
            raise ValueError("this schedule has no options")
        _try_schedule(args, optimizer or torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate))
    return problems


@contextmanager
def _refusing(problems: list[str], told: str, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of any optimiser's or schedule's own checks
        problems.append(f"{told}: {what} ({type(error).__name__}: {error}). Mend or leave out these options.")


def _make(args: CAPOConfig, model: PreTrainedModel | None) -> Optimizer | None:
    """The optimiser as Transformers makes it, of one parameter where it is free to choose; None if it makes itself."""
    kind, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
    if is_optimizer_factory(kind):
        return None
    parameters: Any = [torch.nn.Parameter(torch.zeros(2, 2))]
    for own in ("params", "model", "optimizer_dict"):
        parameters = options.pop(own, parameters)
    return kind(parameters, **options)


def _without_effect(args: CAPOConfig, model: PreTrainedModel | None) -> list[str]:
    """The parts of `optim_args` that the optimiser does not look at."""
    given = _parse_optim_args(args.optim_args)
    if args.optim_target_modules:
        return []  # those hold tensors, which do not compare
    kept, idle = args.optim_args, []
    try:
        everything = Trainer.get_optimizer_cls_and_kwargs(args, model)
        for name in given:
            args.optim_args = ",".join(f"{other}={value}" for other, value in given.items() if other != name)
            if Trainer.get_optimizer_cls_and_kwargs(args, model) == everything:
                idle.append(name)
    finally:
        args.optim_args = kept
    if not idle:
        return []
    return [
        f"optim_args={kept!r} with optim={str(args.optim.value)!r}: {', '.join(idle)} would change nothing there. "
        "Leave it out, or choose an optimiser that has it."
    ]


def _try_schedule(args: CAPOConfig, optimizer: Optimizer) -> None:
    """Make the schedule and look at its start, middle and end."""
    steps = args.max_steps if args.max_steps > 0 else STEPS
    schedule = get_scheduler(
        args.lr_scheduler_type, optimizer, args.get_warmup_steps(steps), steps, args.lr_scheduler_kwargs
    )
    for factor in getattr(schedule, "lr_lambdas", ()):
        for step in (0, steps // 2, steps - 1, steps):
            if not math.isfinite(factor(step)):
                raise ValueError(f"at step {step:,} of {steps:,} its learning rate is {factor(step)} times the given")
