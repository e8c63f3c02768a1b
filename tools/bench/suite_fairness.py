"""./dev bench fairness: what hostile guests cost the others, over channels and over a broker, kind by kind.

Simulated guests report at an interval while some guests flood (tools/bench/flood.py), in one way after the other. From
the moment at which guestd received a sample to the commit of its row, as the server stamps it: median and 99th
percentile of the others, the median also as a ratio to the quiet phases of the same run and source. At the end, the
rows of docs/benchmarks.md.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
from tools.bench.daemon import guestd, metric, resident_megabytes, samples
from tools.bench.fleet import fleet
from tools.bench.flood import KINDS
from tools.bench.server import SEED, own_store
from tools.bench.suite import measured, quantile, run
from tools.harness import broker
from tools.harness.waiting import eventually, wait_seconds

from guestd.simulator import machine_ids
from guestd.spool import file

LATENCIES = """
SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin) - "receivedAt")
FROM "SystemMetrics"
WHERE "machineId" = ANY (%s) AND "receivedAt" BETWEEN %s AND %s
"""
NEWEST = """
SELECT min("newest")
FROM (
    SELECT max("receivedAt") AS "newest" FROM "SystemMetrics"
    WHERE "machineId" = ANY (%s) AND "receivedAt" > %s GROUP BY "machineId"
) AS "newest"
"""
PROCESSES = 100
QUIET = "quiet"
# A line without an end is no message of a broker.
CHANNEL_ONLY = {"never-a-newline"}


@dataclass(frozen=True)
class Phase:
    """What the others saw in this time."""

    kind: str
    samples: int
    p50_seconds: float
    p99_seconds: float
    slowest_seconds: float
    hostile_frames_per_second: float
    refused_per_second: float
    resident_megabytes: float


@dataclass(frozen=True)
class Source:
    """One way to guestd: how its hostile guests are started."""

    dsn: str
    url: str
    pid: int
    channels: Path
    port: int
    others: Sequence[UUID]


def main() -> None:
    """Measure every kind over both sources."""
    run(__doc__, _add_options, _measure)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--guests", type=int, default=100, help="simulated guests, with the hostile ones")
    parser.add_argument("--hostile", type=int, default=1, help="how many of them are hostile")
    parser.add_argument("--interval", type=float, default=2, help="seconds between two messages of a guest")
    parser.add_argument("--seconds", type=float, default=20, help="how long each phase lasts")
    parser.add_argument("--silent", action="store_true", help="guestd knows nothing of the hostile ones before")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="what the hostile ones do")
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=list(SOURCES), help="how all guests report")


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    figures, rows = {}, list[str]()
    for name in arguments.sources:
        machines = _count_machines(arguments)
        with (
            own_store(machines, track_commit_timestamp="on") as (dsn, directory),
            SOURCES[name](dsn, directory, arguments) as source,
        ):
            kinds = [kind for kind in arguments.kinds if name == "virtio" or kind not in CHANNEL_ONLY]
            # Others for each kind, for what a machine owes outlasts a phase.
            fresh = iter(machine_ids(machines, SEED)[arguments.guests - arguments.hostile :])
            print(f"{name:>24} {'samples':>8} {'p50 s':>8} {'p99 s':>8} {'max s':>8}", end="")
            print(f" {'hostile/s':>10} {'refused/s':>10} {'MB':>6}")
            # The first phase also fills caches, and is not counted.
            _phase(source, QUIET, 5, ())
            phases = [
                _phase(source, kind, arguments.seconds, [] if kind == QUIET else list(islice(fresh, arguments.hostile)))
                for kind in (QUIET, *kinds, QUIET)
            ]
        figures[name] = {"ratios": _ratios(phases), "phases": [asdict(phase) for phase in phases]}
        rows += _document(name, arguments, phases)
    print("\n".join(rows))
    return figures


def _count_machines(arguments: argparse.Namespace) -> int:
    return int(arguments.guests + arguments.hostile * len(arguments.kinds))


@contextmanager
def _virtio(dsn: str, directory: Path, arguments: argparse.Namespace) -> Iterator[Source]:
    channels = directory / "c"
    channels.mkdir()
    others = machine_ids(arguments.guests - arguments.hostile, SEED)
    with (
        fleet(channels, len(others), interval_seconds=arguments.interval, processes=PROCESSES),
        guestd(dsn, channels) as (pid, url),
    ):
        eventually(lambda: metric(url, "guestd_channels_connected") == len(others), "all channels are connected", 300)
        yield Source(dsn, url, pid, channels, 0, others)


@contextmanager
def _mqtt(dsn: str, directory: Path, arguments: argparse.Namespace) -> Iterator[Source]:
    own_broker = broker.Broker(directory / "broker", prefix=broker.prefix())
    machines = machine_ids(_count_machines(arguments), SEED)
    others = machines[: arguments.guests - arguments.hostile]
    for user in (*broker.USERS, *map(str, machines[len(others) :])):
        own_broker.add_user(user, user)
    own_broker.start()
    channels = directory / "c"
    channels.mkdir()
    reporting = len(others if arguments.silent else machines)
    if not arguments.silent:
        _make_known(channels.with_suffix(".spool"), machines)
    table = {"host": "127.0.0.1", "port": own_broker.port, "username": "guestd"}
    table["password_file"] = str(own_broker.directory / "guestd.password")
    lines = "[mqtt]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
    publisher = ["--mqtt", f"127.0.0.1:{own_broker.port}", "--mqtt-user", "simulator"]
    publisher += ["--mqtt-password-file", str(own_broker.directory / "simulator.password")]
    try:
        with (
            guestd(dsn, channels, lines) as (pid, url),
            fleet(publisher, reporting, interval_seconds=arguments.interval, processes=PROCESSES),
        ):
            eventually(lambda: metric(url, "guestd_frames_accepted_total") > reporting, "all guests publish", 60)
            yield Source(dsn, url, pid, channels, own_broker.port, others)
    finally:
        own_broker.stop()


SOURCES = {"virtio": _virtio, "mqtt": _mqtt}


def _make_known(spool: Path, machines: Sequence[UUID]) -> None:
    """Give guestd a spool as if these machines had just reported: nothing of them waits at the broker."""
    spool.mkdir()
    connection = file.open_or_create(spool)
    with connection:
        connection.execute("BEGIN")
        now_ms = int(time.time() * 1000)
        file.replace_senders(connection, {each: file.SenderState(now_ms, None, None) for each in machines})
    connection.close()


def _phase(source: Source, kind: str, seconds: float, hostile: Sequence[UUID]) -> Phase:
    before, began = samples(source.url), datetime.now(UTC)
    if kind == QUIET:
        wait_seconds(seconds)
    else:
        sockets = [source.channels / f"{each}.socket" for each in hostile]
        targets = ["--broker", str(source.port), *map(str, hostile)] if source.port else list(map(str, sockets))
        with subprocess.Popen([sys.executable, "-m", "tools.bench.flood", kind, *targets]) as flood:
            wait_seconds(seconds)
            flood.kill()
        for path in sockets:
            path.unlink(missing_ok=True)
    after, ended = samples(source.url), datetime.now(UTC)
    with psycopg.connect(source.dsn, autocommit=True) as connection:

        def all_stored() -> bool:
            row = connection.execute(NEWEST, (list(source.others), began)).fetchone()
            return row is not None and row[0] is not None and row[0] > ended

        eventually(all_stored, "what was accepted is stored", 600, every_seconds=0.5)
        eventually(partial(_is_quiet, source.url), "nothing of the flood comes any more", 600)
        stored = connection.execute(LATENCIES, (list(source.others), began, ended)).fetchall()
        hostile_frames = len(connection.execute(LATENCIES, (list(hostile), began, ended)).fetchall())
    latencies = [float(each) for (each,) in stored]
    refused = sum(after[name] - before.get(name, 0) for name in after if name.startswith("guestd_frames_refused_total"))
    phase = Phase(
        kind,
        len(latencies),
        statistics.median(latencies),
        quantile(latencies, 0.99),
        max(latencies),
        hostile_frames / seconds,
        refused / seconds,
        resident_megabytes(source.pid),
    )
    _, *values = asdict(phase).values()
    print(
        f"{kind:>24} {{:8}} {{:8.3f}} {{:8.3f}} {{:8.3f}} {{:10.1f}} {{:10.1f}} {{:6.0f}}".format(*values), flush=True
    )
    return phase


def _is_quiet(url: str) -> bool:
    """Whether no flood waits in a buffer between a hostile guest and the store."""
    before = samples(url)
    wait_seconds(1)
    after = samples(url)
    refused = sum(after[name] - before.get(name, 0) for name in after if name.startswith("guestd_frames_refused_total"))
    return not refused and after["guestd_spool_frames"] < 100


def _ratios(phases: list[Phase]) -> dict[str, float]:
    """The median of each flooded phase to that of the quiet ones."""
    quiet = statistics.mean(phase.p50_seconds for phase in phases if phase.kind == QUIET)
    return {phase.kind: phase.p50_seconds / quiet for phase in phases if phase.kind != QUIET}


def _document(source: str, arguments: argparse.Namespace, phases: list[Phase]) -> list[str]:
    """The rows of docs/benchmarks.md, with the kinds that miss a target."""
    ratios, quiet = _ratios(phases), [phase for phase in phases if phase.kind == QUIET]
    p99 = {phase.kind: phase.p99_seconds for phase in phases if phase.kind != QUIET}
    silent = ", silent before" if arguments.silent else ""
    who = f"{source}, {arguments.hostile} hostile of {arguments.guests}{silent}"
    quiet_p50, quiet_p99 = (
        _range([getattr(phase, name) for phase in quiet]) for name in ("p50_seconds", "p99_seconds")
    )
    measured_on = measured()
    rows = {
        f"{who}: median of the others, {len(p99)} kinds (quiet {quiet_p50} s) | under 2 times": (
            f"{_range(ratios.values())} times{_beyond(ratios, 2)}"
        ),
        f"{who}: 99th percentile (quiet {quiet_p99} s) | under 1 s": f"{_range(p99.values())} s{_beyond(p99, 1)}",
    }
    return [f"| {key} | {value} | {measured_on['date']}, {measured_on['commit']} |" for key, value in rows.items()]


def _range(values: Iterable[float]) -> str:
    ranked = sorted(values)
    return f"{ranked[0]:.2f} to {ranked[-1]:.2f}"


def _beyond(figures: dict[str, float], target: float) -> str:
    missed = [f"{kind.replace('-', ' ')} {value:.2f}" for kind, value in figures.items() if value >= target]
    return f"; missed: {', '.join(missed)}" if missed else ""


if __name__ == "__main__":
    main()
