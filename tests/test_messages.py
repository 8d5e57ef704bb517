"""Messages: as they were written, and of the main process alone."""

import logging

import pytest
from accelerate import PartialState

from trl_capo.messages import get_logger


@pytest.mark.parametrize("rank", [0, 1])
def test_the_main_process_says_it(caplog, monkeypatch, rank):
    state = PartialState(cpu=True)
    monkeypatch.setitem(state._shared_state, "num_processes", 2)
    monkeypatch.setitem(state._shared_state, "process_index", rank)
    monkeypatch.setitem(state._shared_state, "distributed_type", "MULTI_CPU")
    get_logger("trl_capo.some").warning("16 of 24 pairs")
    assert caplog.messages == (["16 of 24 pairs"] if rank == 0 else [])


def test_before_there_are_processes_everything_is_said(caplog, monkeypatch):
    monkeypatch.setattr(PartialState, "_shared_state", {})
    get_logger("trl_capo.some").warning("early")
    assert caplog.messages == ["early"]
    assert PartialState._shared_state == {}


def test_a_message_has_its_place(caplog):
    """The line that called, and a level that can be turned off."""
    logger = get_logger("trl_capo.some")
    logger.warning("here")
    assert caplog.records[0].filename == "test_messages.py"
    caplog.set_level(logging.ERROR, "trl_capo.some")
    logger.warning("not here")
    assert len(caplog.records) == 1
