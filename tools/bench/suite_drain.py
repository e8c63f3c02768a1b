"""./dev bench drain: how fast guestd stores what an outage of the store left in its spool, beside real time.

Every guest's messages of an outage are written while the store lets nobody in; then it does again. Real time is how
long the fleet took to report so much. Two times are taken: until guestd is connected again and the first batch is
stored, and from there until the ledger says that the last frame is committed.
"""

import argparse
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from tools.bench.feeder import feeder, lines_of
from tools.bench.measuring import cpu_seconds, eventually, guestd, keep, metric, own_store, truncate


def main() -> None:
    """Run the rounds, print the table, write the JSON."""
    arguments = _arguments()
    messages = max(1, round(arguments.outage_seconds / arguments.interval))
    with own_store(arguments.guests) as (dsn, directory):
        print(f"rendering {arguments.guests} guests x {messages} messages x {arguments.processes} processes")
        lines = lines_of(arguments.guests, messages, arguments.processes)
        rounds = []
        for number in range(1, arguments.rounds + 1):
            rounds.append(_round(dsn, directory, lines, outage_seconds=messages * arguments.interval))
            print(
                f"round {number}: " + ", ".join(f"{name} {value:.2f}" for name, value in rounds[-1].items()), flush=True
            )
    figures = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    for name, value in figures.items():
        print(f"{name:>28} {value:12.2f}")
    kept = vars(arguments) | {"json": str(arguments.json)}
    keep(arguments.json, "drain", {"arguments": kept, "figures": figures, "rounds": rounds})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench drain", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--guests", type=int, default=1000)
    parser.add_argument("--interval", type=float, default=10, help="seconds between two messages of a guest")
    parser.add_argument("--processes", type=int, default=100, help="in each message (default: 100)")
    parser.add_argument("--outage-seconds", type=float, default=600, help="how much is waiting (default: 600)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("bench-drain.json"), help="where the figures go")
    return parser.parse_args()


def _round(dsn: str, directory: Path, lines: dict[uuid.UUID, bytes], *, outage_seconds: float) -> dict[str, float]:
    frames = sum(feed.count(b"\n") for feed in lines.values())
    truncate(dsn)
    channels = Path(tempfile.mkdtemp(prefix="c", dir=directory))
    with feeder(channels, lines) as go, guestd(dsn, channels) as (pid, url):
        eventually(lambda: metric(url, "guestd_channels_connected") == len(lines), "all channels connected")
        with _store_closed(dsn):
            began = time.perf_counter()
            go.release()
            eventually(lambda: metric(url, "guestd_spool_frames") >= frames, "all frames in the spool", 600)
            took_seconds = time.perf_counter() - began
        opened, cpu_before = time.perf_counter(), cpu_seconds(pid)
        with psycopg.connect(dsn, autocommit=True) as connection:
            eventually(lambda: _committed(connection) > 0, "the first batch is stored")
            began = time.perf_counter()
            eventually(lambda: _committed(connection) >= frames, "all frames are stored", 1200)
            drain_seconds, cpu = time.perf_counter() - began, cpu_seconds(pid) - cpu_before
    return {
        "frames": float(frames),
        "into_the_spool_frames_per_second": frames / took_seconds,
        "seconds_until_first_batch": began - opened,
        "drain_seconds": drain_seconds,
        "times_real_time": outage_seconds / drain_seconds,
        "cpu_cores": cpu / (drain_seconds + began - opened),
    }


def _committed(connection: psycopg.Connection[tuple[int]]) -> int:
    row = connection.execute('SELECT coalesce(sum("committedSeq"), 0) FROM "IngestLedger"').fetchone()
    return int(row[0]) if row else 0


@contextmanager
def _store_closed(dsn: str) -> Iterator[None]:
    """An outage: the database lets nobody in."""
    server = dsn.removesuffix("/bench") + "/postgres"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("ALTER DATABASE bench ALLOW_CONNECTIONS false")
        connection.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = 'bench'")
        try:
            yield
        finally:
            connection.execute("ALTER DATABASE bench ALLOW_CONNECTIONS true")


if __name__ == "__main__":
    main()
