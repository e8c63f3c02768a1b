"""./dev bench spool: how many frames a second the spool takes to disk, and how long a group commit lasts.

Many machines append at the same time and wait for their fsync before the next append, as intake does for them.
"""

import argparse
import asyncio
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from uuid import UUID, uuid4

import uvloop
from tools.bench.measuring import keep

from guestd.spool.file import Entry, SenderState
from guestd.spool.queue import open_spool
from guestd.telemetry.registry import Telemetry
from guestd.wire.line import METRICS, Header, Line

BOOT_ID = "0d3f3a5e-8d0b-4a55-9c0b-5d5e4a2f7c11"


def main() -> None:
    """Fill a new spool a few times, print the medians, write the JSON."""
    arguments = _arguments()
    rounds = [uvloop.run(_round(arguments)) for _ in range(arguments.rounds)]
    figures = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    for name, value in figures.items():
        spread = f"({min(each[name] for each in rounds):,.4g} to {max(each[name] for each in rounds):,.4g})"
        print(f"{name:>28} {value:14,.4g}  {spread}")
    arguments_kept = vars(arguments) | {"json": str(arguments.json), "directory": str(arguments.directory)}
    keep(arguments.json, "spool", {"arguments": arguments_kept, "figures": figures, "rounds": rounds})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench spool", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--bytes", type=int, default=4096, help="of a frame's payload (default: 4096)")
    parser.add_argument("--machines", type=int, default=1000, help="that append at the same time (default: 1000)")
    parser.add_argument("--lines", type=int, default=1, help="in one append of a machine (default: 1)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="on the disk to measure (default: where temporary files go)")
    parser.add_argument("--json", type=Path, default=Path("bench-spool.json"), help="where the figures go")
    return parser.parse_args()


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
        "commit_p50_ms": _quantile(commits, 0.5) * 1000,
        "commit_p99_ms": _quantile(commits, 0.99) * 1000,
        "append_p50_ms": _quantile(appends, 0.5) * 1000,
        "append_p99_ms": _quantile(appends, 0.99) * 1000,
        "cpu_microseconds_per_frame": cpu_seconds / frames * 1e6,
    }


def _numbered(machine_id: UUID, payload: bytes, seq: int) -> Entry:
    line = Line(METRICS, Header(BOOT_ID, seq, seq, "mark", "mark"), payload)
    return Entry(machine_id, line, SenderState(1_700_000_000_000 + seq, BOOT_ID, seq, "mark"))


def _quantile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


if __name__ == "__main__":
    main()
