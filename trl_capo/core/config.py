"""CAPOConfig: DPOConfig with CAPO's own options."""

import contextlib
import math
import warnings
from dataclasses import dataclass

from transformers.hf_argparser import HfArg
from trl import DPOConfig

from trl_capo.core.pairs import parse_column

_SMOOTHED_LOSSES = {"robust", "exo_pair", "aot", "aot_unpaired"}  # TRL's losses that use `label_smoothing`


@dataclass
class CAPOConfig(DPOConfig):
    """Configuration of `CAPOTrainer`: every option of `trl.DPOConfig`, and the following.

    Args:
        noise_rate: share of the preference labels that are flipped, in [0, 0.5]. `0` is DPO, bit for bit (with
            dropout, up to the order of random numbers). `0.5` trusts a label exactly as far as the model agrees with
            it. `"auto"` estimates the rate of every group while training, in the first epoch (docs/method.md).
        witness: with `"auto"`, evidence about labels: a column of numbers that are positive where they speak for the
            label, or NAME for the difference of NAME_chosen and NAME_rejected. `trl-capo annotate` writes `"probe"`.
        confidence_temperature: temperature tau > 0 of the confidence, in units of reward. `1` is the Bradley-Terry
            model that DPO assumes, smaller values give up on contradicted pairs sooner, and a large one gives every
            pair the scale 1.
        group_column: column that names each pair's group, by which noise rates and rewards are reported. `"auto"` is
            `language` if the data have that column; `None` (`none` in YAML) turns groups off.
        padding_free (bool): TRL 1.16 ignores it. `True` skips padding and computes common beginnings once
            (docs/performance.md). The default is `False`.

    Raises:
        ValueError: if options are out of range or do not fit together. One message names them all.
    """

    # The `None` makes TRL's parser read the option as text, so that the command line accepts `auto`.
    noise_rate: float | str | None = HfArg(default="auto", help="Share of flipped labels, up to 0.5, or auto; 0: DPO.")
    witness: str = HfArg(default="none", help="With auto, evidence about labels: a column of scores, or none.")
    confidence_temperature: float = HfArg(default=1.0, help="Temperature of the confidence, in units of reward.")
    group_column: str | None = HfArg(default="auto", help="Column of groups; auto: `language` if it exists; or none.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.group_column, self.witness = parse_column(self.group_column), parse_column(self.witness) or "none"
        if isinstance(self.noise_rate, str) and self.noise_rate != "auto":
            with contextlib.suppress(ValueError):  # the check below names a value that is not a number
                self.noise_rate = float(self.noise_rate)
        if problems := _problems(self):
            raise ValueError("CAPOConfig cannot be used as it is:\n" + "\n".join(f"- {line}" for line in problems))


def sigmoid_weight(args: DPOConfig) -> float:
    """Return the weight of the "sigmoid" term, whose pair losses CAPO scales, in the sum of losses."""
    weights = args.loss_weights or [1.0] * len(args.loss_type)
    return sum(weight for name, weight in zip(args.loss_type, weights, strict=True) if name == "sigmoid")


def check_adapters(model: object) -> None:
    """Refuse an adapter that changes its base, because the reference is that base with the adapter switched off."""
    for name, config in getattr(model, "peft_config", {}).items():
        bias, start = getattr(config, "bias", "none"), getattr(config, "init_lora_weights", True)
        layers = getattr(config, "layer_replication", None)
        if bias != "none" or layers or str(start).split("_")[0] in ("pissa", "olora", "corda", "loftq", "lora"):
            changes = f"bias={bias!r}, init_lora_weights={start!r}, layer_replication={layers} changes the base"
            raise ValueError(f"peft_config of adapter {name!r}: {changes}, the reference. Pass a ref_model instead.")
    if "ref" in getattr(model, "peft_config", {}):  # TRL copies no weights with other names into the reference
        for name, weight in model.named_parameters():
            if weight.requires_grad and ".default." not in name:
                raise ValueError(f"{name} is trained, but the reference starts without it: merge the adapter first.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _problems(args: CAPOConfig) -> list[str]:
    problems = []
    if args.noise_rate != "auto" and not (_is_number(args.noise_rate) and 0 <= args.noise_rate <= 0.5):
        problems.append(f"noise_rate={args.noise_rate!r}: give a share of labels in [0, 0.5], or 'auto'.")
    if not (_is_number(args.confidence_temperature) and args.confidence_temperature > 0):
        problems.append(f"confidence_temperature={args.confidence_temperature!r}: give a positive number, such as 1.")
    if not (_is_number(args.beta) and args.beta > 0):
        problems.append(f"beta={args.beta!r}: rewards need a positive beta. TRL's default is 0.1.")
    if args.noise_rate != 0 and sigmoid_weight(args) == 0:
        given = f"loss_type={args.loss_type}, loss_weights={args.loss_weights}, noise_rate={args.noise_rate!r}"
        why = "CAPO scales 'sigmoid' losses" + (", not rewards per token" if "sigmoid_norm" in args.loss_type else "")
        problems.append(f"{given}: {why}. Add that loss, or set noise_rate=0 for plain losses.")
    if args.noise_rate != 0 and args.use_weighting:
        problems.append("use_weighting=True: CAPO and WPO would scale the same losses. For WPO set noise_rate=0.")
    if args.padding_free and not args.disable_dropout:
        problems.append("padding_free=True, disable_dropout=False: a pair would share the dropout of its prompt.")
    if args.label_smoothing != 0 and not set(args.loss_type) & _SMOOTHED_LOSSES:
        given = f"label_smoothing={args.label_smoothing!r}, loss_type={args.loss_type}: TRL ignores it there."
        text = f"{given} For noisy labels set noise_rate (CAPO), or loss_type='robust' with noise_rate=0 (robust DPO)."
        problems.append(text) if args.noise_rate != 0 else warnings.warn(text, stacklevel=4)
    return problems
