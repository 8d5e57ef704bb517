"""The processes that launch options mean, against TRL's own files of them."""

import pytest

from trl_capo.launch import Processes, read_launch

CASES = {
    "": Processes(1, "none"),
    "--num_processes 4": Processes(4, "ddp"),
    "--accelerate_config single_gpu": Processes(1, "none"),
    "--accelerate_config multi_gpu": Processes(8, "ddp"),
    "--accelerate_config zero2": Processes(8, "zero2"),
    "--accelerate_config zero3 --num_processes 3": Processes(3, "zero3"),
    "--accelerate_config fsdp2 --num_processes 16": Processes(16, "fsdp2"),
    "--use_deepspeed --zero_stage 3 --num_processes 2": Processes(2, "zero3"),
    "--use_fsdp --num_processes 2": Processes(2, "fsdp2"),
}


@pytest.mark.parametrize("words", CASES)
def test_options_and_files(words):
    assert read_launch(words.split()) == CASES[words]


def test_a_file_that_is_not_yaml_is_named(tmp_path):
    (tmp_path / "bad.yaml").write_text("a: [1\n")
    with pytest.raises(ValueError, match="bad.yaml"):
        read_launch(["--accelerate_config", str(tmp_path / "bad.yaml")])


@pytest.mark.parametrize("line", ["num_processes: abc", "distributed_type: DEEPSPEED\ndeepspeed_config: 5"])
def test_values_of_a_wrong_type_are_refused(tmp_path, line):
    (tmp_path / "launch.yaml").write_text(line)
    with pytest.raises(ValueError, match="the options of `accelerate launch` cannot be used"):
        read_launch(["--config_file", str(tmp_path / "launch.yaml")])
