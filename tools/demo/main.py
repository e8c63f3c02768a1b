"""`./dev demo`: all of guestd on this machine for a minute, and then what the database holds.

    agent of this machine ─┐
    simulated guests ──────┴─ unix sockets ─ guestd ─ a TimescaleDB database of the demo's own

It never touches the store of `./dev up`; on a server that GUESTD_DATABASE_DSN names it makes a database of its own and
drops it. At its end nothing of it is left but its cluster in the cache, stopped.
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
from tools.demo.parts import DemoError, Parts, begin, end, end_of_store_log, only_one
from tools.demo.report import (
    Connection,
    Look,
    Progress,
    Watched,
    books,
    complain,
    is_settled,
    look,
    note,
    report,
    report_machine,
)
from tools.harness.cluster import ClusterError

from guestd.simulator import machine_ids
from gueststore.errors import StoreError
from gueststore.migrations import migrate

SEED = 1
INTERVAL_SECONDS = 2
# What a part gets that takes a fraction of it on an idle machine.
PATIENCE_SECONDS = 30.0
LOOK_SECONDS = 1.0


def main() -> int:
    """Run the demo, or end one that was kept; returns the exit status."""
    arguments = _arguments()
    cache = Path(os.environ["GUESTD_CACHE"])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        with only_one(cache):
            if arguments.stop:
                note("stopped, and nothing of it is left" if end(cache) else "there is nothing to stop")
                return 0
            return _demo(arguments, cache)
    except (ClusterError, DemoError, StoreError) as exc:
        complain(str(exc))
        return 1
    except psycopg.Error as exc:
        complain(f"the store has failed: {str(exc).strip()}; {end_of_store_log(cache)}")
        return 1
    except KeyboardInterrupt:
        complain("interrupted; everything is stopped")
        return 130


def _demo(arguments: argparse.Namespace, cache: Path) -> int:
    if end(cache):
        note("stopped what an earlier demo had left running")
    parts = begin(cache, os.environ.get("GUESTD_DATABASE_DSN"))
    kept = False
    try:
        _run(parts, arguments)
        kept = arguments.keep
    finally:
        if not kept:
            # A second Ctrl-C would leave behind what the first one was meant to end.
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            end(cache)
    if not kept:
        note("everything is stopped; nothing of it is left but what is in the cache")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev demo", description="All of guestd on this machine, for a minute.")
    add = parser.add_argument
    add("--seconds", type=float, default=60.0, metavar="N", help="how long, from the first rows on (default: 60)")
    add("--guests", type=int, default=50, metavar="N", help="simulated guests, at least 1 (default: 50)")
    add("--keep", action="store_true", help="leave everything running and say how to look at it")
    add("--stop", action="store_true", help="end a demo that was kept")
    arguments = parser.parse_args()
    if arguments.guests < 1 or arguments.seconds <= 0:
        parser.error("--guests must be 1 or more, --seconds more than 0")
    return arguments


def _run(parts: Parts, arguments: argparse.Namespace) -> None:
    own_id, guests = uuid4(), machine_ids(arguments.guests, SEED)
    _start_guests(parts, own_id, arguments.guests)
    note("starting TimescaleDB and migrating a new database")
    dsn = parts.start_store()
    migrate(dsn)
    with psycopg.connect(dsn, autocommit=True) as connection:
        own = (own_id, platform.node(), "this-machine", "running", platform.system().lower())
        simulated = [(guest, f"guest {n}", f"demo-{n:04}", "running", "simulated") for n, guest in enumerate(guests)]
        register(connection, [own, *simulated])
        channels = {"virtio": {"directory": str(parts.directory / "channels")}}
        watched = Watched(connection, start_guestd(parts, dsn, channels))
        note(f"guestd reads this machine's agent and {len(guests)} simulated guests; metrics: {watched.metrics_url}")
        _wait_for_own_rows(parts, connection, own_id)
        first = look(watched)
        # ./dev execs us: this process is as old as the command that was typed.
        note(f"the first rows were there {time.time() - psutil.Process().create_time():.1f} s after the command\n")
        last = _watch(parts, watched, first.moment_seconds + arguments.seconds)
        report(first, last)
        report_machine(connection, own_id, "This machine")
        if arguments.keep:
            _say_how_to_look(parts, dsn, watched.metrics_url)
        else:
            _close_the_books(parts, watched)


def _start_guests(parts: Parts, own_id: UUID, guests: int) -> None:
    channels, interval = parts.directory / "channels", f"--interval={INTERVAL_SECONDS}"
    parts.start("agent", "agent", "--listen", channels / f"{own_id}.socket", interval)
    parts.start("fleet", "simulate", "--directory", channels, f"--guests={guests}", f"--seed={SEED}", interval)


def register(connection: Connection, machines: Iterable[tuple[UUID, str, str, str, str]]) -> None:
    """Make the Machine rows (id, name, internal name, status, os); guestd reads nobody whom the store does not know."""
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
    """Start the daemon with these settings and wait until it is up; returns the address of its metrics."""
    file = parts.directory / "guestd.toml"
    tables: dict[str, Mapping[str, object]] = {"spool": {"directory": str(parts.directory / "spool")}, **config}
    tables["telemetry"] = {"listen_port": 0}
    # strings and numbers of JSON are TOML's
    lines = [f"{table}.{key} = {json.dumps(value)}" for table in tables for key, value in tables[table].items()]
    file.write_text("\n".join(lines))
    parts.start("guestd", "run", "--config", file, environment={"GUESTD_DATABASE_DSN": dsn})

    def metrics_url() -> str | None:
        lines = parts.log("guestd").read_text().splitlines()
        return next((str(json.loads(line)["metrics"]) for line in lines if '"guestd started"' in line), None)

    return parts.wait(metrics_url, "guestd started", PATIENCE_SECONDS)


def _wait_for_own_rows(parts: Parts, connection: Connection, own_id: UUID) -> None:
    sample = 'SELECT 1 FROM "SystemMetrics" WHERE "machineId" = %s LIMIT 1'
    parts.wait(
        lambda: connection.execute(sample, [own_id]).fetchone(),
        "this machine's first sample is in the database",
        PATIENCE_SECONDS,
    )


def _watch(parts: Parts, watched: Watched, until_seconds: float) -> Look:
    """Show how things stand until a moment of the monotonic clock; returns the last look."""
    progress = Progress(sys.stdout)
    due_seconds = time.monotonic()

    def look_when_due() -> Look | None:
        return look(watched) if time.monotonic() >= due_seconds else None

    while True:
        now = parts.wait(look_when_due, "the next look", PATIENCE_SECONDS)
        progress.show(now)
        if now.moment_seconds >= until_seconds:
            return now
        due_seconds = min(due_seconds + LOOK_SECONDS, until_seconds)


def _close_the_books(parts: Parts, watched: Watched) -> None:
    """Stop the guests, let guestd finish, and compare what it took with what is stored."""
    parts.stop("agent", "fleet")
    parts.wait(lambda: is_settled(watched), "guestd has stored what it took", PATIENCE_SECONDS)
    found = books(watched)
    parts.stop("guestd")
    print()
    note(f"{found.accepted:,} frames were accepted, {found.stored:,} are stored and {found.quarantined} quarantined")
    if found.accepted != found.stored + found.quarantined:
        raise DemoError("that does not add up: frames are lost or stored twice, which is a bug of guestd")


def _say_how_to_look(parts: Parts, dsn: str, metrics_url: str) -> None:
    print()
    note(
        "everything stays up. Look with\n"
        f"    {parts.psql(dsn)}\n    curl {metrics_url}\n    tail -f {parts.log('guestd')}\n"
        "and end it with\n    ./dev demo --stop"
    )


if __name__ == "__main__":
    sys.exit(main())
