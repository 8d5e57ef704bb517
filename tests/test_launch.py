"""The processes that launch options mean, against TRL's own files of them."""

import pytest
import torch
import yaml
from accelerate.commands import launch
from trl.cli.accelerate_config import resolve_accelerate_config_argument

from trl_capo.arguments import launch_parser
from trl_capo.launch import Processes, read_launch, single_process_warnings

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


WITHOUT_GPU = {  # how many, how they share the model, how many were asked for
    "--num_processes 2": (1, "none", 2),
    "--num_processes 2 --cpu": (1, "none", 2),
    "--config_file multi_cpu": (1, "none", 2),
    "--num_processes 2 --multi_gpu": (2, "ddp", 2),
    "--accelerate_config multi_gpu": (8, "ddp", 8),
    "--use_fsdp --num_processes 2": (2, "fsdp2", 2),
    "--num_processes 1": (1, "none", 1),
    "": (1, "none", 1),
}


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("words", WITHOUT_GPU)
def test_without_a_gpu_the_kind_must_be_named(words, tmp_path, monkeypatch):
    """As Accelerate does it, up to where it would start the processes."""
    file = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_CPU", "num_processes": 2}
    (tmp_path / "multi_cpu.yaml").write_text(yaml.dump(file | {"use_cpu": True}))
    (count, sharding, asked), started = WITHOUT_GPU[words], []
    words = words.replace("multi_cpu", str(tmp_path / "multi_cpu.yaml")).split()
    monkeypatch.setattr(launch, "simple_launcher", lambda args: started.append(1))
    monkeypatch.setattr(launch, "multi_gpu_launcher", lambda args: started.append(args.num_processes))
    launch.launch_command(launch_parser().parse_args([*resolve_accelerate_config_argument(words), "none.py"]))
    found = read_launch(words, gpu=False)
    assert (found.count, found.sharding, found.asked) == (count, sharding, asked)
    assert [found.count] == started
    assert len(single_process_warnings(found)) == (asked > count)


def test_what_accelerate_config_wrote_counts_unless_the_cpu_is_asked_for(tmp_path, monkeypatch):
    (tmp_path / "default_config.yaml").write_text("distributed_type: MULTI_GPU\nnum_processes: 4\n")
    monkeypatch.setattr("trl_capo.launch.DEFAULT", str(tmp_path / "default_config.yaml"))
    assert read_launch([]) == read_launch([], gpu=False) == Processes(4, "ddp")
    assert read_launch(["--num_processes", "2"]) == Processes(2, "ddp")
    assert read_launch(["--cpu"]) == Processes(1, "none")


@pytest.mark.parametrize("words", ["--cpu --multi_gpu", "--use_fsdp --use_deepspeed", "--multi_gpu --num_processes 1"])
def test_what_accelerate_refuses_is_refused(words):
    with pytest.raises(ValueError, match=r"You (can only use one of|need to use at least 2)"):
        launch.launch_command(launch_parser().parse_args([*words.split(), "none.py"]))
    with pytest.raises(ValueError, match=r"`accelerate launch` takes"):
        read_launch(words.split())


def test_a_file_that_is_not_yaml_is_named(tmp_path):
    (tmp_path / "bad.yaml").write_text("a: [1\n")
    with pytest.raises(ValueError, match="bad.yaml"):
        read_launch(["--accelerate_config", str(tmp_path / "bad.yaml")])


@pytest.mark.parametrize("line", ["num_processes: abc", "distributed_type: DEEPSPEED\ndeepspeed_config: 5"])
def test_values_of_a_wrong_type_are_refused(tmp_path, line):
    (tmp_path / "launch.yaml").write_text(line)
    with pytest.raises(ValueError, match="the options of `accelerate launch` cannot be used"):
        read_launch(["--config_file", str(tmp_path / "launch.yaml")])
