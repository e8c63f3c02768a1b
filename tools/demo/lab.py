"""`./dev lab demo`: real guests on a real libvirtd, their samples in the hypertables, their states in their rows.

    guests (QEMU) ── virtio-serial ── guestd ── a TimescaleDB database of the demo's own
       libvirtd ── domains, events ──┘

Everything is started for the demo and ended with it.
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
from tools.demo.parts import DemoError, Parts, begin, end, end_of_store_log, only_one
from tools.demo.report import Connection, Watched, complain, look, note, report, report_machine
from tools.harness.cluster import ClusterError
from tools.harness.lab import Lab, LabError
from tools.harness.packages import PackagesError

from gueststore.errors import StoreError
from gueststore.migrations import migrate

# Emulated guests on a machine that has other things to do, too.
BOOT_SECONDS = 180.0
SAMPLES = 5
OVERVIEW = """\
SELECT m."name", m."status", count(s."timestamp"), max(s."uptime"), max(s."usedMemoryKB") / 1024
FROM "Machine" AS m LEFT JOIN "SystemMetrics" AS s ON s."machineId" = m."id"
GROUP BY m."id" ORDER BY m."name"
"""


def main() -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(prog="./dev lab demo", description="Real guests in the tables.")
    parser.add_argument("--guests", type=int, default=3, metavar="N", help="how many (default: 3)")
    arguments = parser.parse_args()
    cache = Path(os.environ["GUESTD_CACHE"])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        with only_one(cache), ExitStack() as ending:
            end(cache)
            _run(begin(cache, os.environ.get("GUESTD_DATABASE_DSN")), arguments.guests, ending, cache)
    except (ClusterError, DemoError, LabError, PackagesError, StoreError) as exc:
        complain(str(exc))
        return 1
    except psycopg.Error as exc:
        complain(f"the store has failed: {str(exc).strip()}; {end_of_store_log(cache)}")
        return 1
    except KeyboardInterrupt:
        complain("interrupted; everything is stopped")
        return 130
    note("everything is stopped; nothing of it is left but what is in the cache")
    return 0


def _run(parts: Parts, guests: int, ending: ExitStack, cache: Path) -> None:
    ending.callback(end, cache)
    lab = Lab(parts.directory / "lab")
    ending.callback(lab.down)
    note("starting a private libvirtd")
    lab.up("setpriv", "--pdeathsig", "KILL")
    ids = {f"guest{number}": uuid4() for number in range(1, guests + 1)}
    for name, uuid in ids.items():
        lab.add_guest(name, uuid)
    note(f"{guests} guests are booting, without KVM; starting TimescaleDB and migrating a new database")
    dsn = parts.start_store()
    migrate(dsn)
    with psycopg.connect(dsn, autocommit=True) as connection:
        register(connection, [(uuid, name, name, "off", "linux") for name, uuid in ids.items()])
        found_through = {"virtio": {"discovery": "libvirt"}, "libvirt": {"uri": lab.uri}}
        watched = Watched(connection, start_guestd(parts, dsn, found_through))
        first = look(watched)
        parts.wait(lambda: _all_have(connection, SAMPLES), f"{SAMPLES} samples of every guest", BOOT_SECONDS)
        report(first, look(watched))
        report_machine(connection, ids["guest1"], "guest1")
        _show_states(lab, parts, connection, ids)


def _all_have(connection: Connection, samples: int) -> bool:
    return all(count >= samples for _, _, count, _, _ in connection.execute(OVERVIEW).fetchall())


def _show_states(lab: Lab, parts: Parts, connection: Connection, ids: Mapping[str, UUID]) -> None:
    """Suspend one guest and switch another off; their rows say so."""
    wanted = dict.fromkeys(ids, "running")
    _wait_for(connection, parts, wanted)
    print()
    note("every guest is running; guest1 is suspended now, and guest2 loses its power")
    for name, command, status in (("guest1", "suspend", "suspended"), ("guest2", "destroy", "off")):
        if name in ids:
            lab.run("virsh", "-q", command, name)
            wanted[name] = status
    _wait_for(connection, parts, wanted)
    print(f"\n  {'machine':<10}{'status':<12}{'samples':>8}{'uptime s':>10}{'used MiB':>10}")
    for name, status, samples, uptime_seconds, used_mib in connection.execute(OVERVIEW):
        print(f"  {name:<10}{status:<12}{samples:>8}{uptime_seconds:>10}{used_mib:>10}")
    print()


def _wait_for(connection: Connection, parts: Parts, wanted: Mapping[str, str]) -> None:
    def are_there() -> bool:
        return {name: status for name, status, *_ in connection.execute(OVERVIEW)} == wanted

    parts.wait(are_there, f"the rows say {wanted}", BOOT_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
