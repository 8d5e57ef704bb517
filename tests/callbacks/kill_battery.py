"""Kill trainings at random points and resume them until they are done: `make test-all`, or

    python tests/callbacks/kill_battery.py --kills 20 --seed 0

Each case is trained once undisturbed and once with kills: SIGKILL or SIGTERM, in a step or while a checkpoint is being
written, to all processes or to one. The final weights and the pair log must be equal, and after SIGTERM no step may be
lost. Processes are forks of this one, which has imported everything, so that a kill costs a second and not ten.
"""

import argparse
import math
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from conftest import CPU_ARGUMENTS, free_port, make_pairs, save_tiny_model
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback

from trl_capo import CAPOConfig, CAPOTrainer, CheckpointOnSigterm, PairLog
from trl_capo.callbacks import pair_log
from trl_capo.callbacks.preemption import last_complete_checkpoint

LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}
STEPS = {"max_steps": 24, "save_strategy": "steps", "save_steps": 3, "save_total_limit": 3, "noise_rate": "auto"}
HALF = {"per_device_train_batch_size": 2}
CASES = {  # name: processes, whether LoRA, options; a step has 4 pairs
    "one process": (1, False, {}),
    "one process, LoRA, accumulation": (1, True, HALF | {"gradient_accumulation_steps": 2}),
    "two processes": (2, False, HALF),
    "two processes, LoRA, precomputed": (2, True, HALF | {"precompute_ref_log_probs": True}),
}
KINDS = [(number, moment) for number in (signal.SIGKILL, signal.SIGTERM) for moment in ("a step", "saving")]


class BegunSteps(TrainerCallback):
    """Appends the number of every step that begins to a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        with self.file.open("a") as steps:
            steps.write(f"{state.global_step + 1}\n")


def train(folder: Path, case: str, rank: int) -> int:
    """Train in one process, or finish a training; the main process leaves `done.pt`."""
    processes, lora, options = CASES[case]
    pair_log.BUFFERED_PAIRS = 8 // processes  # shards of two steps
    args = CAPOConfig(str(folder / "output"), **CPU_ARGUMENTS | STEPS | options)
    trainer = CAPOTrainer(
        str(folder.parent / "model"),
        args=args,
        train_dataset=Dataset.load_from_disk(folder.parent / "data"),
        peft_config=LoraConfig(**LORA) if lora else None,
        callbacks=[stop := CheckpointOnSigterm(), PairLog(folder / "log"), BegunSteps(folder / f"steps-{rank}")],
    )
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(args.output_dir))
    if rank == 0 and not stop.stopped:
        rows = [row for batch in pair_log.read_log(folder / "log").batches() for row in batch.to_pylist()]
        weights = trainer.accelerator.unwrap_model(trainer.model).state_dict()
        torch.save({"weights": weights, "pairs": rows}, folder / "done.pt")
    return 143 if stop.stopped else 0


def start(folder: Path, case: str) -> list[int]:
    """Fork the processes of a training; return their ids."""
    processes, children, port = CASES[case][0], [], free_port()
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                log = os.open(folder / f"log-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(log, 1)
                os.dup2(log, 2)
                if processes > 1:
                    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
                    os.environ |= {key: str(value) for key, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"}
                code = train(folder, case, rank)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    return children


def finish(children: list[int]) -> list[int]:
    """Wait for processes; return their exit codes, negative for signals. An alarm ends a battery that hangs."""
    signal.alarm(120)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    signal.alarm(0)
    return codes


def begun(folder: Path) -> list[int]:
    file = folder / "steps-0"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def kill(chance: random.Random, folder: Path, case: str, number: signal.Signals, moment: str) -> str:
    """Start or resume a training and kill it; return what was done."""
    output, before, steps = folder / "output", len(begun(folder)), chance.randint(1, 4)
    saved, children = set(output.glob("checkpoint-*")), start(folder, case)
    while len(begun(folder)) < before + steps if moment == "a step" else set(output.glob("checkpoint-*")) <= saved:
        assert os.waitpid(children[0], os.WNOHANG) == (0, 0), f"ended before it was killed, see {folder}/log-0"
        time.sleep(0.0005)
    time.sleep(chance.uniform(0, 0.01 if moment == "saving" else 0.03))
    alone = moment == "a step" if number == signal.SIGTERM else chance.random() < 0.5
    for child in [chance.choice(children)] if alone else children:
        os.kill(child, number)
    if number == signal.SIGKILL:
        time.sleep(0.2 if alone else 0)
        for child in children:  # as a launcher does when one process has ended
            os.kill(child, number)
    codes, last = finish(children), begun(folder)[-1]
    if number == signal.SIGTERM and last < STEPS["max_steps"]:
        assert codes == [143] * len(children), f"exit codes {codes} after SIGTERM, see {folder}/log-0"
        checkpoint = last_complete_checkpoint(str(output))
        assert checkpoint.endswith(f"checkpoint-{last}"), f"step {last} was not saved, only {checkpoint}"
    return f"{number.name} in {moment}, step {last}"


def run_case(chance: random.Random, folder: Path, case: str, kinds: list) -> None:
    undisturbed, killed = (folder / f"{case} {name}" for name in ("undisturbed", "killed"))
    undisturbed.mkdir()
    killed.mkdir()
    assert set(finish(start(undisturbed, case))) == {0}, f"see {undisturbed}/log-0"
    for number, moment in kinds:
        print(f"{case}: {kill(chance, killed, case, number, moment)}", flush=True)
    assert set(finish(start(killed, case))) == {0}, f"see {killed}/log-0"
    one, other = (torch.load(run / "done.pt") for run in (undisturbed, killed))
    assert one["pairs"] == other["pairs"], f"{case}: the pair logs differ; see {killed}"
    wrong = [name for name, tensor in one["weights"].items() if not torch.equal(tensor, other["weights"][name])]
    assert not wrong, f"{case}: the weights {wrong[:3]} differ; see {killed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="over all cases")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, folder = random.Random(options.seed), Path(tempfile.mkdtemp(prefix="kills-"))
    save_tiny_model(folder / "model", seed=0)
    make_pairs().save_to_disk(folder / "data")
    kinds = [KINDS[index % len(KINDS)] for index in range(options.kills)]
    share = math.ceil(options.kills / len(CASES))
    for place, case in enumerate(CASES):
        run_case(chance, folder, case, kinds[place * share : (place + 1) * share])


if __name__ == "__main__":
    main()
