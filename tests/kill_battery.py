"""Kills trainings at random points and resumes them, until they are done: `make test-kills`, or

    python tests/kill_battery.py --kills 20 --seed 0

Each case is trained once undisturbed, and once with kills: SIGKILL or SIGTERM, in a step or while a checkpoint is
being written, in all processes or in one of them. All that was logged, also of every pair, and all weights must be the
same in the end, and after SIGTERM no step may be lost. Logging windows of 4 steps span the checkpoints of every 3rd
step, and shards of the pair log have 2 steps unless a checkpoint ends them. Processes are
forks of this one, which has imported everything and computed nothing, so that a kill costs a second and not ten.

Ends with code 1 if anything differs. What a launcher does with signals is no part of it (test_cluster.py).
"""

import argparse
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from conftest import CPU_ARGUMENTS, free_port, make_pairs, save_tiny_model
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback

from trl_capo import CAPOConfig, CAPOTrainer, noise_rate, pair_logger
from trl_capo.checkpoints import find_fault
from trl_capo.pair_log import read_log
from trl_capo.termination import EXIT_CODE

LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}
STEPS = {"max_steps": 24, "save_strategy": "steps", "save_steps": 3, "save_total_limit": 3}
LOGS = {"logging_steps": 4, "pair_log": True}
HALF = {"per_device_train_batch_size": 2}
CASES = {  # name: processes, whether LoRA, options; 4 pairs a step
    "one process": (1, False, {}),
    "one process, LoRA, accumulation": (1, True, HALF | {"gradient_accumulation_steps": 2}),
    "two processes": (2, False, HALF),
    "two processes, LoRA, precomputed": (2, True, HALF | {"precompute_ref_log_probs": True}),
}
KINDS = [
    (signal.SIGKILL, "a step"),
    (signal.SIGKILL, "saving"),
    (signal.SIGTERM, "a step"),
    (signal.SIGTERM, "saving"),
]


class Tell(TrainerCallback):
    """Writes the number of every step that begins into a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        with self.file.open("a") as steps:
            steps.write(f"{state.global_step + 1}\n")


def train(folder: Path, case: str, rank: int) -> None:
    """One process of a training, or of what is left of it; the main one leaves `done.pt`."""
    _, lora, options = CASES[case]
    pair_logger.BUFFERED_PAIRS = 8 // CASES[case][0]
    noise_rate.BLOCK_PAIRS = 8  # so that the rates are learned from so few pairs
    arguments = CPU_ARGUMENTS | STEPS | LOGS | {"output_dir": str(folder / "output"), "noise_rate": "auto"} | options
    trainer = CAPOTrainer(
        str(folder.parent / "model"),
        args=CAPOConfig(**arguments),
        train_dataset=Dataset.load_from_disk(folder.parent / "data"),
        peft_config=LoraConfig(**LORA) if lora else None,
        callbacks=[Tell(folder / f"steps-{rank}")],
    )
    trainer.train(resume_from_checkpoint=True)
    if rank == 0:
        weights = trainer.accelerator.unwrap_model(trainer.model).state_dict()
        rows = [row for batch in read_log(folder / "output" / "pair_log").batches() for row in batch.to_pylist()]
        done = {"weights": weights, "logs": trainer.state.log_history[:-1], "pairs": rows}
        torch.save(done, folder / "done.pt")


def in_fork(task: Callable[[], None], log: Path) -> int:
    """The id of a process that does the task, and then ends with its exit code."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        task()
        code = 0
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # never back into the battery


def start(folder: Path, case: str) -> list[int]:
    """Start the processes of a training; returns their ids."""
    port = free_port()
    processes = CASES[case][0]

    def process(rank: int) -> None:
        if processes > 1:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
            os.environ.update({key: str(value) for key, value in place.items()}, MASTER_ADDR="127.0.0.1")
        train(folder, case, rank)

    return [in_fork(lambda rank=rank: process(rank), folder / f"log-{rank}") for rank in range(processes)]


