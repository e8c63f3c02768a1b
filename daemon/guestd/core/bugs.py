"""Logging of unexpected exceptions: each with its traceback, and none without end."""

from __future__ import annotations

import time
import traceback
from contextlib import suppress

import structlog

log = structlog.get_logger()

# A traceback is logged again after this time, however often the same line of code fails.
BUG_LOG_SECONDS = 60.0


class BugLog:
    """Logs unexpected exceptions, those of one line of code at most once in BUG_LOG_SECONDS."""

    def __init__(self) -> None:
        self._silent_until: dict[tuple[str, str, int], float] = {}

    def error(self, event: str, exc: BaseException, **details: object) -> None:
        """Log an exception with its traceback. Never raises: a process without memory must still reach its handlers."""
        with suppress(Exception):
            file, line_number = _find_place(exc)
            place = event, file, line_number
            now = time.monotonic()
            if now >= self._silent_until.get(place, 0.0):
                self._silent_until[place] = now + BUG_LOG_SECONDS
                log.error(event, exc_info=exc, **details)


def _find_place(exc: BaseException) -> tuple[str, int]:
    """File and line that raised; of a group that of its first exception."""
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    place = "", 0
    for frame, line_number in traceback.walk_tb(exc.__traceback__):
        place = frame.f_code.co_filename, line_number
    return place


def describe_error(exc: BaseException) -> str:
    """Type and message of an exception on one line; of a group those of the exceptions in it."""
    if isinstance(exc, BaseExceptionGroup):
        return "; ".join(map(describe_error, exc.exceptions))
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
