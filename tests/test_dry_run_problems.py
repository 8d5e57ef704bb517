"""A dry run sees all problems at once: in what cannot be read, and in what a training refuses late."""

import math

import pytest
from audit_data import make_log, row
from conftest import make_pairs
from dry_run_fixtures import runner, without_weights  # noqa: F401

from trl_capo import cli, train
from trl_capo.pair_log import fingerprint

BROKEN_CONFIG = {"noise_rate": 0.7, "loss_type": "hinge"}


def test_all_problems_come_at_once(dry_run):
    rows = [row | {"chosen": None} for row in make_pairs()]
    code, output = dry_run(rows, **BROKEN_CONFIG, model_name_or_path="./missing", lora_r=4)
    assert code == 1
    for text in (
        "noise_rate=0.7",
        "loss_type=['hinge']",
        "chosen is null in 24 of 24",
        "model_name_or_path='./missing'",
    ):
        assert text in output, text
    assert "4 problems" in output


PROBLEMS = {
    "no data": ({"dataset_name": None}, "no data"),
    "no such file": ({"dataset_name": "./missing.jsonl"}, "dataset_name='./missing.jsonl'"),
    "no such split": ({"eval_strategy": "steps"}, "dataset_test_split='test'"),
    "no such group": ({"group_column": "tongue"}, "group_column='tongue'"),
    "no prompt fits": ({"max_length": 5}, "every prompt is at least that long"),
    "no checkpoint": ({"resume_from_checkpoint": "./missing"}, "resume_from_checkpoint='./missing'"),
    "no full batch": (
        {"dataloader_drop_last": True, "per_device_train_batch_size": 25, "max_steps": -1},
        "dataloader_drop_last: 24 pairs do not fill a batch",
    ),
    "no folder to write to": ({"output_dir": __file__}, f"output_dir={__file__!r}: it cannot be written to"),
    "no such modules": ({"use_peft": True, "lora_target_modules": ["nosuch"]}, "nosuch"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_problem_gives_code_1_and_its_name(dry_run, name):
    changes, text = PROBLEMS[name]
    code, output = dry_run(**changes)
    assert (code, text in output, "1 problem," in output) == (1, True, True), output


UNREADABLE = {
    "an unknown option": (["--nosuch", "1"], ["unknown option --nosuch"]),
    "two values of a wrong type": (["--seed", "many", "--optim", "nosuch"], ["--seed", "--optim", "4 problems"]),
    "a value that TRL refuses": (["--eval_strategy", "steps", "--eval_steps", "0"], ["eval_steps"]),
    "a launch option": (["--num_processes", "many"], ["--num_processes"]),
    "no file's name": (["--config"], ["--config takes the path of one YAML file", "1 problem,"]),
    "neither true nor false": (["--dry_run", "perhaps"], ["--dry_run"]),
    "a word": (["--seed", "1", "word"], ["unknown option word"]),
}


def test_the_log_of_other_pairs_is_a_problem(dry_run, tmp_path):
    make_log(tmp_path / "out" / "pair_log", [row(0, 0, 1.0)], 24)
    code, output = dry_run(pair_log=True)
    assert code == 1
    assert "out/pair_log': the folder holds the log of a training on other pairs" in output
    make_log(tmp_path / "own", [row(0, 0, 1.0)], 24, fingerprint=fingerprint(make_pairs()))
    code, output = dry_run(pair_log=str(tmp_path / "own"))
    assert code == 0, output
    code, output = dry_run(pair_log=str(tmp_path / "own"), inject_noise="flip", inject_rate=0.5)
    assert (code, "log of a training on other pairs" in output) == (1, True), output


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_a_problem_beside_the_others(dry_run, name):
    words, texts = UNREADABLE[name]
    code, output = dry_run(words=words, noise_rate=0.7, dataset_name="./missing.jsonl")
    others = [] if name == "no file's name" else ["noise_rate=0.7", "'./missing.jsonl'"]
    assert (code, [text for text in texts + others if text not in output]) == (1, []), output


def test_a_config_file_that_cannot_be_read_is_a_problem(tmp_path, capfd):
    (tmp_path / "bad.yaml").write_text("seed: [1\n")
    for words, code in ((["--dry_run"], 1), (["--dry_run", "true"], 1), (["--dry_run", "false"], 2), ([], 2)):
        assert cli.main(["train", "--config", str(tmp_path / "bad.yaml"), *words]) == code
        said = capfd.readouterr()
        assert "is not valid YAML: line 2" in " ".join((said.out if code == 1 else said.err).split())


def test_what_cannot_be_read_hides_no_other_problem(dry_run):
    """Two of a wrong type, one that TRL refuses, two that CAPO does; data, model, checkpoint, folder, optimiser."""
    code, output = dry_run(
        max_steps="many",
        learning_rate=[1],
        loss_weights=[1.0, 2.0],
        **BROKEN_CONFIG,
        dataset_train_split="nosuch",
        eval_strategy="steps",
        model_name_or_path="./missing",
        resume_from_checkpoint="./gone",
        output_dir=__file__,
        optim_args="foo",
    )
    expected = ("--max_steps", "learning_rate=[1]", "loss_weights", "noise_rate=0.7", "loss_type=['hinge']")
    expected += ("dataset_train_split='nosuch'", "dataset_test_split='test'", "'./missing'", "'./gone'")
    expected += ("output_dir=", "optim_args='foo'", "11 problems")
    assert (code, [text for text in expected if text not in output]) == (1, []), output


REFUSED = {  # when the trainer is built, or the training starts
    "4 bits without an adapter": {"load_in_4bit": True},
    "a stream, references before": {"dataset_streaming": True, "precompute_ref_log_probs": True},
    "references before, and changing": {"precompute_ref_log_probs": True, "sync_ref_model": True},
    "an adapter, references changing": {"sync_ref_model": True, "use_peft": True},
    "no such tracker": {"report_to": "nosuch"},
    "no tracker of that name installed": {"report_to": "swanlab"},
    "no such token": {"pad_token": "nosuch"},
    "no mixture of experts": {"router_aux_loss_coef": 0.1},
    "no metric to choose by": {"save_strategy": "best"},
    "an adapter on the head": {"use_peft": True, "lora_target_modules": ["lm_head", "q_proj"]},
    "a loss without smoothing": {"loss_type": "exo_pair", "noise_rate": 0},
    "an optimiser's option of no value": {"optim_args": "foo"},
    "an optimiser's option without effect": {"optim": "sgd", "optim_args": "momntum=0.9"},
    "an optimiser's option that is no number": {"optim": "sgd", "optim_args": "momentum=many"},
    "an optimiser that is not installed": {"optim": "grokadamw"},
    "a schedule's unknown option": {"lr_scheduler_kwargs": {"nosuch": 1}},
    "a schedule's option of a wrong type": {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": "a"}},
    "a schedule without options": {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"num_cycles": 1}},
    "a schedule that lacks an option": {"lr_scheduler_type": "warmup_stable_decay"},
    "no such attention": {"attn_implementation": "nosuch"},
    "no such attention, among the model's options": {"model_init_kwargs": {"attn_implementation": "nosuch"}},
    "no such device": {"model_init_kwargs": {"device_map": "nosuch"}},
    "a type that is none of weights": {"dtype": "int8"},
    "no such type": {"dtype": "foo", "use_peft": True},
    "no such type, among the model's options": {"model_init_kwargs": {"dtype": 5}},
    "model options that are none": {"model_init_kwargs": "many"},
    "kernels that are not installed": {"use_liger_kernel": True},
    "workers that are kept, and none": {"dataloader_persistent_workers": True},
    "batches by a length": {"train_sampling_strategy": "group_by_length"},
    "batches of like length": {"train_sampling_strategy": "batch_rebalance"},
    "no epochs": {"num_train_epochs": 0, "max_steps": -1},
    "a schedule that is not finite": {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": math.nan}},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_late_is_refused_by_training_and_dry_run(dry_run, tmp_path, model_dir, capfd, name):
    code, output = dry_run(**REFUSED[name])
    assert (code, "1 problem, 0 warnings" in output) == (1, True), output
    problem = output[output.index("Problems: - ") + 12 :].removeprefix("the trainer cannot be built: ")
    assert train.main(["--config", str(tmp_path / "run.yaml"), "--model_name_or_path", model_dir]) == 2
    said = " ".join(capfd.readouterr().err.split())
    assert problem[:60] in said, (problem, said)
    assert "Traceback" not in said
    if "the trainer cannot be built" not in output:
        assert "Loading weights" not in said
    assert not (tmp_path / "out").exists()
