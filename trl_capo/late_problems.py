"""Options that Transformers refuses only when a training has begun, with a traceback, or that train nothing."""

from transformers import TrainingArguments
from transformers.utils import is_liger_kernel_available


def late_problems(args: TrainingArguments) -> list[str]:
    """Why the options cannot be used, a sentence or two for each, which start with the option's name and value."""
    problems = []
    if args.num_train_epochs == 0 and args.max_steps <= 0:
        problems.append(
            f"num_train_epochs={args.num_train_epochs!r}: nothing would be trained. Give a number above 0, or "
            "max_steps."
        )
    if args.use_liger_kernel and not is_liger_kernel_available():
        problems.append(
            "use_liger_kernel=True: the package liger-kernel is not installed here. Install it, or leave the option "
            "out."
        )
    if args.dataloader_persistent_workers and args.dataloader_num_workers == 0:
        problems.append(
            "dataloader_persistent_workers=True with dataloader_num_workers=0: there are no workers to keep. Give a "
            "dataloader_num_workers above 0, or leave the option out."
        )
    return problems
