"""Kill training runs at random points and resume them: `python tests/callbacks/kill_battery.py --kills 20 --seed 0`.

Each case is trained once undisturbed and once with kills, in a step or while a checkpoint is being written, of all
processes or of one. The final weights and the pair log must be equal, and after SIGTERM no step may be lost.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from multiprocessing.context import ForkProcess
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from conftest import CPU_ARGUMENTS, free_port, make_pairs, save_tiny_model, torchrun_variables
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from transformers.utils.logging import disable_progress_bar

from trl_capo import CAPOConfig, CAPOTrainer, CheckpointOnSigterm, PairLog
from trl_capo.callbacks import pair_log
from trl_capo.callbacks.preemption import last_complete_checkpoint

LORA = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules=["q_proj", "v_proj"])
STEPS = {"max_steps": 60, "save_strategy": "steps", "save_steps": 3, "save_total_limit": 3, "noise_rate": "auto"}
HALF = {"per_device_train_batch_size": 2}
CASES = {  # name: processes, adapter, options; a step has 4 pairs
    "one process, accumulation": (1, None, HALF | {"gradient_accumulation_steps": 2}),
    "two processes, LoRA, precomputed": (2, LORA, HALF | {"precompute_ref_log_probs": True}),
}
disable_progress_bar()  # forks share its lock, which a killed one would keep
KINDS = [(number, moment) for number in (signal.SIGKILL, signal.SIGTERM) for moment in ("a step", "saving")]


class BegunSteps(TrainerCallback):
    def __init__(self, file: Path) -> None:
        self.file = file

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        with self.file.open("a") as steps:
            steps.write(f"{state.global_step + 1}\n")


def begun(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "steps-0").read_text().split()]


def train(folder: Path, case: str, rank: int, port: int) -> None:
    """Train in one process, or finish a run; the main process leaves `done.pt`."""
    processes, lora, options = CASES[case]
    sys.stdout = (folder / f"log-{rank}").open("a")
    pair_log.BUFFERED_PAIRS = 8 // processes  # shards of two steps
    os.environ |= torchrun_variables(rank, processes, port) if processes > 1 else {}
    args = CAPOConfig(str(folder / "output"), **CPU_ARGUMENTS | STEPS | options)
    callbacks = [stop := CheckpointOnSigterm(), PairLog(folder / "log"), BegunSteps(folder / f"steps-{rank}")]
    data = {"train_dataset": Dataset.load_from_disk(folder.parent / "data"), "peft_config": lora}
    trainer = CAPOTrainer(str(folder.parent / "model"), args=args, callbacks=callbacks, **data)
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(args.output_dir))
    if stop.stopped:
        sys.exit(143)
    if rank == 0:
        rows = [row for batch in pair_log.read_log(folder / "log").batches() for row in batch.to_pylist()]
        weights = trainer.accelerator.unwrap_model(trainer.model).state_dict()
        torch.save({"weights": weights, "pairs": rows}, folder / "done.pt")


def start(folder: Path, case: str) -> list[ForkProcess]:
    port = free_port()
    children = [ForkProcess(target=train, args=(folder, case, n, port), daemon=True) for n in range(CASES[case][0])]
    for child in children:
        child.start()
    return children


def finish(children: list[ForkProcess]) -> list[int | None]:
    """Wait for processes; return their exit codes, None for one that hangs."""
    for child in children:
        child.join(120)
    return [child.exitcode for child in children]


def kill(chance: random.Random, folder: Path, case: str, number: signal.Signals, moment: str) -> str:
    """Start or resume a run and kill it; return what was done."""
    output, before, steps = folder / "output", len(begun(folder)), chance.randint(1, 4)
    saved, children = set(output.glob("checkpoint-*")), start(folder, case)
    while len(begun(folder)) < before + steps if moment == "a step" else set(output.glob("checkpoint-*")) <= saved:
        assert children[0].is_alive(), f"ended before it was killed, see {folder}/log-0"
        time.sleep(0.0005)
    time.sleep(chance.uniform(0, 0.01 if moment == "saving" else 0.03))
    for child in [chance.choice(children)] if moment == "a step" else children:
        os.kill(child.pid, number)
    if number == signal.SIGKILL:
        time.sleep(0.2)
        for child in children:  # as a launcher does when one process has ended
            child.kill()
    codes, last = finish(children), begun(folder)[-1]
    if number == signal.SIGTERM and last < STEPS["max_steps"]:
        assert codes == [143] * len(children), f"exit codes {codes} after SIGTERM, see {folder}/log-0"
        assert last_complete_checkpoint(str(output)) == f"{output}/checkpoint-{last}", f"step {last} was not saved"
    return f"{number.name} in {moment}, step {last}"


def run_case(chance: random.Random, folder: Path, case: str, kills: int) -> None:
    runs = {folder / f"{case} undisturbed": [], folder / f"{case} killed": (KINDS * kills)[:kills]}
    for run, kinds in runs.items():
        run.mkdir()
        (run / "steps-0").touch()
        for number, moment in kinds:
            print(f"{case}: {kill(chance, run, case, number, moment)}", flush=True)
        assert set(finish(start(run, case))) == {0}, f"see {run}/log-0"
    one, other = (torch.load(run / "done.pt") for run in runs)
    assert one["pairs"] == other["pairs"], f"{case}: the pair logs differ"
    for name, tensor in one["weights"].items():
        assert torch.equal(tensor, other["weights"][name]), f"{case}: the weights {name} differ"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20, help="over all cases")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, folder = random.Random(options.seed), Path(tempfile.mkdtemp(prefix="kills-"))
    save_tiny_model(folder / "model", seed=0)
    make_pairs().save_to_disk(folder / "data")
    for case in CASES:
        run_case(chance, folder, case, options.kills // len(CASES))
