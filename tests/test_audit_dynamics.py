"""What is read from a log is what a loop over its rows finds, in memory that the number of rows does not change."""

import math
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
from audit_data import make_log, row

from trl_capo.audit.dynamics import read_dynamics
from trl_capo.audit.scores import area_under_margin, forgetting_events, low_first_margin
from trl_capo.pair_log import SCHEMA, LogInfo, PairLog, read_log

GROUPS = ("de", "sw", None)


def random_rows(generator: np.random.Generator, total: int, epochs: int) -> list[dict]:
    """Every epoch some pairs, in any order, some of them twice, some with a reward that is not finite."""
    rows = []
    for epoch in range(epochs):
        chosen = generator.permutation(total)[: generator.integers(1, total + 1)]
        for pair in [*chosen.tolist(), *chosen[: len(chosen) // 4].tolist()]:
            margin = generator.choice([float(np.float32(generator.normal() * 3)), 0.0, math.nan], p=[0.85, 0.1, 0.05])
            values = {"group": GROUPS[pair % 3], "group_noise_rate": float(np.float32(generator.random()))}
            rows.append(row(pair, epoch, margin, reference_margin=float(pair), **values))
    return rows


def by_hand(rows: list[dict]) -> dict[int, list[dict]]:
    """The rows that count for each pair, in their order."""
    counted, met = {}, set()
    for one in rows:
        if math.isfinite(one["relative_reward"]) and (one["pair"], one["epoch"]) not in met:
            met.add((one["pair"], one["epoch"]))
            counted.setdefault(one["pair"], []).append(one)
    return counted


@pytest.mark.parametrize("seed", range(8))
def test_dynamics_are_those_of_a_loop_over_the_rows(tmp_path, seed):
    generator = np.random.default_rng(seed)
    total = int(generator.integers(3, 60))
    rows = random_rows(generator, total, epochs=int(generator.integers(1, 6)))
    pairs = read_dynamics(make_log(tmp_path, rows, total, shard=int(generator.integers(1, 40))))
    expected = by_hand(rows)
    assert pairs.pair.tolist() == sorted(expected)
    assert pairs.total == total
    assert pairs.passes == max(map(len, expected.values()))
    names = pairs.group_names()
    for place, number in enumerate(pairs.pair.tolist()):
        margins = [one["relative_reward"] for one in expected[number]]
        confidences = np.float32([one["confidence"] for one in expected[number]]).astype(float)
        assert pairs.epochs[place] == len(margins)
        assert names[place] == GROUPS[number % 3]
        assert (pairs.first_margin[place], pairs.final_margin[place]) == (margins[0], margins[-1])
        assert pairs.mean_margin[place] == pytest.approx(np.mean(margins))
        assert (pairs.first_confidence[place], pairs.final_confidence[place]) == (confidences[0], confidences[-1])
        assert pairs.mean_confidence[place] == pytest.approx(confidences.mean())
        assert pairs.variability[place] == pytest.approx(confidences.std(), abs=1e-7)
        assert pairs.agreements[place] == sum(margin > 0 for margin in margins)
        assert pairs.disagreements[place] == sum(margin < 0 for margin in margins)
        forgotten = sum(before > 0 >= after for before, after in zip(margins, margins[1:], strict=False))
        assert pairs.forgetting[place] == forgotten
        assert pairs.reference_margin[place] == number


def test_scores_of_four_pairs_worked_by_hand(tmp_path):
    margins = {0: [1, 3, 2], 1: [1, -1, 2, -2], 2: [-4, -3, -2], 3: [0, -1, 2, 0]}
    rows = [
        row(pair, epoch, values[epoch])
        for epoch in range(4)
        for pair, values in margins.items()
        if epoch < len(values)
    ]
    pairs = read_dynamics(make_log(tmp_path, rows, 4))
    assert area_under_margin(pairs).tolist() == pytest.approx([-2, 0, 3, -1 / 4])
    assert low_first_margin(pairs).tolist() == [-1, -1, 4, 0]
    assert forgetting_events(pairs).tolist() == [0, 2, 4, 1]  # the third was never learned; 0 is not learned yet


def test_the_trainings_rates_are_those_it_ended_the_first_epoch_with(tmp_path):
    """They show in the rows of later epochs, where they are frozen, if a group has any; else in its last row."""
    rows = [row(0, 0, 1, group="de", group_noise_rate=0.25), row(1, 0, 1, group="sw", group_noise_rate=0.25)]
    rows += [row(2, 0, 1, group="de", group_noise_rate=0.125), row(3, 0, 1, group_noise_rate=0.5)]
    rows += [row(0, 1, 1, group="de", group_noise_rate=0.375)]
    expected = {"de": 0.375, "sw": 0.25, None: 0.5}
    for shard in (1, 2, 5):
        folder = tmp_path / str(shard)
        assert read_dynamics(make_log(folder, rows, 4, shard)).training_rates == expected
    assert read_dynamics(make_log(tmp_path / "one epoch", rows[:4], 4)).training_rates["de"] == 0.125


def test_a_fixed_rate_is_no_estimate(tmp_path):
    assert read_dynamics(make_log(tmp_path, [row(0, 0, 1), row(1, 0, 2)], 2)).training_rates == {}


def test_where_every_label_was_believed_the_confidence_is_the_models(tmp_path):
    """sigmoid(ln 3) = 3/4, sigmoid(-ln 3) = 1/4; as in the log if it has another noise rate."""
    margins = {0: math.log(3), 1: -math.log(3)}
    rows = [row(0, epoch, margin, confidence=1.0, group_noise_rate=0.0) for epoch, margin in margins.items()]
    believed = read_dynamics(make_log(tmp_path / "0", rows, 1))
    assert [believed.first_confidence, believed.final_confidence] == pytest.approx([0.75, 0.25])
    assert [believed.mean_confidence, believed.variability] == pytest.approx([0.5, 0.25])
    doubted = read_dynamics(make_log(tmp_path / "1", [line | {"group_noise_rate": 0.1} for line in rows], 1))
    assert [doubted.first_confidence, doubted.variability] == [1.0, 0.0]


def test_a_pair_beyond_the_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not among its data's 3"):
        read_dynamics(make_log(tmp_path, [row(3, 0, 1)], 3))


def test_a_log_without_a_finite_reward_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no pair in the log has a finite relative reward"):
        read_dynamics(make_log(tmp_path, [row(0, 0, math.nan)], 1))


def peak_of_reading(folder, total: int, epochs: int) -> int:
    """Bytes that Python and NumPy took at most to read a log of so many pairs."""
    log, generator = PairLog(folder, LogInfo(total, "?")), np.random.default_rng(0)
    for epoch in range(epochs):
        step = np.arange(epoch * total, (epoch + 1) * total, dtype=np.int32) + 1
        group = pa.DictionaryArray.from_arrays(pa.array(step % 3, pa.int32()), pa.array(["a", "b", "c"]))
        values = [pa.array(generator.normal(size=total), pa.float32()) for _ in SCHEMA.names[4:]]
        columns = [pa.array(step), pa.array(np.full(total, epoch, np.int16)), pa.array(generator.permutation(total))]
        log.write(pa.Table.from_arrays([*columns, group, *values], schema=SCHEMA))
    tracemalloc.start()
    pairs = read_dynamics(read_log(folder))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(pairs.pair) == total
    assert (pairs.epochs == epochs).all()
    return peak


def test_a_hundred_thousand_pairs_take_memory_by_the_pair_and_not_by_the_row(tmp_path):
    total = 100_000
    short, long = (peak_of_reading(tmp_path / str(epochs), total, epochs) for epochs in (2, 8))
    assert long < 1.05 * short
    assert long < 300 * total
