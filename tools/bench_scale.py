"""./dev bench scale: what a steady fleet costs one guestd: memory, CPU, and how long a sample is on its way.

Simulated guests (in processes of their own) report at an interval for a while; guestd is watched from outside and asked
for its own figures. From the guest's line to its row: the time in the line, which is taken when it is written, and the
time that the server's commit record of its row bears; both are of this machine's clock.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from tools.measuring import SEED, cpu_seconds, eventually, guestd, keep, metric, own_store, samples

# A simulator needs two descriptors a guest, and a process has 20,000 of them on this machine.
GUESTS_PER_SIMULATOR = 5000
ON_ITS_WAY = """
    SELECT percentile_cont(ARRAY[0.5, 0.99, 1]) WITHIN GROUP (
        ORDER BY extract(epoch FROM pg_xact_commit_timestamp(xmin) - "timestamp")
    )
    FROM "SystemMetrics" WHERE "timestamp" BETWEEN to_timestamp(%s) AND to_timestamp(%s)"""


def main() -> None:
    """Run the fleet, print the table, write the JSON."""
    arguments = _arguments()
    with own_store(arguments.guests, track_commit_timestamp="on") as (dsn, directory):
        channels = directory / "c"
        channels.mkdir()
        with _fleet(channels, arguments), guestd(dsn, channels) as (pid, url):
            figures = _watched(pid, url, dsn, arguments)
    for name, value in figures.items():
        print(f"{name:>28} {value:12.3f}")
    keep(arguments.json, "scale", {"arguments": vars(arguments) | {"json": str(arguments.json)}, "figures": figures})


@contextmanager
def _fleet(channels: Path, arguments: argparse.Namespace) -> Iterator[None]:
    command = [sys.executable, "-m", "guestd", "simulate", "--directory", str(channels), "--seed", str(SEED)]
    command += ["--interval", str(arguments.interval), "--processes", str(arguments.processes)]
    simulators = [
        subprocess.Popen(
            [*command, "--first-id", str(first), "--guests", str(min(GUESTS_PER_SIMULATOR, arguments.guests - first))],
            stderr=subprocess.DEVNULL,
        )
        for first in range(0, arguments.guests, GUESTS_PER_SIMULATOR)
    ]
    try:
        yield
    finally:
        for simulator in simulators:
            simulator.terminate()
        for simulator in simulators:
            simulator.wait()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench scale", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--guests", type=int, default=1000)
    parser.add_argument("--interval", type=float, default=10, help="seconds between two messages of a guest")
    parser.add_argument("--processes", type=int, default=100, help="in each message (default: 100)")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--json", type=Path, default=Path("bench-scale.json"), help="where the figures go")
    return parser.parse_args()


def _watched(pid: int, url: str, dsn: str, arguments: argparse.Namespace) -> dict[str, float]:
    eventually(lambda: metric(url, "guestd_channels_connected") == arguments.guests, "all channels connected", 300)
    # What the first comers wrote before they were connected, and all that is made once, is behind us then.
    _let_pass(arguments.interval)
    before, cpu_before, began = samples(url), cpu_seconds(pid), time.time()
    _let_pass(arguments.seconds)
    ended, cpu_used = time.time(), cpu_seconds(pid) - cpu_before
    after, seconds = samples(url), ended - began
    rows = sum(after[name] - before.get(name, 0) for name in after if name.startswith("guestd_rows_written_total"))
    resident, peak = _status_kib(pid, "VmRSS") / 1024, _status_kib(pid, "VmHWM") / 1024
    # Lines that were written in that time are all committed in the end, or the quantile would leave out the slowest.
    _let_pass(arguments.interval)
    eventually(lambda: _stored_until(dsn) > ended, "all of that time is stored", 300)
    median, p99, slowest = _on_their_way(dsn, began, ended)
    return {
        "resident_megabytes": resident,
        "peak_resident_megabytes": peak,
        "cpu_cores": cpu_used / seconds,
        "frames_per_second": (after["guestd_frames_accepted_total"] - before["guestd_frames_accepted_total"]) / seconds,
        "rows_per_second": rows / seconds,
        "line_to_row_p50_seconds": median,
        "line_to_row_p99_seconds": p99,
        "line_to_row_slowest_seconds": slowest,
        "batch_lag_p50_seconds_at_most": _quantile(before, after, 0.5),
        "batch_lag_p99_seconds_at_most": _quantile(before, after, 0.99),
        "frames_in_spool_at_the_end": after["guestd_spool_frames"],
    }


def _let_pass(seconds: float) -> None:
    deadline = time.monotonic() + seconds
    eventually(lambda: time.monotonic() >= deadline, "the end", seconds + 10)


def _quantile(before: dict[str, float], after: dict[str, float], part: float) -> float:
    """The upper bound of the bucket that the quantile of receive-to-commit times is in."""
    prefix = "guestd_receive_to_commit_seconds_bucket{"
    counts = {
        float(name[len(prefix) : -1]): after[name] - before.get(name, 0) for name in after if name.startswith(prefix)
    }
    return min(bound for bound, count in counts.items() if count >= part * max(counts.values()))


def _stored_until(dsn: str) -> float:
    """The time of the newest sample of the machine that is behind all others."""
    newest = 'SELECT max("timestamp") AS newest FROM "SystemMetrics" GROUP BY "machineId"'
    with psycopg.connect(dsn) as connection:
        row = connection.execute(f"SELECT extract(epoch FROM min(newest)) FROM ({newest}) AS machines").fetchone()
    assert row is not None
    return float(row[0])


def _on_their_way(dsn: str, began: float, ended: float) -> list[float]:
    """Median, 99th percentile and maximum of the seconds from line to row, of lines that were written in that time."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute(ON_ITS_WAY, [began, ended]).fetchone()
    assert row is not None
    return [float(each) for each in row[0]]


def _status_kib(pid: int, key: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    main()
