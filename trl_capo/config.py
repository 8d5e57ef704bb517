"""CAPOConfig: DPOConfig plus CAPO's own options, and the check that every combination of them means something.

What TRL itself refuses in time is left to TRL. What TRL would ignore in silence, what has no confidence to scale by,
or what ends a training that has begun, is refused here, all problems at once, before a model is loaded.
"""

import contextlib
import inspect
import math
import sys
from dataclasses import dataclass, field
from os import PathLike

from torch.utils.checkpoint import checkpoint
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from trl import DPOConfig

from trl_capo.groups import parse_group_column
from trl_capo.late_problems import late_problems
from trl_capo.losses import F_DIVERGENCES

_MOST = sys.float_info.max
_RANGES = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), (1, _MOST)),
    **dict.fromkeys(("learning_rate", "weight_decay", "warmup_steps", "num_train_epochs", "eval_delay"), (0, _MOST)),
    **dict.fromkeys(("logging_steps", "eval_steps", "save_steps", "save_total_limit", "adam_epsilon"), (0, _MOST)),
    **dict.fromkeys(("dataloader_num_workers", "label_smoothing", "neftune_noise_alpha"), (0, _MOST)),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), (0, math.nextafter(1, 0))),
    **dict.fromkeys(("gradient_accumulation_steps", "pad_to_multiple_of", "ref_model_sync_steps"), (1, _MOST)),
    "dataloader_prefetch_factor": (1, _MOST),
    "ref_model_mixup_alpha": (0, 1),
    "max_grad_norm": (0, math.inf),
    "max_length": (2, _MOST),
    "seed": (0, 2**32 - 1),
}
"""The least and the most that options of TRL and Transformers can be, which do not check it themselves."""
_CHECKPOINTING = {"preserve_rng_state"} | set(inspect.signature(checkpoint).parameters) - {
    "function",
    "args",
    "kwargs",
}
_SMOOTHED_LOSSES = {"robust", "exo_pair", "aot", "aot_unpaired"}


