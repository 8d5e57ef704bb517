"""Options that cannot be used: YAML files that no command can read, and values of each command's options.

FILES holds contents of a `--config` file. VALUES has, by command, pairs of an option and a value for a YAML file;
PLANS are changes to a study's plan by a path of keys.
"""

from typing import Any

from broken_data import CONTROLS, HUGE, RIGHT_TO_LEFT
from broken_places import NAMES

NAN, INF = float("nan"), float("inf")
BILLION_LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)

FILES: dict[str, str | bytes] = {
    "empty": "",
    "blank": "\n\n  \n",
    "comment": "# nothing\n",
    "list": "- a\n- b\n",
    "text": "just text",
    "number": "3",
    "null": "null",
    "two documents": "max_length: 3\n---\nmax_length: 4\n",
    "open list": "seed: [1\nmax_length: 2\n",
    "open quote": 'seed: "1\n',
    "tab": "model_name_or_path:\n\t- a\n",
    "tab before a key": "\tseed: 1\n",
    "bad indent": "seed: 1\n  max_length: 2\n",
    "no space": "seed:1\nmax_length:2\n",
    "key twice": "seed: 1\nmax_length: 2\nseed: 3\n",
    "inner key twice": "model_init_kwargs: {a: 1, a: 2}\n",
    "number as key": "1: a\n",
    "null as key": "null: a\n",
    "list as key": "? [a, b]\n: c\n",
    "mapping as key": "{a: 1}: c\n",
    "unknown anchor": "seed: *nowhere\n",
    "anchor within itself": "a: &a [*a]\n",
    "mapping within itself": "a: &a\n  b: *a\n",
    "root within itself": "&a\nb: *a\n",
    "billion laughs": BILLION_LAUGHS,
    "merged with text": "<<: text\n",
    "deep": "a: " + "[" * 5000 + "]" * 5000,
    "deep, in reach": "a: " + "[" * 100 + "]" * 100,
    "Python object": "a: !!python/object/apply:os.system ['touch ran']\n",
    "Python name": "a: !!python/name:os.system\n",
    "unknown tag": "a: !secret b\n",
    "wrong tag": "a: !!int b\n",
    "wrong date": "a: 2024-99-99\n",
    "NUL": b"seed: \x00\n",
    "control characters": f"seed: {CONTROLS}\n",
    "latin-1": "run_name: ä\n".encode("latin-1"),
    "half of UTF-16": b"\xff\xfes",
    "random": bytes(range(256)),
    "raw surrogate": b"run_name: \xed\xa0\x80\n",
    "unknown option": "nosuch: 1\n",
    "huge unknown option": f"? {HUGE}\n: 1\n",
    "unsafe unknown option": f'"{RIGHT_TO_LEFT}\\e[2J": 1\n',
    "JSON, cut": '{"seed": 1, ',
    "Markdown": "# Title\n\n* one\n* two\n",
    "env is a list": "env: [a]\n",
    "env of an impossible name": 'env: {"A=B": 1}\n',
    "env of NUL": 'env: {A: "\\0"}\n',
    "env of a number": "env: {1: a}\n",
}

TEXT: list[Any] = [["a"], {"a": 1}, True, [[]]]
WHOLE: list[Any] = [None, "many", 2.5, "2.5", NAN, INF, True, [1], {"a": 1}, "", -5]
NUMBER: list[Any] = [None, "many", True, [1.0], {"a": 1}, "", NAN, -1.0]
BOOL: list[Any] = ["perhaps", 5, 0.5, [], {}, None]
OUTPUTS = ["", "bad\x00", "~nobodyhere/out", HUGE, "/dev/null", "/dev/null/out", "/proc/out", ["a"], {"a": 1}]
MODELS = [
    name for kind, name in NAMES.items() if not any(w in kind for w in ("glob", "hub", "shell", "option", "emoji"))
]


def _each(options: dict[str, list]) -> list[tuple[str, Any]]:
    return [(option, value) for option, values in options.items() for value in values]


