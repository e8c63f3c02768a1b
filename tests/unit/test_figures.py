"""Figures that no machine has are not stored: they would outweigh a fleet in every sum. docs/trust.md lists them."""

import copy
import json
from typing import Any

import pytest

from guestd.rows.normalise import GuestHistory
from guestd.wire import limits
from guestd.wire.decode import decode
from support.poison import D1, D2
from support.rows import TABLES, by_table, named, rows_of

SYSTEM = ("data", "system")
PROCESS = (*SYSTEM, "processes", 0)
CPU, MEMORY, LEFT_OUT, ZEROED = limits.PROCESS_PERCENT, limits.MEMORY_KB, "field_left_out", "number_zeroed"
# Message, where, the largest that is stored, table and column, what is stored instead of a larger one, how it counts.
FIGURES: list[tuple[dict[str, Any], tuple[str | int, ...], int, str, str, float | None, str]] = [
    (D1, (*PROCESS, "cpu_usage_percent"), CPU, "ProcessSnapshot", "cpuUsagePercent", 0, LEFT_OUT),
    (D2, ("data", "processes", 0, "cpu_percent"), CPU, "ProcessSnapshot", "cpuUsagePercent", 0, LEFT_OUT),
    (D1, (*PROCESS, "memory_usage_kb"), MEMORY, "ProcessSnapshot", "memoryUsageKB", 0, ZEROED),
    (D2, ("data", "processes", 0, "memory_kb"), MEMORY, "ProcessSnapshot", "memoryUsageKB", 0, ZEROED),
    (D1, (*PROCESS, "disk_read_bytes"), limits.AMOUNT, "ProcessSnapshot", "diskReadBytes", None, LEFT_OUT),
    (D1, (*SYSTEM, "memory", "used_kb"), MEMORY, "SystemMetrics", "usedMemoryKB", 0, ZEROED),
    (D1, (*SYSTEM, "memory", "swap_used_kb"), MEMORY, "SystemMetrics", "swapUsedKB", None, LEFT_OUT),
    (D1, (*SYSTEM, "cpu", "temperature"), limits.CELSIUS, "SystemMetrics", "cpuTemperature", None, LEFT_OUT),
    (D1, (*SYSTEM, "system", "uptime_seconds"), limits.UPTIME_SECONDS, "SystemMetrics", "uptime", 0, LEFT_OUT),
    (D2, ("data", "applications", 0, "file_size"), limits.AMOUNT, "incoming_application", "fileSize", None, LEFT_OUT),
]
IDS = [f"{column} {path[-1]}" for _, path, _, _, column, _, _ in FIGURES]


def sent(message: dict[str, Any], path: tuple[str | int, ...], value: float) -> bytes:
    changed = copy.deepcopy(message)
    inner: Any = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return json.dumps(changed).encode()


def stored(line: bytes, table: str, column: str) -> Any:
    (row,) = by_table(rows_of(line, GuestHistory()))[table]
    return named(TABLES[table], row)[column]


@pytest.mark.parametrize(("message", "path", "most", "table", "column", "instead", "reason"), FIGURES, ids=IDS)
def test_a_figure_that_no_machine_has_is_left_out_and_counted(
    message: dict[str, Any], path: tuple[str | int, ...], most: int, table: str, column: str, instead: Any, reason: str
) -> None:
    assert stored(sent(message, path, most), table, column) == most
    for beyond in (2 * most, 2**63 - 1, 1.7e308):
        line = sent(message, path, beyond)
        assert stored(line, table, column) == instead
        assert reason in decode(line).repairs
