"""The arguments of `trl-capo evaluate`."""

from dataclasses import dataclass, field
from importlib.util import find_spec

from trl_capo.groups import parse_group_column

DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass
class EvaluateArguments:
    """What to evaluate, on which pairs, against which reference."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "A model: hub name, checkpoint folder or LoRA folder (whose base is found)."}
    )
    adapter: str | None = field(default=None, metadata={"help": "A LoRA folder to put on the model, the reference."})
    compare: list[str] = field(
        default_factory=list,
        metadata={"help": "Several models side by side, in place of one; the first is the baseline."},
    )
    ref_model: str | None = field(
        default=None, metadata={"help": "The reference of the rewards. A LoRA's base is its own reference."}
    )
    dataset_name: str | None = field(default=None, metadata={"help": "Pairs: hub name, local folder or file."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a hub data set."})
    dataset_split: str | None = field(
        default=None, metadata={"help": "Which split to evaluate on; by default `test`, or the only one there is."}
    )
    group_column: str | None = field(
        default="auto",
        metadata={"help": "Column of the groups; 'auto': `language` where there is one; 'none': no groups."},
    )
    also_by: list[str] = field(
        default_factory=list, metadata={"help": "Further columns whose groups get a line each, below the others."}
    )
    beta: float = field(default=0.1, metadata={"help": "Units of reward per nat; scales margins, not accuracies."})
    per_device_eval_batch_size: int = field(default=8, metadata={"help": "Pairs a batch."})
    max_length: int | None = field(default=1024, metadata={"help": "Longer sequences are cut at the end, in tokens."})
    dtype: str = field(
        default="auto", metadata={"help": "'auto' (the checkpoint's), 'bfloat16', 'float16', 'float32'."}
    )
    load_in_4bit: bool = field(default=False, metadata={"help": "Load models in 4 bits (bitsandbytes NF4)."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run model code from the hub."})
    output_dir: str | None = field(
        default=None,
        metadata={"help": "Where metrics.json, report.md and the plots go; without it, only the terminal."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of the bootstrap resampling."})

    def __post_init__(self) -> None:
        self.group_column = parse_group_column(self.group_column)

    def _check(self) -> None:
        """Raise one ValueError that names every problem."""
        problems = []
        if bool(self.model_name_or_path) == bool(self.compare):
            problems.append("give either model_name_or_path, for one model, or compare, for several.")
        if self.compare and self.adapter:
            problems.append("adapter cannot go with compare: name the adapters' folders in compare.")
        if len(self.compare) == 1:
            problems.append(f"compare={self.compare!r}: give two models or more, or one as model_name_or_path.")
        if "auto" in self.also_by:
            problems.append("also_by takes columns' names, not 'auto'.")
        if not self.dataset_name:
            problems.append("dataset_name is missing: give a hub name, folder or file.")
        if not 0 < self.beta < float("inf"):
            problems.append(f"beta={self.beta}: give a positive number, that of the training.")
        if self.per_device_eval_batch_size < 1:
            problems.append(f"per_device_eval_batch_size={self.per_device_eval_batch_size}: give 1 or more.")
        if self.max_length is not None and self.max_length < 2:
            problems.append(f"max_length={self.max_length}: give 2 or more, or none.")
        if self.dtype not in DTYPES:
            problems.append(f"dtype={self.dtype!r}: choose one of {', '.join(DTYPES)}.")
        if self.seed < 0:
            problems.append(f"seed={self.seed}: give 0 or more.")
        if self.output_dir == "":
            problems.append("output_dir is empty: give a folder, or leave it out.")
        if self.load_in_4bit and find_spec("bitsandbytes") is None:
            problems.append("load_in_4bit needs bitsandbytes: pip install 'trl-capo[quantization]'.")
        if problems:
            raise ValueError(" ".join(problems))