VALUES: dict[str, list[tuple[str, Any]]] = {
    "train": _each(
        {
            "model_name_or_path": [*TEXT, None, "", *MODELS[:12], HUGE],
            "dataset_name": [*TEXT, None, ""],
            "dataset_train_split": [*TEXT, None, "nosuch", HUGE, RIGHT_TO_LEFT],
            "output_dir": OUTPUTS,
            "group_column": [*TEXT, "nosuch", HUGE, CONTROLS],
            "max_steps": [value for value in WHOLE if value != -5],
            "per_device_train_batch_size": [*WHOLE, 0],
            "gradient_accumulation_steps": [*WHOLE, 0],
            "max_length": [*(value for value in WHOLE if value is not None), 0],
            "seed": [value for value in WHOLE if value != -5] + [-1, 2**70],
            "learning_rate": [*NUMBER, INF],
            "num_train_epochs": [*NUMBER, INF],
            "beta": [*NUMBER, 0, INF],
            "noise_rate": [None, "many", True, [0.1], {"de": 0.1}, NAN, INF, -1, 0.6],
            "confidence_temperature": [*NUMBER, 0, INF],
            "label_smoothing": [*NUMBER, 0.7],
            "ld_alpha": ["many", True, [1.0], NAN, -1.0, 2],
            "weight_decay": NUMBER,
            "warmup_steps": NUMBER,
            "max_grad_norm": NUMBER,
            "pad_to_multiple_of": [0, -1],
            "dataloader_prefetch_factor": [0],
            "ref_model_sync_steps": [0],
            "ref_model_mixup_alpha": [-1, 7, NAN],
            "gradient_checkpointing_kwargs": [{"nosuch": 1}, "{"],
            "logging_steps": [*NUMBER, 0],
            "save_steps": NUMBER,
            "loss_type": [["nosuch"], [], {"a": 1}, None, 3, ["sigmoid", 3], "nosuch", ["ipo"]],
            "loss_weights": [["a"], "many", [1.0, 2.0], {"a": 1}, [NAN], [INF]],
            "f_divergence_type": ["nosuch", None, ["a"]],
            "truncation_mode": ["nosuch", None, ["a"]],
            "lr_scheduler_type": ["nosuch", None, ["a"]],
            "optim": ["nosuch", None, ["a"]],
            "eval_strategy": ["nosuch", None, ["a"], False],
            "save_strategy": ["nosuch", None, ["a"], False],
            "dtype": ["float99", ["a"], "os.system"],
            "attn_implementation": ["nosuch", ["a"]],
            "bf16": BOOL[:-1],
            "use_peft": BOOL,
            "dataset_streaming": BOOL,
            "model_init_kwargs": ["{", "nosuch", [1], {"nosuch_key": 1}],
            "lr_scheduler_kwargs": ["{", [1]],
            "datasets": ["a", [1], {"a": 1}, [{"nosuch": 1}], [{"path": "./nosuch"}], [{"path": 5}]],
            "report_to": [{"a": 1}],
            "inject_noise": ["nosuch", ["a"], 5],
            "inject_rate": [0.5, "{"],
            "resume_from_checkpoint": ["./nosuch", ["a"], HUGE],
            "deepspeed": ["./nosuch.json", [1]],
            "fsdp_config": [[1]],
            "lora_target_modules": [[1], {"a": 1}],
            "env": ["a", 5],
        }
    ),
    "evaluate": _each(
        {
            "model_name_or_path": [*TEXT, None, "", *MODELS],
            "ref_model": [*TEXT, "", *MODELS],
            "adapter": [*TEXT, "./nosuch", HUGE],
            "compare": ["a", ["a"], ["a", 5], {"a": 1}],
            "dataset_name": [*TEXT, None, ""],
            "dataset_split": [*TEXT, "nosuch", HUGE],
            "group_column": [*TEXT, "nosuch", HUGE, CONTROLS],
            "also_by": [["nosuch"], [5], {"a": 1}, [HUGE]],
            "beta": [*NUMBER, 0, INF],
            "per_device_eval_batch_size": [*WHOLE, 0],
            "max_length": [*(value for value in WHOLE if value is not None), 0, 1],
            "dtype": ["float99", ["a"], None],
            "load_in_4bit": BOOL,
            "trust_remote_code": BOOL,
            "output_dir": OUTPUTS,
            "seed": WHOLE,
        }
    ),
    "noise": _each(
        {
            "dataset_name": [*TEXT, None, ""],
            "dataset_split": [*TEXT, None, "nosuch", HUGE],
            "output_dir": [*OUTPUTS, None],
            "kind": [*TEXT, None, "nosuch", HUGE],
            "rate": [None, "many", True, [0.1], {"fr": 0.1}, {"de": NAN}, {"de": [1]}, {1: 0.1}, NAN, INF, -1, 1, "{"],
            "seed": WHOLE,
            "group_column": [*TEXT, "nosuch", CONTROLS],
            "score_column": ["margin", ["a"]],
        }
    ),
}

