"""The agent's state file: the use of applications, kept over restarts. Nothing in it may end the agent.

A file that is damaged is kept beside the new one, and what can be read of it is used. A file that cannot be reached
now (its disk fails, its mount does not answer) is left alone: it may be whole.
"""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

from guestd.agent.files import FileTooLarge, read_file
from guestd.agent.payload import clean

# 500 records with the longest paths of Linux.
LONGEST_STATE_BYTES = 4 * 1024 * 1024
# The largest minutes and starts that the store has a column for.
MOST_STARTS = 2**31 - 1
MOST_SECONDS = 60.0 * (2**31 - 1)
# The last second before the year 2200, in unix seconds: the store takes no later time. Not the clock's time: it may not
# be set yet.
LATEST_SECONDS = 7_258_118_399.0

Value = TypeVar("Value")
_log: structlog.stdlib.BoundLogger = structlog.get_logger("guestd.agent")


class UsageRecord(msgspec.Struct):
    """The use of one executable; `last_access` in unix seconds.

    `is_file`: the kernel named its file when it last ran, and it was there. Other names come from command lines.
    """

    seconds: float = 0.0
    starts: int = 0
    last_access: float = 0.0
    is_file: bool = False


class UsageState(msgspec.Struct):
    """All records by executable, and the time of the last sample (unix seconds, 0 before the first).

    This is the format of the agent's state file: the names in it stay. JSON without records is no state file.
    """

    records: dict[str, UsageRecord]
    observed_at: float = msgspec.field(default=0.0, name="looked_at")


class _DamagedState(msgspec.Struct):
    """The same file, each value by itself."""

    records: dict[str, msgspec.Raw] = {}
    observed_at: msgspec.Raw = msgspec.field(default=msgspec.Raw(b"0"), name="looked_at")


# What msgspec raises for bytes that are not UTF-8 is no DecodeError.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def read_usage_state(path: Path) -> UsageState:
    """The usage state of an earlier run; an empty one when there is no file. A damaged file is renamed, and logged.

    Raises OSError when it cannot be read now.
    """
    try:
        content = read_file(path, LONGEST_STATE_BYTES)
    except FileNotFoundError:
        return UsageState({})
    except FileTooLarge as exc:
        _keep_damaged(path, str(exc), 0)
        return UsageState({})
    try:
        # As text: of bytes, msgspec does not examine what it passes over.
        usage = msgspec.json.decode(content.decode(), type=UsageState)
    except _UNREADABLE as exc:
        usage = _read_damaged(content)
        _keep_damaged(path, str(exc), len(usage.records))
    _bound(usage)
    return usage


def write_usage_state(path: Path, content: bytes) -> None:
    """Replace the file in one step, so that a crash leaves the old one or the new one. Raises OSError."""
    new = path.with_name(path.name + ".new")
    try:
        with new.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        with suppress(OSError):
            new.unlink()
        raise
    new.replace(path)


def _read_damaged(content: bytes) -> UsageState:
    """The records that can be read."""
    try:
        damaged = msgspec.json.decode(content.decode(errors="replace"), type=_DamagedState)
    except _UNREADABLE:
        return UsageState({})
    records = {name: _decode(raw, UsageRecord) for name, raw in damaged.records.items()}
    readable = {name: record for name, record in records.items() if record is not None}
    return UsageState(readable, _decode(damaged.observed_at, float) or 0.0)


def _decode(raw: msgspec.Raw, kind: type[Value]) -> Value | None:
    try:
        return msgspec.json.decode(raw, type=kind)
    except _UNREADABLE:
        return None


def _keep_damaged(path: Path, error: str, records: int) -> None:
    kept = path.with_name(path.name + ".damaged")
    try:
        path.replace(kept)
    except OSError as exc:
        error = f"{error}; it cannot be renamed: {exc}"
    _log.warning(
        "state file damaged: the records that can be read are used, the others start from zero; the file is kept under "
        "another name",
        file=str(path), kept=str(kept), records=records, error=error,
    )  # fmt: skip


def _bound(usage: UsageState) -> None:
    """Values that no agent writes: negative, beyond what a message can hold, or later than any that is stored."""
    usage.records = {clean(name): record for name, record in usage.records.items()}
    usage.observed_at = _between(usage.observed_at, LATEST_SECONDS)
    for record in usage.records.values():
        record.seconds = _between(record.seconds, MOST_SECONDS)
        record.starts = min(max(record.starts, 0), MOST_STARTS)
        record.last_access = _between(record.last_access, LATEST_SECONDS)


def _between(value: float, most: float) -> float:
    return min(max(value, 0.0), most) if math.isfinite(value) else most
