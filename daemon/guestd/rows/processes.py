"""The rows of a message's processes: most rows of the store, and so the hot path. Pure.

`SOURCES` says for each column which field of a message it is, and what is done to the value. guestd_rows.c follows that
where guestd was installed with a C compiler, `make_rows_in_python` elsewhere: a new column needs neither changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any, NamedTuple

from guestd.core.config import CommandLines
from guestd.rows.model import Values
from guestd.rows.redact import SUSPICIOUS, Redaction
from guestd.rows.times import LATEST_SECONDS, stored_time
from guestd.wire.limits import COMMAND_LINE_CHARS, NAME_CHARS, PATH_CHARS, STATE_CHARS
from guestd.wire.schema import ProcessD1, ProcessD2
from gueststore.contract import ProcessSnapshot

# What is done to a value: a name and its arguments, for both implementations.
Step = tuple[Any, ...]
KEEP: Step = ("keep",)
"""The value as it is."""
COMMAND_LINE: Step = ("command line",)
"""Stands for the step that the machine's setting asks for (`_command_line_step`)."""


def cut(chars: int) -> Step:
    """The first characters of a text."""
    return ("cut", chars)


def cut_and_map(chars: int, function: Callable[[str], str]) -> Step:
    """The result of a function of the first characters of a text."""
    return ("map", chars, function)


def at_least(least: float) -> Step:
    """A number, or `least` if it is less or null."""
    return ("at least", least)


def time_until(latest_seconds: float, otherwise: Callable[[str | float | None], Any]) -> Step:
    """Plausible unix seconds as they are, without the cost of a datetime; else the result of a function."""
    return ("time", latest_seconds, otherwise)


def redact_with(function: Callable[[str], str | None], words: tuple[str, ...], chars: int) -> Step:
    """A command line redacted by a function; short ones with none of the words are kept without calling it."""
    return ("redact", chars, words, function)


class Source(NamedTuple):
    """Where the value of a column comes from: the fields of D1 and D2, and what is done to it."""

    d1: str
    d2: str
    step: Step = KEEP


_STATUS_NAMES = {"run": "running", "sleep": "sleeping", "stop": "stopped"}


@lru_cache(maxsize=256)
def _status(status: str) -> str:
    name = status.strip().lower().replace(" ", "-")[:STATE_CHARS]
    return _STATUS_NAMES.get(name, name) or "unknown"


SOURCES: Mapping[str, Source] = {
    "processId": Source("id", "pid"),
    "parentPid": Source("parent_id", "ppid"),
    "name": Source("name", "name", cut(NAME_CHARS)),
    "executablePath": Source("executable_path", "exe_path", cut(PATH_CHARS)),
    "commandLine": Source("command_line", "cmd_line", COMMAND_LINE),
    "cpuUsagePercent": Source("cpu_usage_percent", "cpu_percent", at_least(0.0)),
    "memoryUsageKB": Source("memory_usage_kb", "memory_kb"),
    "diskReadBytes": Source("disk_read_bytes", "disk_read_bytes"),
    "diskWriteBytes": Source("disk_write_bytes", "disk_write_bytes"),
    "status": Source("status", "status", cut_and_map(STATE_CHARS, _status)),
    "startTime": Source("start_time", "start_time", time_until(LATEST_SECONDS, stored_time)),
}
_D1 = tuple(SOURCES[column].d1 for column in ProcessSnapshot._fields)
_D2 = tuple(SOURCES[column].d2 for column in ProcessSnapshot._fields)
_STEPS = tuple(SOURCES[column].step for column in ProcessSnapshot._fields)
_KEY = ProcessSnapshot._fields.index("processId")


def make_rows_in_python(
    rows: dict[Any, Values],
    processes: list[Any],
    key: int,
    names: tuple[str, ...],
    steps: tuple[Step, ...],
) -> None:
    """Add the rows of processes by pid: what guestd_rows.c does, where that is not compiled."""
    columns = zip(*map(attrgetter(*names), processes), strict=True)
    # No processes are no columns either.
    stepped = [_after(step, column) for step, column in zip(steps, columns, strict=False)]
    for values in zip(*stepped, strict=True):
        rows[values[key]] = values


def _after(step: Step, column: Sequence[Any]) -> Iterable[Any]:
    """A column's values after their step."""
    match step:
        case ("cut", chars):
            return [text[:chars] if text else text for text in column]
        case ("map", chars, function):
            return [function(text[:chars]) for text in column]
        case ("at least", least):
            return [number if number is not None and number > least else least for number in column]
        case ("time", latest, function):
            return [each if isinstance(each, float) and 0 < each < latest else function(each) for each in column]
        case ("redact", _, _, function):
            return [function(line) if line else line for line in column]
        case _:
            return column


try:
    from guestd_rows import process_rows as make_rows
except ImportError:
    make_rows = make_rows_in_python


def process_rows(
    d1: list[ProcessD1],
    d2: list[ProcessD2],
    command_lines: CommandLines,
    adjustments: list[str],
    make_rows: Callable[..., None] = make_rows,
) -> list[Values]:
    """One row a pid, the last entry wins. Tuples in the order of ProcessSnapshot: its instances cost a tenth more."""
    redaction = Redaction()
    command_line_step = _command_line_step(command_lines, redaction)
    steps = tuple(command_line_step if step is COMMAND_LINE else step for step in _STEPS)
    rows: dict[int, Values] = {}
    for processes, names in ((d1, _D1), (d2, _D2)):
        if processes:
            make_rows(rows, processes, _KEY, names, steps)
    if redaction.lines_cut:
        adjustments.append("text_cut")
    if redaction.lines_shortened:
        adjustments.append("arguments_left_out")
    return list(rows.values())


def _command_line_step(command_lines: CommandLines, redaction: Redaction) -> Step:
    match command_lines:
        case "full":
            return cut(COMMAND_LINE_CHARS)
        case "off":
            return redact_with(lambda _: None, (), -1)
        case _:
            return redact_with(redaction, SUSPICIOUS, COMMAND_LINE_CHARS)
