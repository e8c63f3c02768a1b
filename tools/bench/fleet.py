"""A steady fleet for the suites of ./dev bench: simulated guests, and how long their samples took to their rows."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg
from tools.bench.server import SEED

# A simulator needs two descriptors a guest, and a process has 20,000 of them on this machine.
GUESTS_PER_SIMULATOR = 5000
LINE_TO_ROW = """
    SELECT percentile_cont(ARRAY[0.5, 0.99, 1]) WITHIN GROUP (
        ORDER BY extract(epoch FROM pg_xact_commit_timestamp(xmin) - "timestamp")
    )
    FROM "SystemMetrics" WHERE "timestamp" BETWEEN to_timestamp(%s) AND to_timestamp(%s)"""


@contextmanager
def fleet(target: Path | Sequence[str], guests: int, *, interval_seconds: float, processes: int) -> Iterator[None]:
    """Simulated guests with a socket each in a directory, or with these options, which report at this interval."""
    to = ["--directory", str(target)] if isinstance(target, Path) else target
    command = [sys.executable, "-m", "guestd", "simulate", *to, "--seed", str(SEED)]
    command += ["--interval", str(interval_seconds), "--processes", str(processes)]
    simulators = [
        subprocess.Popen(
            [*command, "--first-id", str(first), "--guests", str(min(GUESTS_PER_SIMULATOR, guests - first))],
            stderr=subprocess.DEVNULL,
        )
        for first in range(0, guests, GUESTS_PER_SIMULATOR)
    ]
    try:
        yield
    finally:
        for simulator in simulators:
            simulator.terminate()
        for simulator in simulators:
            simulator.wait()


def stored_until(dsn: str) -> float:
    """The time of the newest sample of the machine that is furthest behind."""
    newest = 'SELECT max("timestamp") AS newest FROM "SystemMetrics" GROUP BY "machineId"'
    with psycopg.connect(dsn) as connection:
        row = connection.execute(f"SELECT extract(epoch FROM min(newest)) FROM ({newest}) AS machines").fetchone()
    assert row is not None
    return float(row[0])


def line_to_row_seconds(dsn: str, began: float, ended: float) -> list[float]:
    """Median, 99th percentile and maximum of the seconds from line to row, of lines that were written in that time."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute(LINE_TO_ROW, [began, ended]).fetchone()
    assert row is not None
    return [float(each) for each in row[0]]
