"""./dev bench ingest: rows a second from bytes on unix sockets to COMMIT, as a ratio to the server's own COPY.

Each round, on one private server (fsync on) and the same rows:

1. end to end: a feeder process writes pre-rendered lines of many guests as fast as guestd reads them; from the first
   byte until the ledger says that the last frame is committed;
2. server: the same rows, exported to binary files, then loaded by COPY from those files into the emptied tables.

The ratio of the two is the figure; rows/s alone depend on the machine. Medians over the rounds.
"""

import argparse
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psycopg
from tools.bench.daemon import Usage, all_connected, guestd, profiled, usage
from tools.bench.feeder import feeder, lines_of
from tools.bench.server import count, own_store, server_cpu_seconds, truncate
from tools.bench.suite import add_load_options, add_rounds_option, medians, run
from tools.harness.waiting import eventually

from gueststore import contract


@dataclass(frozen=True)
class Round:
    """What one round measured."""

    rows: int
    end_to_end_seconds: float
    server_seconds: float
    guestd_cpu_seconds: float
    server_cpu_seconds: float

    def figures(self) -> dict[str, float]:
        """Rates, and costs of a row."""
        return {
            "rows_per_second": self.rows / self.end_to_end_seconds,
            "server_rows_per_second": self.rows / self.server_seconds,
            "ratio": self.server_seconds / self.end_to_end_seconds,
            "guestd_cpu_us_per_row": self.guestd_cpu_seconds / self.rows * 1e6,
            "server_cpu_us_per_row": self.server_cpu_seconds / self.rows * 1e6,
        }


def main() -> None:
    """Run the rounds; draw a profile if one is asked for."""
    run(__doc__, _add_options, _measure)


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_load_options(parser, guests=100, messages=40)
    add_rounds_option(parser)
    parser.add_argument("--profile", type=Path, help="draw what guestd does in one more round into this SVG, by py-spy")


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    with own_store(arguments.guests) as (dsn, directory):
        print(f"rendering {arguments.guests} guests x {arguments.messages} messages x {arguments.processes} processes")
        lines = lines_of(arguments.guests, arguments.messages, arguments.processes)
        names = f"{'end to end':>14} {'server COPY':>14} {'ratio':>6} {'guestd CPU':>14} {'server CPU':>14}"
        print(f"{'round':>6} {names}")
        rounds = []
        for number in range(1, arguments.rounds + 1):
            rounds.append(_round(dsn, directory, lines))
            _print_round(str(number), rounds[-1].figures())
        median = medians([each.figures() for each in rounds])
        _print_round("median", median)
        if arguments.profile:
            # In a round of its own: the profiler takes time.
            truncate(dsn)
            end_to_end(dsn, directory, lines, profile=arguments.profile)
            print(f"a flame graph is in {arguments.profile}")
    return {"median": median, "rounds": [asdict(each) for each in rounds]}


def _print_round(name: str, figures: Mapping[str, float]) -> None:
    rate, server_rate, ratio, guestd_us, server_us = figures.values()
    costs = f"{guestd_us:7.2f} us/row {server_us:7.2f} us/row"
    print(f"{name:>6} {rate:12.0f}/s {server_rate:12.0f}/s {ratio:6.2f} {costs}", flush=True)


def _round(dsn: str, directory: Path, lines: dict[uuid.UUID, bytes]) -> Round:
    truncate(dsn)
    server_before = server_cpu_seconds(directory)
    used = end_to_end(dsn, directory, lines)
    server_used_seconds = server_cpu_seconds(directory) - server_before
    with psycopg.connect(dsn, autocommit=True) as connection:
        if count(connection, 'SELECT count(*) FROM "QuarantinedFrame"'):
            raise SystemExit("frames were quarantined: the figures would not be comparable")
        rows, server_seconds = _server_copy(connection)
    return Round(rows, used.seconds, server_seconds, used.cpu_seconds, server_used_seconds)


def end_to_end(
    dsn: str,
    directory: Path,
    lines: dict[uuid.UUID, bytes],
    *,
    more_tables: str = "",
    before: Callable[[str], None] = lambda _: None,
    profile: Path | None = None,
) -> Usage:
    """Time from the first byte until the last frame is committed, and guestd's processor time.

    `before` is called with the address of the metrics when all channels are connected; `profile` is where to draw.
    """
    channels = Path(tempfile.mkdtemp(prefix="c", dir=directory))
    frames = sum(feed.count(b"\n") for feed in lines.values())
    with feeder(channels, lines) as go, guestd(dsn, channels, more_tables) as (pid, metrics_url):
        all_connected(metrics_url, len(lines))
        before(metrics_url)
        with profiled(pid, profile), psycopg.connect(dsn, autocommit=True) as connection, usage(pid) as used:
            go.release()
            eventually(lambda: count(connection) >= frames, "all frames are committed", 600, every_seconds=0.01)
    return used


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
