"""./dev bench start: how long guestd takes from its start to READY with a spool to replay, and what it costs when idle.

The spool is filled beforehand with what simulated guests report; there is no store, for READY does not wait for one and
the spool stays as it is. Idle: guests that are connected and say nothing.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
import uuid
from pathlib import Path

from tools.bench.feeder import feeder, lines_of
from tools.bench.fleet import let_pass
from tools.bench.measuring import cpu_seconds, eventually, guestd, keep, metric, own_store

from guestd.simulator import machine_ids
from guestd.spool.file import Entry, SenderState
from guestd.spool.queue import open_spool
from guestd.telemetry.registry import Telemetry
from guestd.wire.line import read_line

NO_STORE = "host=127.0.0.1 port=1 dbname=nothing"
AT_ONCE = 500


def main() -> None:
    """Fill, start, look on; print the table, write the JSON."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="guestd-bench-") as scratch:
        channels = Path(scratch) / "c"
        channels.mkdir()
        frames = asyncio.run(_filled(channels.with_suffix(".spool"), arguments.megabytes * 1_000_000))
        print(f"{frames:,} frames in the spool")
        starts = [_start_seconds(channels) for _ in range(arguments.rounds)]
    figures = {"start_to_ready_seconds": statistics.median(starts), "slowest_start_seconds": max(starts)}
    with own_store(arguments.guests) as (dsn, directory):
        figures["idle_cpu_cores"] = _idle_cores(dsn, directory, arguments)
    for name, value in figures.items():
        print(f"{name:>28} {value:12.4f}")
    kept = vars(arguments) | {"json": str(arguments.json)}
    keep(arguments.json, "start", {"arguments": kept, "figures": figures, "starts": starts})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench start", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=1000, help="of payloads in the spool (default: 1000)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--guests", type=int, default=1000, help="that are quiet (default: 1000)")
    parser.add_argument("--seconds", type=float, default=60, help="for which they are (default: 60)")
    parser.add_argument("--json", type=Path, default=Path("bench-start.json"), help="where the figures go")
    return parser.parse_args()


async def _filled(directory: Path, payload_bytes: int) -> int:
    """Put so much on disk; returns how many frames it is."""
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
    channels = directory / "c"
    channels.mkdir()
    quiet: dict[uuid.UUID, bytes] = dict.fromkeys(machine_ids(arguments.guests, 1), b"")
    with feeder(channels, quiet), guestd(dsn, channels) as (pid, url):
        eventually(lambda: metric(url, "guestd_channels_connected") == arguments.guests, "all channels connected", 300)
        let_pass(5)  # what is done once, at the start
        before, began = cpu_seconds(pid), time.monotonic()
        let_pass(arguments.seconds)
        return (cpu_seconds(pid) - before) / (time.monotonic() - began)


if __name__ == "__main__":
    main()
