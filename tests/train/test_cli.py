"""The command `trl-capo` itself: help, unknown commands and options, and what it hands to `accelerate launch`."""

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands import launch
from conftest import forked, run_main

from trl_capo import cli


def test_help_names_every_command_in_half_a_second_without_torch():
    code = "import sys, trl_capo.cli as cli\ntry:\n cli.main(['-h'])\nfinally:\n assert 'torch' not in sys.modules"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert all(re.search(rf"^ +{name} ", done.stdout, re.MULTILINE) for name in cli.COMMANDS)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


@pytest.mark.parametrize("words", [[], ["nosuch"], ["--nosuch"], *([name, "--nosuch"] for name in cli.COMMANDS)])
def test_an_unknown_command_or_option_ends_with_code_2(words):
    code, out, err = run_main(cli.main, *words)
    name = f"trl-capo {words[0]}" if words and words[0] in cli.COMMANDS else "trl-capo"
    assert (code, out, err.count(f"{name}: error: ")) == (2, "", 1), err


def launched(*words: str) -> int:
    """Run the command in a forked process, where `accelerate launch` prints what it is to start."""

    def show(args) -> None:
        options = (args.num_processes, args.num_machines, args.machine_rank, Path(args.config_file).name)
        print(json.dumps([*options, args.module, args.training_script, args.training_script_args]))

    launch.launch_command = show
    return cli.main(words)


@pytest.mark.parametrize("command", cli.LAUNCHED)
def test_accelerate_gets_its_options_and_the_command_gets_all(command, tmp_path):
    (tmp_path / "run.yaml").write_text("num_machines: 2\nmachine_rank: 1\nmax_length: 64\n")
    words = ["--config", str(tmp_path / "run.yaml"), "--num_processes", "4", "--accelerate_config", "fsdp2"]
    words += ["--use_cpu", "--bf16=false"] if command == "train" else ["--model_name_or_path", "a"]
    code, out, err = forked(launched, command, "--dataset_name", "pairs.jsonl", *words)
    assert code == 0, err
    module = f"trl_capo.{command}.command"
    assert json.loads(out) == [4, 2, 1, "fsdp2.yaml", True, module, ["--dataset_name", "pairs.jsonl", *words]]