def finish(children: list[int]) -> list[int]:
    """Wait for the processes to end; returns their exit codes, negative for signals. None may take two minutes."""
    codes, deadline = {}, time.monotonic() + 120
    while len(codes) < len(children):
        for child in set(children) - set(codes):
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                codes[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return [codes[child] for child in children]


def checkpoints(folder: Path) -> set[str]:
    return {path.name for path in (folder / "output").glob("checkpoint-*")}


def begun(folder: Path) -> list[int]:
    """The steps that have begun, in all runs so far, as the main process tells."""
    file = folder / "steps-0"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def kill(chance: random.Random, folder: Path, case: str, number: signal.Signals, moment: str) -> str:
    """Start or resume a training and kill it; returns what was done."""
    before, steps = len(begun(folder)), chance.randint(1, 4)
    saved = checkpoints(folder)
    children = start(folder, case)
    while not (checkpoints(folder) - saved if moment == "saving" else len(begun(folder)) >= before + steps):
        assert os.waitpid(children[0], os.WNOHANG) == (0, 0), f"ended before it was killed, see {folder}/log-0"
        time.sleep(0.0005)
    time.sleep(chance.uniform(0, 0.01 if moment == "saving" else 0.03))
    alone = moment == "a step" if number == signal.SIGTERM else chance.random() < 0.5
    victims = [chance.choice(children)] if alone else children
    for child in victims:
        os.kill(child, number)
    if number == signal.SIGKILL:
        time.sleep(0.2 if len(victims) < len(children) else 0)
        for child in set(children) - set(victims):  # as a launcher does when one has gone
            os.kill(child, number)
    codes, last = finish(children), begun(folder)[-1]
    if number == signal.SIGTERM:
        assert codes == [EXIT_CODE] * len(children), f"exit codes {codes} after SIGTERM, see {folder}/log-0"
        fault = find_fault(folder / "output" / f"checkpoint-{last}")
        assert fault is None, f"step {last} was not saved: {fault}"
    return f"{number.name} in {moment}, {len(victims)} of {len(children)} processes, step {last}"


def difference(one: dict, other: dict) -> str | None:
    """Where two finished trainings differ. Means over processes of a resumed window may round in another order."""
    if len(one["logs"]) != len(other["logs"]):
        return f"{len(one['logs'])} and {len(other['logs'])} log entries"
    for expected, found in zip(one["logs"], other["logs"], strict=True):
        if expected.keys() != found.keys():
            return f"keys at step {expected['step']}: {expected.keys() ^ found.keys()}"
        for key, value in expected.items():
            if not (value == found[key] or (key == "loss" and math.isclose(value, found[key], rel_tol=1e-6))):
                return f"{key} at step {expected['step']}: {value} and {found[key]}"
    if len(one["pairs"]) != 24 * 4:  # steps of four pairs
        return f"{len(one['pairs'])} rows in the pair log"
    rows = [pair for pair in zip(one["pairs"], other["pairs"], strict=False) if pair[0] != pair[1]]
    if rows or len(one["pairs"]) != len(other["pairs"]):
        return f"{len(other['pairs'])} rows in the pair log, of which differ: {rows[:1]}"
    changed = [name for name, tensor in one["weights"].items() if not torch.equal(tensor, other["weights"][name])]
    return f"weights {changed[:3]}" if changed else None


def run_case(chance: random.Random, folder: Path, case: str, kinds: list) -> None:
    runs = undisturbed, killed = [folder / f"{case} {name}" for name in ("undisturbed", "killed")]
    for run in runs:
        run.mkdir()
    assert set(finish(start(undisturbed, case))) == {0}, f"see {undisturbed}/log-0"
    for number, moment in kinds:
        print(f"{case}: {kill(chance, killed, case, number, moment)}", flush=True)
    assert set(finish(start(killed, case))) == {0}, f"see {killed}/log-0"
    wrong = difference(*(torch.load(run / "done.pt") for run in runs))
    assert wrong is None, f"{case}: {wrong}; see {killed}"
    over = (killed / "log-0").read_text().count("is passed over")
    print(f"{case}: after {len(kinds)} kills as undisturbed; half-written checkpoints passed over: {over}", flush=True)


def prepare(folder: Path) -> None:
    save_tiny_model(folder / "model", seed=0)
    make_pairs().save_to_disk(folder / "data")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="over all cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    chance, folder = random.Random(options.seed), Path(tempfile.mkdtemp(prefix="kills-"))
    assert finish([in_fork(lambda: prepare(folder), folder / "log")]) == [0], f"see {folder}/log"
    kinds = [KINDS[index % len(KINDS)] for index in range(options.kills)]
    share = math.ceil(options.kills / len(options.cases))
    for place, case in enumerate(options.cases):
        try:
            run_case(chance, folder, case, kinds[place * share : (place + 1) * share])
        except AssertionError as error:
            print(f"FAILED: {error}")
            return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
