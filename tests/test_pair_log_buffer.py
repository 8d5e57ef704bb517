"""What of a pair log waits in memory, and when it is written."""

import pyarrow as pa
import torch
from datasets import Dataset
from transformers import TrainerState

from trl_capo import pair_logger
from trl_capo.pair_log import LogInfo, read_log
from trl_capo.pair_logger import PairLogger
from trl_capo.pairs import PairIndex


def test_rows_are_written_ever_more_steps_at_a_time(tmp_path, make_args):
    """After 8 steps, 16 more, 32 more: a training that is killed after 7 leaves nothing, after 55 it leaves 24."""
    index, args, state = PairIndex("language"), make_args(), TrainerState()
    logger = PairLogger(tmp_path / "log", LogInfo(100, "x"), index)
    logger.on_train_begin(args, state, None)
    for step in range(1, 57):
        logger.on_step_begin(args, state, None)
        logger.add(torch.tensor([step]), torch.tensor([-1]), (torch.tensor([0.0]), *[0.0] * 7))
        state.global_step += 1
        logger.on_step_end(args, state, None)
        names = sorted(path.name for path in (tmp_path / "log").glob("*.parquet"))
        ends = [last for last in (8, 24, 56) if last <= step]
        assert [int(name[15:23]) for name in names] == ends


def test_100_000_pairs_pass_through_a_bounded_buffer(tmp_path, make_args):
    """What waits, and what Arrow holds, never exceeds the buffer and a step; every row arrives."""
    index = PairIndex("language")
    index.number(Dataset.from_dict({"language": ["de", "sw"]}), "pairs", evaluated=False)
    logger, args = PairLogger(tmp_path / "log", LogInfo(100_000, "x"), index), make_args()
    state, held, most = TrainerState(), 0, pair_logger.BUFFERED_PAIRS + 100
    args.per_device_train_batch_size, args.gradient_accumulation_steps = 50, 2
    logger.on_train_begin(args, state, None)
    arrow = pa.total_allocated_bytes()
    for start in range(0, 100_000, 50):
        if start % 100 == 0:
            logger.on_step_begin(args, state, None)
        numbers = torch.arange(start, start + 50)
        logger.add(numbers, numbers % 3 - 1, (numbers.float(), 0.5, *(torch.rand(50) for _ in range(6))))
        held = max(held, sum(map(len, logger._numbers)), sum(map(len, logger._values)))
        if start % 100 == 50:
            state.global_step += 1
            logger.on_step_end(args, state, None)
            assert pa.total_allocated_bytes() - arrow < 2**16
    logger.on_train_end(args, state, None)
    assert most - 100 <= held <= most
    batches = list(read_log(tmp_path / "log").batches(rows=1000))
    assert max(map(len, batches)) == 1000
    table = pa.Table.from_batches([batch.select(["pair", "relative_reward", "step"]) for batch in batches])
    assert table["pair"].to_pylist() == list(range(100_000))
    assert table["relative_reward"].to_pylist() == [float(number) for number in range(100_000)]
    assert table["step"].to_pylist() == [1 + number // 100 for number in range(100_000)]
    groups = [group for batch in batches[:20] for group in batch["group"].to_pylist()]
    assert groups[:3000] == [(None, "de", "sw")[number % 3] for number in range(3000)]
