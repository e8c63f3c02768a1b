"""`./dev lab demo`: real guests on a real libvirtd, with their samples and states in the database.

    guests (QEMU) ── virtio-serial ── guestd ── a TimescaleDB database of the demo's own
       libvirtd ── domains, events ──┘

Everything is started for the demo and stopped at its end.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
from tools.demo.main import register, start_guestd
from tools.demo.parts import DemoError, Parts, begin, end, hold_lock, read_store_log_tail
from tools.demo.report import INDENT, print_error, print_note, report, report_machine
from tools.demo.snapshot import Connection, Target, take_snapshot
from tools.harness.cluster import ClusterError
from tools.harness.lab import Lab, LabError
from tools.harness.packages import PackagesError

from guestd.cli.arguments import whole_number
from guestd.cli.terminal import make_console, make_table, print_table
from gueststore.database import connect
from gueststore.errors import StoreError
from gueststore.migrations import migrate

# For emulated guests on a busy machine.
BOOT_SECONDS = 180.0
SAMPLES = 5
OVERVIEW = """\
SELECT m."name", m."status", count(s."timestamp"), max(s."uptime"), max(s."usedMemoryKB") / 1024
FROM "Machine" AS m LEFT JOIN "SystemMetrics" AS s ON s."machineId" = m."id"
GROUP BY m."id" ORDER BY m."name"
"""


def main() -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="./dev lab demo", description="Run guestd on real guests, and print what it stored."
    )
    parser.add_argument(
        "--guests", type=whole_number(1, 20), default=3, metavar="N", help="number of guests (default: 3)"
    )
    arguments = parser.parse_args()
    cache = Path(os.environ["GUESTD_CACHE"])
    for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signal_number, signal.default_int_handler)
    try:
        with hold_lock(cache), ExitStack() as ending:
            end(cache)
            _run(begin(cache, os.environ.get("GUESTD_DATABASE_DSN")), arguments.guests, ending, cache)
    except (ClusterError, DemoError, LabError, PackagesError, StoreError) as exc:
        print_error(str(exc))
        return 1
    except psycopg.Error as exc:
        print_error(f"the database failed: {str(exc).strip()}; {read_store_log_tail(cache)}")
        return 1
    except KeyboardInterrupt:
        print_error("interrupted; everything is stopped")
        return 130
    print_note("everything is stopped; only the cache is left")
    return 0


def _run(parts: Parts, guests: int, ending: ExitStack, cache: Path) -> None:
    ending.callback(end, cache)
    lab = Lab(parts.directory / "lab")
    ending.callback(lab.down)
    print_note("starting a private libvirtd")
    lab.up("setpriv", "--pdeathsig", "KILL")
    ids = {f"guest{number}": uuid4() for number in range(1, guests + 1)}
    for name, uuid in ids.items():
        lab.add_guest(name, uuid)
    print_note(f"{guests} guests are booting, without KVM; starting TimescaleDB and migrating a new database")
    dsn = parts.start_store()
    migrate(dsn)
    with connect(dsn) as connection:
        register(connection, [(uuid, name, name, "off", "linux") for name, uuid in ids.items()])
        found_through = {"virtio": {"discovery": "libvirt"}, "libvirt": {"uri": lab.uri}}
        target = Target(connection, start_guestd(parts, dsn, found_through))
        first = take_snapshot(target)
        parts.wait(lambda: _all_have(connection, SAMPLES), f"{SAMPLES} samples of every guest", BOOT_SECONDS)
        report(first, take_snapshot(target))
        report_machine(connection, ids["guest1"], "guest1")
        _show_states(lab, parts, connection, ids)


def _all_have(connection: Connection, samples: int) -> bool:
    return all(count >= samples for _, _, count, _, _ in connection.execute(OVERVIEW).fetchall())


def _show_states(lab: Lab, parts: Parts, connection: Connection, ids: Mapping[str, UUID]) -> None:
    """Suspend one guest and power another off; their rows follow."""
    expected = dict.fromkeys(ids, "running")
    _wait_for(connection, parts, expected)
    print()
    print_note("every guest is running; now guest1 is suspended and guest2 is powered off")
    for name, command, status in (("guest1", "suspend", "suspended"), ("guest2", "destroy", "off")):
        if name in ids:
            lab.run("virsh", "-q", command, name)
            expected[name] = status
    _wait_for(connection, parts, expected)
    heads = ("machine", "status", "samples", "uptime s", "used MiB")
    table = make_table(*heads, numbers=heads[2:])
    for row in connection.execute(OVERVIEW):
        table.add_row(*map(str, row))
    print()
    print_table(make_console(), table, indent=INDENT)
    print()


def _wait_for(connection: Connection, parts: Parts, expected: Mapping[str, str]) -> None:
    def is_reached() -> bool:
        return {name: status for name, status, *_ in connection.execute(OVERVIEW)} == expected

    parts.wait(is_reached, f"the status of the rows is {expected}", BOOT_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
