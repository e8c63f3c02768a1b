"""./dev bench fairness: what one hostile guest costs the others.

99 simulated guests report at their rhythm; a hundredth floods its channel, in one way after the other. From the moment
that a guest takes its sample to the commit of its row, as the server itself stamps it: median and 99th percentile of
the 99, quiet and flooded in turns in the same run, and the flooded as a ratio to the quiet before and after it.
"""

import argparse
import signal
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psycopg
from tools.bench.flood import KINDS
from tools.bench.measuring import SEED, eventually, guestd, keep, metric, own_store

from guestd.simulator import machine_ids

LATENCIES = """
SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin) - "timestamp")
FROM "SystemMetrics"
WHERE "machineId" <> %s AND "timestamp" BETWEEN %s AND %s
"""
BUCKETS_FILL_SECONDS = 10.0


@dataclass(frozen=True)
class Phase:
    """What the 99 saw while the hundredth did this."""

    kind: str
    samples: int
    p50_seconds: float
    p99_seconds: float
    flooder_frames_per_second: float


def main() -> None:
    """Run the phases, print the table, write the JSON."""
    arguments = _arguments()
    guests = arguments.guests
    with own_store(guests, track_commit_timestamp="on") as (dsn, directory), ExitStack() as open_:
        channels = directory / "c"
        channels.mkdir()
        fleet = [sys.executable, "-m", "guestd", "simulate", "--directory", str(channels), "--seed", str(SEED)]
        fleet += ["--guests", str(guests - 1), "--interval", str(arguments.interval)]
        simulated = open_.enter_context(subprocess.Popen(fleet, stderr=subprocess.DEVNULL))
        open_.callback(simulated.terminate)
        _, url = open_.enter_context(guestd(dsn, channels))
        eventually(lambda: metric(url, "guestd_channels_connected") == guests - 1, "all channels connected", 120)
        flooder = machine_ids(guests, SEED)[-1]
        print(f"{'the hundredth guest':>24} {'samples':>8} {'p50 s':>8} {'p99 s':>8} {'its frames/s':>13}")
        phases = [_phase(dsn, url, flooder, channels, kind, arguments.seconds) for kind in _turns()]
    _report(phases, arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./dev bench fairness", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--guests", type=int, default=100, help="with the hostile one (default: 100)")
    parser.add_argument("--interval", type=float, default=2, help="seconds between two messages of a guest")
    parser.add_argument("--seconds", type=float, default=20, help="of each phase")
    parser.add_argument("--json", type=Path, default=Path("bench-fairness.json"), help="where the figures go")
    return parser.parse_args()


def _turns() -> list[str]:
    return ["quiet", *(turn for kind in KINDS for turn in (kind, "quiet"))]


def _phase(dsn: str, url: str, flooder: object, channels: Path, kind: str, seconds: float) -> Phase:
    # A flooder begins with all that it may use at once.
    _pass(BUCKETS_FILL_SECONDS)
    frames = metric(url, "guestd_frames_accepted_total")
    began = datetime.now(UTC)
    if kind == "quiet":
        _pass(seconds)
    else:
        path = channels / f"{flooder}.socket"
        with subprocess.Popen([sys.executable, "-m", "tools.bench.flood", str(path), kind]) as flood:
            _pass(seconds)
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


def _pass(seconds: float) -> None:
    deadline = time.monotonic() + seconds
    eventually(lambda: time.monotonic() >= deadline, "the end of the phase", seconds + 10)


def _report(phases: list[Phase], arguments: argparse.Namespace) -> None:
    ratios = {}
    for place in range(1, len(phases), 2):
        before, flooded, after = phases[place - 1 : place + 2]
        ratios[flooded.kind] = {
            "p50": flooded.p50_seconds / statistics.mean((before.p50_seconds, after.p50_seconds)),
            "p99": flooded.p99_seconds / statistics.mean((before.p99_seconds, after.p99_seconds)),
        }
    for kind, ratio in ratios.items():
        print(f"{kind:>24}: p50 {ratio['p50']:.2f} times, p99 {ratio['p99']:.2f} times the quiet")
    figures = {"guests": arguments.guests, "interval_seconds": arguments.interval, "seconds": arguments.seconds}
    keep(arguments.json, "fairness", figures | {"ratios": ratios, "phases": [asdict(phase) for phase in phases]})


if __name__ == "__main__":
    main()
