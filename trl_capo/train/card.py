"""The model card of `trl-capo train`: TRL's, with what the run found about labels and accuracy in every group."""

import importlib.util
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from datasets import Dataset

from trl_capo.common.intervals import wilson_interval
from trl_capo.common.text import count, markdown_table, one_line, percent
from trl_capo.core.pairs import GROUP
from trl_capo.core.trainer import CAPOTrainer

_BEFORE, _ACCURACY = "### Framework versions", "eval_rewards/accuracies"
_HIDDEN = {"output_dir", "run_name", "report_to", "model_init_kwargs", "push_to_hub", "hub_model_id", "use_cpu"}
_HIDDEN |= {"model_name_or_path", "dtype", "use_peft"}  # which TRL's card or the other options show
_FILLED_IN = {"bf16", "activation_checkpointing", "disable_tqdm", "report_to", "accelerator_config", "debug"}
_FILLED_IN |= {"dataloader_pin_memory", "pad_to_multiple_of"}  # by transformers, where nothing is given


class CardTrainer(CAPOTrainer):
    """CAPOTrainer whose model card also has the options that differ from the defaults, and a table of the groups."""

    parsed: Sequence[Any] = ()  # further options than `args`

    def create_model_card(self, model_name=None, dataset_name=None, tags=None) -> None:
        super().create_model_card(model_name=model_name, dataset_name=dataset_name, tags=tags)
        card = Path(self.args.output_dir, "README.md")
        if self.is_world_process_zero() and card.is_file():
            base = Path(self.model.config._name_or_path).name  # TRL writes None for folders
            text = card.read_text(encoding="utf-8").replace("[None](https://huggingface.co/None)", f"`{base}`")
            before, mark, after = text.replace('model="None"', f'model="{card.parent}"').partition(_BEFORE)
            card.write_text(f"{before}{describe(self)}\n{mark}{after}", encoding="utf-8")


def describe(trainer: CAPOTrainer) -> str:
    """Return a section on the options, and on the noise rate and the accuracy of every group, in Markdown."""
    changed = changed_options([trainer.args, *trainer.parsed])
    options = [line for line in changed if line.partition("=")[0] not in _HIDDEN]
    lines = ["Options that differ from the defaults:\n", "```", *map(one_line, options), "```\n"]
    estimator, names = trainer.noise_rate_estimator, trainer._capo_index.group_names
    rates = estimator.by_group() or {"all pairs": estimator.noise_rates[0].item()} if estimator else {}
    held_out = trainer.eval_dataset if isinstance(trainer.eval_dataset, Dataset) else {GROUP: []}
    logs = reversed(trainer.state.log_history if held_out[GROUP] else [])
    best = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None  # the saved model's step
    found = next((log for log in logs if _ACCURACY in log and best in (None, log["step"])), {})
    numbers = Counter(names[number] for number in held_out[GROUP][:] if number >= 0)
    numbers["all pairs"] = len(held_out[GROUP])
    rows = [["group", "noise rate, estimated, %", "held-out pairs", "reward accuracy, % [95 %]"]]
    for name in [*names, "all pairs"]:
        accuracy, pairs = found.get(_ACCURACY if name == "all pairs" else f"{_ACCURACY}/{name}"), numbers[name]
        known = accuracy is not None and pairs and importlib.util.find_spec("scipy")
        interval = wilson_interval(round(accuracy * pairs), pairs) if known else None
        rows.append([name, percent(rates.get(name)), count(pairs) if pairs else "-", percent(accuracy, interval)])
    note = "Reward accuracy: share of held-out pairs whose chosen answer has the higher reward under this model."
    return "\n".join([*lines, markdown_table(rows), "", note, ""])


def changed_options(parsed: Sequence[Any]) -> Iterator[str]:
    """Yield the options that differ from their defaults; secrets are hidden.

    No second CAPOConfig is built, because that would reset Accelerate's state while a run uses it.
    """
    for options in parsed:
        for field in fields(options):
            default = field.default if field.default_factory is MISSING else field.default_factory()
            name, value = field.name, getattr(options, field.name)
            if value != default and not (name in _FILLED_IN and default in (None, "", "auto", "none", True)):
                yield f"{name}={'***' if name.endswith('_token') else getattr(value, 'value', value)}"
