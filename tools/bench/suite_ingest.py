"""./dev bench ingest: rows a second from bytes on unix sockets to COMMIT, beside what the server's own COPY takes.

Each round, on one private server (fsync on) and the same rows:

1. end to end: a feeder process writes pre-rendered lines of many guests as fast as guestd takes them, from the first
   byte until the ledger says that the last frame is committed;
2. server: the very rows that came of it, exported to binary files, COPY'd from those files into the emptied tables.

The ratio of the two is the figure; rows/s alone depend on the machine. Medians over the rounds.
"""

import argparse
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psycopg
from tools.bench.feeder import feeder, lines_of
from tools.bench.measuring import (
    cpu_seconds,
    eventually,
    guestd,
    keep,
    metric,
    own_store,
    profiled,
    server_cpu_seconds,
    truncate,
)

from gueststore import contract


@dataclass(frozen=True)
class Round:
    """What one round measured."""

    rows: int
    end_to_end_seconds: float
    server_seconds: float
    guestd_cpu_seconds: float
    server_cpu_seconds: float

    @property
    def ratio(self) -> float:
        """End to end rows/s as a part of the server's own COPY."""
        return self.server_seconds / self.end_to_end_seconds


def main() -> None:
    """Run the rounds, print the table, write the JSON."""
    arguments = _arguments()
    with own_store(arguments.guests) as (dsn, directory):
        print(f"rendering {arguments.guests} guests x {arguments.messages} messages x {arguments.processes} processes")
        lines = lines_of(arguments.guests, arguments.messages, arguments.processes)
        rounds = []
        names = f"{'end to end':>14} {'server COPY':>14} {'ratio':>6} {'guestd CPU':>14} {'server CPU':>14}"
        print(f"{'round':>5} {'rows':>9} {names}")
        for number in range(1, arguments.rounds + 1):
            measured = _round(dsn, directory, lines)
            rounds.append(measured)
            print(f"{number:5} {_figures(measured)}", flush=True)
        _report(rounds, arguments)
        if arguments.profile:
            # A round of its own: to be looked at takes time.
            truncate(dsn)
            end_to_end(dsn, directory, lines, profile=arguments.profile)
            print(f"a flame graph is in {arguments.profile}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench ingest", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--guests", type=int, default=100)
    parser.add_argument("--messages", type=int, default=40, help="of each guest (default: 40)")
    parser.add_argument("--processes", type=int, default=100, help="in each message (default: 100)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("bench-ingest.json"), help="where the figures go")
    parser.add_argument("--profile", type=Path, help="draw what guestd does in one more round into this SVG, by py-spy")
    return parser.parse_args()


def _figures(measured: Round) -> str:
    rate, server_rate = measured.rows / measured.end_to_end_seconds, measured.rows / measured.server_seconds
    costs = (measured.guestd_cpu_seconds, measured.server_cpu_seconds)
    cpu_us = "".join(f" {seconds / measured.rows * 1e6:7.2f} us/row" for seconds in costs)
    return f"{measured.rows:9} {rate:10.0f}/s {server_rate:12.0f}/s {measured.ratio:6.2f}{cpu_us}"


def _report(rounds: list[Round], arguments: argparse.Namespace) -> None:
    median = {
        "rows_per_second": statistics.median(each.rows / each.end_to_end_seconds for each in rounds),
        "server_rows_per_second": statistics.median(each.rows / each.server_seconds for each in rounds),
        "ratio": statistics.median(each.ratio for each in rounds),
        "guestd_cpu_us_per_row": statistics.median(each.guestd_cpu_seconds / each.rows * 1e6 for each in rounds),
        "server_cpu_us_per_row": statistics.median(each.server_cpu_seconds / each.rows * 1e6 for each in rounds),
    }
    print(
        f"median: {median['rows_per_second']:.0f} rows/s end to end, {median['server_rows_per_second']:.0f} rows/s "
        f"server COPY, ratio {median['ratio']:.2f}, {median['guestd_cpu_us_per_row']:.2f} us of guestd's CPU a row, "
        f"{median['server_cpu_us_per_row']:.2f} us of the server's"
    )
    figures = {
        "guests": arguments.guests,
        "messages": arguments.messages,
        "processes": arguments.processes,
        "median": median,
        "rounds": [asdict(each) for each in rounds],
    }
    keep(arguments.json, "ingest", figures)


def _round(dsn: str, directory: Path, lines: dict[uuid.UUID, bytes]) -> Round:
    truncate(dsn)
    server_before = server_cpu_seconds(directory)
    took_seconds, used_seconds = end_to_end(dsn, directory, lines)
    server_used_seconds = server_cpu_seconds(directory) - server_before
    with psycopg.connect(dsn, autocommit=True) as connection:
        if connection.execute('SELECT count(*) FROM "QuarantinedFrame"').fetchone() != (0,):
            raise SystemExit("frames were quarantined: the figures would not be comparable")
        rows, server_seconds = _server_copy(connection)
    return Round(rows, took_seconds, server_seconds, used_seconds, server_used_seconds)


def end_to_end(
    dsn: str,
    directory: Path,
    lines: dict[uuid.UUID, bytes],
    *,
    more_tables: str = "",
    before: Callable[[str], None] = lambda _: None,
    profile: Path | None = None,
) -> tuple[float, float]:
    """Seconds from the first byte until the last frame is committed, and guestd's CPU seconds.

    `before` is called with the address of the metrics when all channels are connected; `profile` is where to draw.
    """
    channels = Path(tempfile.mkdtemp(prefix="c", dir=directory))
    frames = sum(feed.count(b"\n") for feed in lines.values())
    with feeder(channels, lines) as go, guestd(dsn, channels, more_tables) as (pid, metrics_url):
        eventually(lambda: metric(metrics_url, "guestd_channels_connected") == len(lines), "all channels connected")
        before(metrics_url)
        cpu_before, started = cpu_seconds(pid), time.perf_counter()
        go.release()
        with profiled(pid, profile), psycopg.connect(dsn, autocommit=True) as connection:
            ledger = 'SELECT coalesce(sum("committedSeq"), 0) FROM "IngestLedger"'
            eventually(
                lambda: (connection.execute(ledger).fetchone() or (0,))[0] >= frames, "all frames committed", 600
            )
        took_seconds = time.perf_counter() - started
        return took_seconds, cpu_seconds(pid) - cpu_before


def _server_copy(connection: psycopg.Connection[Any]) -> tuple[int, float]:
    """Rows and seconds of the server's own COPY of what the tables hold, from files of its own."""
    (data,) = connection.execute("SHOW data_directory").fetchone() or ("",)
    files = {table: f"{data}/bench-{table.name}.bin" for table in contract.SERIES}
    rows = 0
    for table, file in files.items():
        export = f"COPY (SELECT {table.column_list} FROM \"{table.name}\") TO '{file}' (FORMAT BINARY)"
        rows += connection.execute(export.encode()).rowcount
        connection.execute(f'TRUNCATE "{table.name}"'.encode())
    connection.execute("CHECKPOINT")
    started = time.perf_counter()
    for table, file in files.items():
        connection.execute(f"COPY \"{table.name}\" ({table.column_list}) FROM '{file}' (FORMAT BINARY)".encode())
    took_seconds = time.perf_counter() - started
    for file in files.values():
        Path(file).unlink()
    return rows, took_seconds


if __name__ == "__main__":
    main()