@dataclass
class CAPOConfig(DPOConfig):
    """Configuration of `CAPOTrainer`: every option of `trl.DPOConfig`, and these.

    Parameters:
        noise_rate (`float` or `"auto"`, *optional*, defaults to `"auto"`):
            Share of the preference labels that are flipped, in [0, 0.5]. `0` is DPO, to the bit (with dropout, up to
            the order in which policy and reference draw random numbers). `0.5` trusts a label
            exactly as far as the model agrees with it. `"auto"` estimates it while training, for every group of
            `group_column`, from how often the labels agree with the model on pairs that it has not learned from yet:
            in the first epoch, over all processes; then it is frozen. Every pair has a rate of its own by what the
            reference thinks of it, as far as that agrees with the labels of its group (and of the others, while the
            group's pairs are few), and, when it is met again, by what the model thought of it at first sight. Kept in
            checkpoints.
        use_reference_margin (`bool`, *optional*, defaults to `False`):
            With `"auto"`, also use the reference model's margin as evidence on which labels are likely wrong
            (docs/method.md, eq. 8). This can win much at high noise rates, and it can do harm in languages in which
            the reference prefers answers in another language. Leave it off if the reference was trained on these
            pairs. A reference that follows the policy (`sync_ref_model`) is never used.
        confidence_temperature (`float`, *optional*, defaults to `1.0`):
            Temperature tau > 0 of the confidence, in units of reward (beta times nats). `1` is the Bradley-Terry model
            that DPO assumes; less gives up contradicted pairs sooner; a large value gives every pair the scale 1.
        group_column (`str`, *optional*, defaults to `"auto"`):
            Column that names each pair's group, by which rewards are reported: text or numbers, a group of its own for
            missing values. `"auto"` is `language` where the data have it; `None` (`none` in YAML) turns groups off.
        pair_log (`bool` or `str`, *optional*):
            Log every pair of every training step, for `trl-capo audit`: `True` into the folder `pair_log` of
            `output_dir`, or into the folder of that name. A training that is resumed goes on with the log, one that
            starts anew replaces that of the same pairs. See docs/audit.md.

    Raises:
        ValueError: options that cannot be used together, or a value out of its range. One message names them all.
    """

    # The `None` makes TRL's parser read the option as text, so that the command line can say `auto` (as TRL's own
    # `pad_to_multiple_of` does); the value None is refused below.
    noise_rate: float | str | None = field(
        default="auto",
        metadata={
            "help": "Share of the preference labels that are flipped, in [0, 0.5], or 'auto' to estimate it while "
            "training. 0 is DPO."
        },
    )
    use_reference_margin: bool = field(
        default=False,
        metadata={
            "help": "With noise_rate 'auto', also use the reference model's margin as evidence on which labels are "
            "likely wrong. Leave it off if the reference was trained on these pairs."
        },
    )
    confidence_temperature: float = field(
        default=1.0,
        metadata={
            "help": "Temperature tau > 0 of the confidence, in units of reward: 1 is the Bradley-Terry model that DPO "
            "assumes, less gives up contradicted pairs sooner."
        },
    )

    group_column: str | None = field(
        default="auto",
        metadata={
            "help": "Column that names each pair's group, by which rewards are reported. 'auto': `language` where the "
            "data have it; 'none': no groups."
        },
    )

    pair_log: str | None = field(
        default=None,
        metadata={
            "help": "Log every pair of every training step, for `trl-capo audit`: true for the folder `pair_log` of "
            "output_dir, or a folder's name."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if str(self.pair_log).lower() in ("true", "false", "none"):  # text on a command line
            self.pair_log = True if str(self.pair_log).lower() == "true" else None
        self.group_column = parse_group_column(self.group_column)
        if isinstance(self.noise_rate, str) and self.noise_rate != "auto":
            with contextlib.suppress(ValueError):  # the check below names what is not a number
                self.noise_rate = float(self.noise_rate)
        self._capo_check()

    @property
    def asks_reference(self) -> bool:
        """Whether the reference is asked which labels are likely wrong."""
        return self.noise_rate == "auto" and self.use_reference_margin and not self.sync_ref_model

    def _capo_check(self) -> None:
        """Raise one ValueError that names every problem: option, value, reason and remedy."""
        problems = config_problems(self)
        if problems:
            raise ValueError("CAPOConfig cannot be used as it is:\n" + "\n".join(f"- {line}" for line in problems))


def config_problems(args: CAPOConfig) -> list[str]:
    """Why the options cannot be used, a sentence or two for each, which start with the option's name and value."""
    return _range_problems(args) + _combination_problems(args) + late_problems(args)


def sigmoid_weight(args: DPOConfig) -> float:
    """The weight of the "sigmoid" term, whose pair losses CAPO scales, in the sum of losses."""
    weights = args.loss_weights or [1.0] * len(args.loss_type)
    return sum(weight for name, weight in zip(args.loss_type, weights, strict=True) if name == "sigmoid")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _range_problems(args: CAPOConfig) -> list[str]:
    problems = []
    if args.noise_rate != "auto" and not (_is_number(args.noise_rate) and 0 <= args.noise_rate <= 0.5):
        problems.append(
            f"noise_rate={args.noise_rate!r}: it is a share of flipped labels, and above 0.5 labels would mean their "
            "opposite. Give a number in [0, 0.5], or 'auto'."
        )
    if not (_is_number(args.confidence_temperature) and args.confidence_temperature > 0):
        problems.append(
            f"confidence_temperature={args.confidence_temperature!r}: relative rewards are divided by it. Give a "
            "positive number; 1 is the Bradley-Terry model."
        )
    if not (_is_number(args.beta) and args.beta > 0):
        problems.append(f"beta={args.beta!r}: without a positive beta no reward is defined. 0.1 is TRL's default.")
    if args.ld_alpha is not None and not (_is_number(args.ld_alpha) and 0 <= args.ld_alpha <= 1):
        problems.append(
            f"ld_alpha={args.ld_alpha!r}: it weighs the tokens beyond the shorter completion. Give a number in "
            "[0, 1], or None for no weighting."
        )
    if not _is_number(args.f_alpha_divergence_coef):
        problems.append(
            f"f_alpha_divergence_coef={args.f_alpha_divergence_coef!r}: give a number; 0.5 is TRL's default."
        )
    for name, (least, most) in _RANGES.items():
        value = getattr(args, name)
        if value is not None and not least <= value <= most:
            above = "" if most == _MOST else f" to {most:.10g}"
            problems.append(f"{name}={value!r}: give a number from {least}{above}, and not nan or inf.")
    if args.loss_weights is not None and not all(map(_is_number, args.loss_weights)):
        problems.append(f"loss_weights={args.loss_weights!r}: give finite numbers.")
    if args.truncation_mode not in ("keep_start", "keep_end"):
        problems.append(f"truncation_mode={args.truncation_mode!r}: choose 'keep_start' or 'keep_end'.")
    if args.group_column is not None and not isinstance(args.group_column, str):
        problems.append(f"group_column={args.group_column!r}: give a column's name, 'auto', or None for no groups.")
    if not isinstance(args.pair_log, bool | str | PathLike | None) or not str(args.pair_log).strip():
        problems.append(f"pair_log={args.pair_log!r}: give true, or the name of a folder.")
    if args.f_divergence_type not in F_DIVERGENCES:
        problems.append(
            f"f_divergence_type={args.f_divergence_type!r}: there is no such divergence. Choose one of "
            f"{', '.join(F_DIVERGENCES)}."
        )
    return problems


def _combination_problems(args: CAPOConfig) -> list[str]:
    problems = []
    unknown = [name for name in args.report_to if name not in INTEGRATION_TO_CALLBACK]
    if unknown:
        problems.append(
            f"report_to={args.report_to}: Transformers knows no tracker {', '.join(map(repr, unknown))}. Choose of "
            f"{', '.join(INTEGRATION_TO_CALLBACK)}, or none."
        )
    losses = set(args.loss_type)
    if args.noise_rate != 0 and sigmoid_weight(args) == 0:
        weights = "" if args.loss_weights is None else f" and loss_weights={args.loss_weights}"
        problems.append(
            f"loss_type={args.loss_type}{weights} with noise_rate={args.noise_rate!r}: CAPO scales the pair losses of "
            "'sigmoid', and there are none. Add 'sigmoid', or set noise_rate=0 to train with the plain losses."
        )
    if args.noise_rate != 0 and args.use_weighting:
        problems.append(
            f"use_weighting=True with noise_rate={args.noise_rate!r}: WPO's weights and CAPO's confidence would both "
            "scale the same pair losses. Set use_weighting=False, or noise_rate=0 to train plain WPO."
        )
    if args.use_weighting and losses & {"hinge", "sft"}:
        problems.append(
            f"use_weighting=True with loss_type={args.loss_type}: TRL's weighting fails on 'hinge' and 'sft' (it "
            "multiplies their losses in place). Leave them out, or set use_weighting=False."
        )
    if "robust" in losses and args.label_smoothing >= 0.5:
        problems.append(
            f"label_smoothing={args.label_smoothing!r} with loss_type={args.loss_type}: robust DPO divides by 1 - 2 "
            "label_smoothing, the share of flipped labels. Give a number below 0.5."
        )
    idle = set(args.gradient_checkpointing_kwargs or {}) - _CHECKPOINTING
    if idle:
        problems.append(
            f"gradient_checkpointing_kwargs={args.gradient_checkpointing_kwargs!r}: torch's checkpoint has no "
            f"{', '.join(sorted(idle))}. Choose of {', '.join(sorted(_CHECKPOINTING))}."
        )
    if args.enable_jit_checkpoint:
        problems.append(
            "enable_jit_checkpoint=True: CAPOTrainer saves a checkpoint on SIGTERM by itself, at a step that all "
            "processes agree on, which Transformers' way does not do. Leave the option out."
        )
    if args.label_smoothing != 0 and not losses & _SMOOTHED_LOSSES:
        rate = args.label_smoothing if args.label_smoothing <= 0.5 else "'auto'"
        problems.append(
            f"label_smoothing={args.label_smoothing!r} with loss_type={args.loss_type}: TRL ignores it there in "
            f"silence. For noisy labels set noise_rate={rate} instead (CAPO), or loss_type='robust' with noise_rate=0 "
            "(robust DPO)."
        )
    return problems
