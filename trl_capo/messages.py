"""Messages to the user: of several processes, which find the same things, only the main one says them."""

import logging
from collections.abc import MutableMapping
from typing import Any

from accelerate import PartialState

from trl_capo.plain import plain


class _OfMainProcess(logging.LoggerAdapter):
    """As accelerate's logger, without `[RANK 0]` before every message."""

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802
        alone = not PartialState._shared_state  # the processes do not know each other yet
        return super().isEnabledFor(level) and (alone or PartialState().is_main_process)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[str, MutableMapping[str, Any]]:
        return plain(str(msg)), kwargs


def get_logger(name: str) -> logging.LoggerAdapter:
    return _OfMainProcess(logging.getLogger(name), {})
