"""A steady fleet for the suites of ./dev bench: simulated guests, and what their rows tell."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from tools.bench.measuring import SEED, eventually

# A simulator needs two descriptors a guest, and a process has 20,000 of them on this machine.
GUESTS_PER_SIMULATOR = 5000
ON_ITS_WAY = """
    SELECT percentile_cont(ARRAY[0.5, 0.99, 1]) WITHIN GROUP (
        ORDER BY extract(epoch FROM pg_xact_commit_timestamp(xmin) - "timestamp")
    )
    FROM "SystemMetrics" WHERE "timestamp" BETWEEN to_timestamp(%s) AND to_timestamp(%s)"""


@contextmanager
def fleet(channels: Path, guests: int, *, interval_seconds: float, processes: int) -> Iterator[None]:
    """So many guests with a socket each in `channels`, which report at this interval."""
    command = [sys.executable, "-m", "guestd", "simulate", "--directory", str(channels), "--seed", str(SEED)]
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


def let_pass(seconds: float) -> None:
    """Wait, as a fleet does between two messages."""
    deadline = time.monotonic() + seconds
    eventually(lambda: time.monotonic() >= deadline, "the end", seconds + 10)


def stored_until(dsn: str) -> float:
    """The time of the newest sample of the machine that is behind all others."""
    newest = 'SELECT max("timestamp") AS newest FROM "SystemMetrics" GROUP BY "machineId"'
    with psycopg.connect(dsn) as connection:
        row = connection.execute(f"SELECT extract(epoch FROM min(newest)) FROM ({newest}) AS machines").fetchone()
    assert row is not None
    return float(row[0])


def on_their_way(dsn: str, began: float, ended: float) -> list[float]:
    """Median, 99th percentile and maximum of the seconds from line to row, of lines that were written in that time."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute(ON_ITS_WAY, [began, ended]).fetchone()
    assert row is not None
    return [float(each) for each in row[0]]


def resident_megabytes(pid: int, key: str = "VmRSS") -> float:
    """Memory of a process that is in RAM; `VmHWM` for the most that ever was."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) / 1024
