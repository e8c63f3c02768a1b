"""./dev bench spool: frames a second that the spool writes to disk, and how long a group commit takes.

Many machines append at the same time and wait for their fsync before the next append, as the gate does for them.
"""

import argparse
import asyncio
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import uvloop
from tools.bench.suite import add_rounds_option, medians, quantile, run

from guestd.spool.file import Entry, SenderState
from guestd.spool.queue import open_spool
from guestd.telemetry.registry import Telemetry
from guestd.wire.line import METRICS, Header, Line

BOOT_ID = "0d3f3a5e-8d0b-4a55-9c0b-5d5e4a2f7c11"


def main() -> None:
    """Fill a new spool a few times."""
    run(__doc__, _add_options, _measure)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--frames", type=int, default=100_000, help="frames of all machines")
    parser.add_argument("--bytes", type=int, default=4096, help="bytes of a frame's payload")
    parser.add_argument("--machines", type=int, default=1000, help="machines that append at the same time")
    parser.add_argument("--lines", type=int, default=1, help="lines in one append of a machine")
    parser.add_argument("--directory", type=Path, help="where to write, on the disk to measure; else a temporary one")
    add_rounds_option(parser)


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    rounds = [uvloop.run(_round(arguments)) for _ in range(arguments.rounds)]
    figures = medians(rounds)
    for name, value in figures.items():
        lowest, highest = (pick(each[name] for each in rounds) for pick in (min, max))
        print(f"{name:>28} {value:14,.4g}  ({lowest:,.4g} to {highest:,.4g})")
    return {"figures": figures, "rounds": rounds}


async def _round(arguments: argparse.Namespace) -> dict[str, float]:
    directory = Path(tempfile.mkdtemp(prefix="guestd-bench-", dir=arguments.directory))
    metrics = Telemetry().spool
    commits: list[float] = []
    metrics.commit_seconds.observe = commits.append  # type: ignore[assignment]  # each, for the quantiles
    spool = open_spool(directory, max_bytes=2**34, share=1, metrics=metrics)
    appends: list[float] = []
    payload = random.Random(1).randbytes(arguments.bytes)
    each = arguments.frames // (arguments.machines * arguments.lines)

    async def machine(machine_id: UUID) -> None:
        for place in range(each):
            entries = [
                _numbered(machine_id, payload, place * arguments.lines + line) for line in range(arguments.lines)
            ]
            began = time.perf_counter()
            await spool.append(entries)
            appends.append(time.perf_counter() - began)

    running = asyncio.create_task(spool.run())
    started, cpu_started = time.perf_counter(), time.process_time()
    await asyncio.gather(*(machine(uuid4()) for _ in range(arguments.machines)))
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    spool.seal()
    await running
    frames = spool.frames
    spool.close()
    shutil.rmtree(directory)
    return {
        "frames_per_second": frames / seconds,
        "megabytes_per_second": frames * arguments.bytes / seconds / 1e6,
        "commits_per_second": len(commits) / seconds,
        "commit_p50_ms": quantile(commits, 0.5) * 1000,
        "commit_p99_ms": quantile(commits, 0.99) * 1000,
        "append_p50_ms": quantile(appends, 0.5) * 1000,
        "append_p99_ms": quantile(appends, 0.99) * 1000,
        "cpu_microseconds_per_frame": cpu_seconds / frames * 1e6,
    }


def _numbered(machine_id: UUID, payload: bytes, seq: int) -> Entry:
    line = Line(METRICS, Header(BOOT_ID, seq, seq, "mark", "mark"), payload)
    return Entry(machine_id, line, SenderState(1_700_000_000_000 + seq, BOOT_ID, seq, "mark"))


if __name__ == "__main__":
    main()
