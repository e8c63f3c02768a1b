"""`./dev demo`: runs all of guestd on this machine for a minute, then prints what the database holds.

    agent of this machine ─┐
    simulated guests ──────┴─ unix sockets ─ guestd ─ a TimescaleDB database of the demo's own

It never touches the store of `./dev up`; on a server that GUESTD_DATABASE_DSN names it creates a database of its own
and drops it at the end. What stays is its own PostgreSQL cluster in the cache, stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from uuid import UUID, uuid4

import psutil
import psycopg
from tools.demo.parts import DemoError, Parts, begin, end, hold_lock, read_store_log_tail
from tools.demo.report import print_error, print_note, report, report_machine, show_progress
from tools.demo.snapshot import Connection, Snapshot, Target, count_frames, is_drained, take_snapshot
from tools.harness.cluster import ClusterError

from guestd.cli.arguments import DAY_SECONDS, number, whole_number
from guestd.simulator import machine_ids
from gueststore.database import connect
from gueststore.errors import StoreError
from gueststore.migrations import migrate

SEED = 1
INTERVAL_SECONDS = 2
# The time limit of steps that take a fraction of it on an idle machine.
WAIT_SECONDS = 30.0
REFRESH_SECONDS = 1.0


def main() -> int:
    """Run the demo, or stop one that was kept; returns the exit status."""
    arguments = _arguments()
    cache = Path(os.environ["GUESTD_CACHE"])
    for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signal_number, signal.default_int_handler)
    try:
        with hold_lock(cache):
            if arguments.stop:
                print_note("stopped and deleted" if end(cache) else "no demo is running: nothing to stop")
                return 0
            return _demo(arguments, cache)
    except (ClusterError, DemoError, StoreError) as exc:
        print_error(str(exc))
        return 1
    except psycopg.Error as exc:
        print_error(f"the database failed: {str(exc).strip()}; {read_store_log_tail(cache)}")
        return 1
    except KeyboardInterrupt:
        print_error("interrupted; everything is stopped")
        return 130


def _demo(arguments: argparse.Namespace, cache: Path) -> int:
    if end(cache):
        print_note("stopped an earlier demo that was still running")
    parts = begin(cache, os.environ.get("GUESTD_DATABASE_DSN"))
    kept = False
    try:
        _run(parts, arguments)
        kept = arguments.keep
    finally:
        if not kept:
            # A second Ctrl-C would interrupt the clean-up of the first.
            for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(signal_number, signal.SIG_IGN)
            end(cache)
    if not kept:
        print_note("everything is stopped; only the cache is left")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./dev demo", description="Run all of guestd on this machine for a minute, and print what it stored."
    )
    add = parser.add_argument
    add(
        "--seconds",
        type=number(0.1, DAY_SECONDS),
        default=60.0,
        metavar="N",
        help="run this long after the first rows (default: 60)",
    )
    add(
        "--guests", type=whole_number(1, 1000), default=50, metavar="N", help="number of simulated guests (default: 50)"
    )
    add("--keep", action="store_true", help="leave everything running, and print how to inspect it")
    add("--stop", action="store_true", help="stop a demo that was kept")
    return parser.parse_args()


def _run(parts: Parts, arguments: argparse.Namespace) -> None:
    own_id, guests = uuid4(), machine_ids(arguments.guests, SEED)
    _start_guests(parts, own_id, arguments.guests)
    print_note("starting TimescaleDB and migrating a new database")
    dsn = parts.start_store()
    migrate(dsn)
    with connect(dsn) as connection:
        own = (own_id, platform.node(), "this-machine", "running", platform.system().lower())
        simulated = [(guest, f"guest {n}", f"demo-{n:04}", "running", "simulated") for n, guest in enumerate(guests)]
        register(connection, [own, *simulated])
        channels = {"virtio": {"directory": str(parts.directory / "channels")}}
        target = Target(connection, start_guestd(parts, dsn, channels))
        print_note(f"guestd collects from this machine's agent and {len(guests)} simulated guests")
        print_note(f"its metrics are at {target.metrics_url}")
        _wait_for_first_sample(parts, connection, own_id)
        first = take_snapshot(target)
        # ./dev execs this process: it is as old as the command that was typed.
        print_note(f"first rows stored {time.time() - psutil.Process().create_time():.1f} s after the command")
        print()
        last = _run_for(parts, target, first, arguments.seconds)
        report(first, last)
        report_machine(connection, own_id, "This machine")
        if arguments.keep:
            _print_how_to_inspect(parts, dsn, target.metrics_url)
        else:
            _compare_frames(parts, target)


def _start_guests(parts: Parts, own_id: UUID, guests: int) -> None:
    channels, interval = parts.directory / "channels", f"--interval={INTERVAL_SECONDS}"
    parts.start("agent", "agent", "--listen", channels / f"{own_id}.socket", interval)
    parts.start("fleet", "simulate", "--directory", channels, f"--guests={guests}", f"--seed={SEED}", interval)


def register(connection: Connection, machines: Iterable[tuple[UUID, str, str, str, str]]) -> None:
    """Insert the Machine rows (id, name, internal name, status, os): guestd collects only machines of the store."""
    template = 'INSERT INTO "MachineTemplate" ("name", "cores", "ram", "storage") VALUES (%s, 2, 4, 40) RETURNING "id"'
    row = connection.execute(template, ["demo"]).fetchone()
    assert row is not None, "RETURNING gives one row"
    machine = (
        'INSERT INTO "Machine" ("id", "name", "internalName", "status", "os", "templateId") '
        "VALUES (%s, %s, %s, %s, %s, %s)"
    )
    with connection.cursor() as cursor:
        cursor.executemany(machine, [(*fields, row[0]) for fields in machines])


def start_guestd(parts: Parts, dsn: str, config: dict[str, dict[str, str]]) -> str:
    """Start the daemon with these settings and wait until it is ready; returns the address of its metrics."""
    file = parts.directory / "guestd.toml"
    tables: dict[str, Mapping[str, object]] = {"spool": {"directory": str(parts.directory / "spool")}, **config}
    tables["telemetry"] = {"listen_port": 0}
    # JSON's strings and numbers are valid TOML
    lines = [f"{table}.{key} = {json.dumps(value)}" for table in tables for key, value in tables[table].items()]
    file.write_text("\n".join(lines))
    parts.start("guestd", "run", "--config", file, environment={"GUESTD_DATABASE_DSN": dsn})

    def metrics_url() -> str | None:
        lines = parts.log("guestd").read_text().splitlines()
        return next((str(json.loads(line)["metrics"]) for line in lines if '"guestd started"' in line), None)

    return parts.wait(metrics_url, "guestd started", WAIT_SECONDS)


def _wait_for_first_sample(parts: Parts, connection: Connection, own_id: UUID) -> None:
    sample = 'SELECT 1 FROM "SystemMetrics" WHERE "machineId" = %s LIMIT 1'
    parts.wait(
        lambda: connection.execute(sample, [own_id]).fetchone(),
        "this machine's first sample is in the database",
        WAIT_SECONDS,
    )


def _run_for(parts: Parts, target: Target, first: Snapshot, seconds: float) -> Snapshot:
    """Show progress for this long; returns the last snapshot."""
    until_seconds = first.moment_seconds + seconds
    due_seconds = time.monotonic()

    def poll() -> Snapshot | None:
        return take_snapshot(target) if time.monotonic() >= due_seconds else None

    with show_progress(first, seconds) as show:
        while True:
            now = parts.wait(poll, "the next snapshot", WAIT_SECONDS)
            show(now)
            if now.moment_seconds >= until_seconds:
                return now
            due_seconds = min(due_seconds + REFRESH_SECONDS, until_seconds)


def _compare_frames(parts: Parts, target: Target) -> None:
    """Stop the guests, let guestd drain, and compare what it accepted with what is stored."""
    parts.stop("agent", "fleet")
    parts.wait(lambda: is_drained(target), "guestd has stored all it accepted", WAIT_SECONDS)
    found = count_frames(target)
    parts.stop("guestd")
    print()
    print_note(f"{found.accepted:,} frames accepted, {found.stored:,} stored, {found.quarantined} quarantined")
    if found.accepted != found.stored + found.quarantined:
        raise DemoError(
            "frames were lost or stored twice: this is a bug in guestd, please report it with the lines above"
        )


def _print_how_to_inspect(parts: Parts, dsn: str, metrics_url: str) -> None:
    print()
    print_note(
        "everything is running. Inspect it with\n"
        f"    {parts.psql(dsn)}\n    curl {metrics_url}\n    tail -f {parts.log('guestd')}\n"
        "and stop it with\n    ./dev demo --stop"
    )


if __name__ == "__main__":
    sys.exit(main())
