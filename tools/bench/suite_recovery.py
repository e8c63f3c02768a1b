"""./dev bench recovery: how long a start takes with a full spool, how fast a backlog is stored, and what idling costs.

1. start: from the start of the process to READY, with a spool that is filled beforehand with what simulated guests
   report. There is no store: READY does not wait for one, and the spool stays as it is.
2. idle: processor time while all guests are connected and silent.
3. drain: every guest's messages of an outage are written while the store refuses connections; then it accepts them.
   Until guestd is connected again and the first batch is stored, and from there until the last frame is committed.
   Real time is how long the fleet took to report that much.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import psycopg
from tools.bench.daemon import all_connected, guestd, metric, usage
from tools.bench.feeder import feeder, lines_of
from tools.bench.server import count, own_store, store_closed, truncate
from tools.bench.suite import add_processes_option, add_rounds_option, medians, print_figures, run
from tools.harness.waiting import eventually, wait_seconds

from guestd.simulator import machine_ids
from guestd.spool.file import Entry, SenderState
from guestd.spool.queue import open_spool
from guestd.telemetry.registry import Telemetry
from guestd.wire.line import read_line

NO_STORE = "host=127.0.0.1 port=1 dbname=nothing"
AT_ONCE = 500


def main() -> None:
    """Measure all three."""
    run(__doc__, _add_options, _measure)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--megabytes", type=int, default=1000, help="payloads in the spool at the start")
    parser.add_argument("--guests", type=int, default=1000, help="simulated guests")
    parser.add_argument("--seconds", type=float, default=60, help="how long they are silent")
    parser.add_argument("--interval", type=float, default=10, help="seconds between two messages of a guest")
    add_processes_option(parser)
    parser.add_argument("--outage-seconds", type=float, default=600, help="how long the outage of the store is")
    add_rounds_option(parser, 3)


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    starts = _starts_seconds(arguments)
    figures = {"start_to_ready_seconds": statistics.median(starts), "slowest_start_seconds": max(starts)}
    print_figures(figures)
    messages = max(1, round(arguments.outage_seconds / arguments.interval))
    with own_store(arguments.guests) as (dsn, directory):
        figures["idle_cpu_cores"] = _idle_cores(dsn, directory, arguments)
        print(f"rendering {arguments.guests} guests x {messages} messages x {arguments.processes} processes")
        lines = lines_of(arguments.guests, messages, arguments.processes)
        rounds = [
            _drain(dsn, directory, lines, outage_seconds=messages * arguments.interval) for _ in range(arguments.rounds)
        ]
    figures |= medians(rounds)
    print_figures(figures)
    return {"figures": figures, "starts": starts, "rounds": rounds}


def _starts_seconds(arguments: argparse.Namespace) -> list[float]:
    with tempfile.TemporaryDirectory(prefix="guestd-bench-") as scratch:
        channels = Path(scratch) / "c"
        channels.mkdir()
        frames = asyncio.run(_fill(channels.with_suffix(".spool"), arguments.megabytes * 1_000_000))
        print(f"{frames:,} frames in the spool")
        return [_start_seconds(channels) for _ in range(arguments.rounds)]


async def _fill(directory: Path, payload_bytes: int) -> int:
    """Write that much to a new spool; returns how many frames it is."""
    lines = [
        (machine_id, line)
        for machine_id, feed in lines_of(100, 10, processes=100).items()
        for line in feed.splitlines()
    ]
    spool = open_spool(directory, max_bytes=2**34, share=1, metrics=Telemetry().spool)
    running = asyncio.create_task(spool.run())
    state = SenderState(int(time.time() * 1000), None, None)
    while spool.bytes < payload_bytes:
        some = [lines[(spool.frames + place) % len(lines)] for place in range(AT_ONCE)]
        await spool.append([Entry(machine_id, read_line(line), state) for machine_id, line in some])
    frames = spool.frames
    spool.seal()
    await running
    spool.close()
    return frames


def _start_seconds(channels: Path) -> float:
    began = time.perf_counter()
    with guestd(NO_STORE, channels):
        return time.perf_counter() - began


def _idle_cores(dsn: str, directory: Path, arguments: argparse.Namespace) -> float:
    channels = Path(tempfile.mkdtemp(prefix="c", dir=directory))
    silent: dict[uuid.UUID, bytes] = dict.fromkeys(machine_ids(arguments.guests, 1), b"")
    with feeder(channels, silent), guestd(dsn, channels) as (pid, url):
        all_connected(url, arguments.guests)
        wait_seconds(5)  # what is done once, at the start
        with usage(pid) as used:
            wait_seconds(arguments.seconds)
    return used.cores


def _drain(dsn: str, directory: Path, lines: dict[uuid.UUID, bytes], *, outage_seconds: float) -> dict[str, float]:
    frames = sum(feed.count(b"\n") for feed in lines.values())
    truncate(dsn)
    channels = Path(tempfile.mkdtemp(prefix="c", dir=directory))
    with feeder(channels, lines) as go, guestd(dsn, channels) as (pid, url):
        all_connected(url, len(lines))
        with store_closed(dsn), usage(pid) as spooling:
            go.release()
            eventually(lambda: metric(url, "guestd_spool_frames") >= frames, "all frames are in the spool", 600)
        opened = time.perf_counter()
        with usage(pid) as used, psycopg.connect(dsn, autocommit=True) as connection:
            eventually(lambda: count(connection) > 0, "the first batch is stored", every_seconds=0.01)
            began = time.perf_counter()
            eventually(lambda: count(connection) >= frames, "all frames are stored", 1200, every_seconds=0.01)
            drain_seconds = time.perf_counter() - began
    return {
        "frames": float(frames),
        "into_the_spool_frames_per_second": frames / spooling.seconds,
        "seconds_until_first_batch": began - opened,
        "drain_seconds": drain_seconds,
        "times_real_time": outage_seconds / drain_seconds,
        "drain_cpu_cores": used.cores,
    }


if __name__ == "__main__":
    main()