NOT_A_PART = [None, [], {}, "text", 5, [5], True, HUGE]
PLANS: list[tuple[tuple, Any]] = [
    *((("methods",), value) for value in [*NOT_A_PART, ["dpo"], {"dpo": []}, {1: {}}, {CONTROLS: {}}]),
    *((("methods", "dpo"), value) for value in [5, [5], {"method": []}, {"method": HUGE}, {"nosuch": 1}, {1: 2}]),
    *((("methods", "capo"), {"noise_rate": value}) for value in [5, NAN, "many", [], {}, HUGE]),
    *((("methods", "capo"), {"loss_type": value}) for value in [5, [5], ["nosuch"], {}, True]),
    *((("noise",), value) for value in [*NOT_A_PART, {"clean": None}]),
    *((("noise", "flip"), value) for value in [5, {"kind": []}, {"kind": "flip"}, {"kind": "flip", "rate": None}]),
    *((("noise", "flip", "rate"), value) for value in [NAN, INF, -1, 1, "many", [], {"nosuch": 0.1}, {"de": NAN}]),
    *((("grid",), value) for value in NOT_A_PART),
    *((("grid", 0), value) for value in [None, {}, [], "a", {"methods": ["dpo"]}]),
    *((("grid", 0, "methods"), value) for value in [*NOT_A_PART, ["nosuch"], [[]], [HUGE]]),
    *((("grid", 0, "seeds"), value) for value in [*NOT_A_PART[:-3], [-1], [0.5], [NAN], [True], ["a"]]),
    *((("grid", 0, "epochs"), value) for value in [*NOT_A_PART[:4], 0, -1, NAN, INF, [1], True]),
    *(
        (("learning_rates",), value)
        for value in [None, [], {}, "text", 5, True, [0], [-1], [NAN], [INF], ["a"], [1e-3, 1e-2]]
    ),
    *((("training",), value) for value in [*NOT_A_PART, {"per_device_train_batch_size": 0}]),
    *((("training", "weight_decay"), value) for value in [None, "many", [], NAN]),
    *((("training", "gradient_accumulation_steps"), value) for value in [None, "many", 0, -1, NAN, [1]]),
    *((("training", name), 1) for name in ["nosuch", "seed", "max_steps", HUGE]),
    *((("lora",), value) for value in [[], "text", 5, {"nosuch": 1}, {"r": "many"}, {"r": -1}, {"r": 0}]),
    *((("model",), value) for value in [None, [], "text", 5]),
    *((("tuning",), value) for value in [5, [], {}, "text"]),
    *((("curve_points",), value) for value in [None, 0, -1, 1.5, "many", [], NAN, True]),
    *((("train_pairs",), value) for value in [0, -1, 1.5, "many", []]),
    *(
        ((name,), value)
        for name in ("train_split", "test_split")
        for value in [None, 5, [], "nosuch", HUGE, "validation"]
    ),
    *((("baseline",), value) for value in [None, [], 5, "nosuch", HUGE]),
    *((("group_column",), value) for value in [5.5, [], "nosuch", CONTROLS]),
    *((("remember_frozen_layers",), value) for value in ["perhaps", None, 5, []]),
    *((("output_dir",), value) for value in OUTPUTS),
    *((("model_name_or_path",), value) for value in [*TEXT, None, "", "./nosuch", HUGE, "../../etc"]),
    *((("dataset_name",), value) for value in [*TEXT, None, "", "./nosuch", HUGE]),
]
