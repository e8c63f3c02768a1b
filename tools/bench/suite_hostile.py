"""./dev bench hostile: the processor time of the most expensive frames, and what one hostile guest costs the others.

1. frames (tools/bench/hostile_frames.py): each of the most expensive frames that a guest can make, from bytes to rows.
2. flood: 99 simulated guests report at an interval; a hundredth floods its channel, in one way after the other. From a
   sample's time in its guest to the commit of its row, as the server stamps it: median and 99th percentile of the 99,
   quiet and flooded in turns in the same run, and the flooded as a ratio to the quiet before and after it.
"""

import argparse
import signal
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from tools.bench import hostile_frames
from tools.bench.daemon import all_connected, guestd, metric
from tools.bench.fleet import fleet
from tools.bench.flood import KINDS
from tools.bench.server import SEED, own_store
from tools.bench.suite import run
from tools.harness.waiting import eventually, wait_seconds

from guestd.simulator import machine_ids

LATENCIES = """
SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin) - "timestamp")
FROM "SystemMetrics"
WHERE "machineId" <> %s AND "timestamp" BETWEEN %s AND %s
"""
BUCKETS_FILL_SECONDS = 10.0
PROCESSES = 100


@dataclass(frozen=True)
class Phase:
    """What the 99 saw while the hundredth did this."""

    kind: str
    samples: int
    p50_seconds: float
    p99_seconds: float
    flooder_frames_per_second: float


def main() -> None:
    """Measure both."""
    run(__doc__, _add_options, _measure)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tries", type=int, default=5, help="of each frame; the least counts")
    parser.add_argument("--guests", type=int, default=100, help="simulated guests, with the hostile one")
    parser.add_argument("--interval", type=float, default=2, help="seconds between two messages of a guest")
    parser.add_argument("--seconds", type=float, default=20, help="how long each phase of the flood lasts")


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    frames = hostile_frames.measure(arguments.tries)
    guests = arguments.guests
    with own_store(guests, track_commit_timestamp="on") as (dsn, directory):
        channels = directory / "c"
        channels.mkdir()
        with (
            fleet(channels, guests - 1, interval_seconds=arguments.interval, processes=PROCESSES),
            guestd(dsn, channels) as (_, url),
        ):
            all_connected(url, guests - 1)
            flooder = machine_ids(guests, SEED)[-1]
            print(f"{'the hundredth guest':>24} {'samples':>8} {'p50 s':>8} {'p99 s':>8} {'its frames/s':>13}")
            phases = [_phase(dsn, url, flooder, channels, kind, arguments.seconds) for kind in _turns()]
    return {"frames": frames, "ratios": _ratios(phases), "phases": [asdict(phase) for phase in phases]}


def _turns() -> list[str]:
    return ["quiet", *(turn for kind in KINDS for turn in (kind, "quiet"))]


def _phase(dsn: str, url: str, flooder: object, channels: Path, kind: str, seconds: float) -> Phase:
    # The flooder begins with its whole burst.
    wait_seconds(BUCKETS_FILL_SECONDS)
    frames = metric(url, "guestd_frames_accepted_total")
    began = datetime.now(UTC)
    if kind == "quiet":
        wait_seconds(seconds)
    else:
        path = channels / f"{flooder}.socket"
        with subprocess.Popen([sys.executable, "-m", "tools.bench.flood", kind, str(path)]) as flood:
            wait_seconds(seconds)
            flood.send_signal(signal.SIGTERM)
        path.unlink()
    ended = datetime.now(UTC)
    frames = metric(url, "guestd_frames_accepted_total") - frames
    eventually(lambda: metric(url, "guestd_spool_frames") < 100, "what was accepted is stored", 600)
    with psycopg.connect(dsn) as connection:
        latencies = [float(each) for (each,) in connection.execute(LATENCIES, (flooder, began, ended)).fetchall()]
    cuts = statistics.quantiles(latencies, n=100)
    theirs = (frames - len(latencies)) / seconds
    phase = Phase(kind, len(latencies), statistics.median(latencies), cuts[98], max(0.0, theirs))
    print(f"{kind:>24} {phase.samples:8} {phase.p50_seconds:8.3f} {phase.p99_seconds:8.3f} {theirs:13.1f}", flush=True)
    return phase


def _ratios(phases: list[Phase]) -> dict[str, dict[str, float]]:
    """Each flooded phase to the quiet ones before and after it."""
    ratios = {}
    for place in range(1, len(phases), 2):
        before, flooded, after = phases[place - 1 : place + 2]
        ratios[flooded.kind] = {
            "p50": flooded.p50_seconds / statistics.mean((before.p50_seconds, after.p50_seconds)),
            "p99": flooded.p99_seconds / statistics.mean((before.p99_seconds, after.p99_seconds)),
        }
    for kind, ratio in ratios.items():
        print(f"{kind:>24}: p50 {ratio['p50']:.2f} times, p99 {ratio['p99']:.2f} times the quiet")
    return ratios


if __name__ == "__main__":
    main()
