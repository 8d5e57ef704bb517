"""Audits of logs that are odd in one way or another: names of any length, no groups; and arguments that are no use."""

import tracemalloc

import numpy as np
import pytest
from audit_data import make_log, row
from conftest import make_pairs
from datasets import DatasetDict

from trl_capo.audit.audit import audit
from trl_capo.audit.dynamics import read_dynamics
from trl_capo.audit.judgement import judge
from trl_capo.pair_log import read_log


def test_names_of_groups_cost_what_they_are_long_once(tmp_path):
    """Padded to the longest, these would be 2 GB; and names that differ in a NUL at the end stay two."""
    names = np.array(["x" * 100_000, "y", "y\0"] * 2000, dtype=object)
    make_log(tmp_path, [row(pair, 0, pair % 7 - 3.0) for pair in range(6000)], 6000, shard=6000)
    pairs = read_dynamics(read_log(tmp_path))
    tracemalloc.start()
    found = judge(pairs, names=names)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 100e6
    assert found.groups.tolist() == ["x" * 100_000, "y", "y\0"]
    assert np.bincount(found.place).tolist() == [2000] * 3


def test_without_groups_the_noise_rate_has_its_interval(tmp_path):
    make_log(tmp_path / "pair_log", [row(pair, 0, pair - 3.0) for pair in range(9)], 9)
    found = audit(tmp_path)
    low, high = found.ranking.judgement.intervals[0]
    assert found.rates[1][0] == "all pairs"
    assert found.rates[1][2].endswith(f" [{100 * low:.1f}, {100 * high:.1f}]")


def test_what_is_no_number_or_no_split_is_refused(tmp_path):
    make_log(tmp_path / "pair_log", [row(pair, 0, pair - 3.0) for pair in range(9)], 9)
    with pytest.raises(ValueError, match=r"top=2\.5: so many suspects are written\. Give a whole number"):
        audit(tmp_path, top=2.5)
    with pytest.raises(ValueError, match="dataset: a DatasetDict. Give one split of pairs"):
        audit(tmp_path, DatasetDict({"train": make_pairs()}))
