"""`guestd vms release` on a real store, with the daemon's rights."""

import json
import subprocess
import sys

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from gueststore.queries import query
from support.daemon import add_machine, execute, rows

LEASES = 'SELECT count(*) FROM "MachineLease"'
EVENTS = 'SELECT "action", "outcome", "name" FROM "ReconcileEvent"'


def release(dsn: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "guestd", "vms", "release", *words]
    limited = make_conninfo(dsn, options="-c role=guestd_writer")
    environment = {"GUESTD_DATABASE_DSN": limited, "PYTHONPATH": ":".join(sys.path)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def take_lease(dsn: str) -> None:
    execute(
        dsn,
        """INSERT INTO "MachineLease" ("machineId", "hostId", "hostBoot", "domainUuid")
        SELECT "Machine"."id", "Host"."id", '', gen_random_uuid() FROM "Machine" CROSS JOIN "Host"
        ON CONFLICT ("machineId") DO UPDATE SET "takenAt" = now() + INTERVAL '1 s'""",
    )


def test_exactly_the_lease_that_was_shown_is_released(dsn: str) -> None:
    add_machine(dsn)
    execute(
        dsn,
        """UPDATE "Machine" SET "internalName" = 'one'""",
        """INSERT INTO "Host" ("name", "uri", "version") VALUES ('there', 'qemu:///system', '1')""",
    )
    none = release(dsn, "one")
    assert (none.returncode, none.stdout) == (1, "")
    assert "no host has a lease" in none.stderr
    take_lease(dsn)
    shown = release(dsn, "one")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "one: host there has its lease since " in shown.stdout
    assert "this host has not reported for 60 s" in shown.stdout
    assert "last known state of the domain, on another host, to which the machine is assigned: none" in shown.stdout
    digest = shown.stdout.split()[-1]
    assert f"guestd vms release one --lease {digest}" in shown.stdout
    take_lease(dsn)  # the host has taken it again since
    another = release(dsn, "one", "--lease", digest)
    assert (another.returncode, rows(dsn, LEASES), rows(dsn, EVENTS)) == (1, [(1,)], [])
    assert "not released" in another.stdout
    facts = json.loads(release(dsn, "one", "--json").stdout)
    assert (facts["name"], facts["host"], facts["released"]) == ("one", "there", False)
    released = release(dsn, "one", "--lease", facts["lease"])
    assert (released.returncode, rows(dsn, LEASES)) == (0, [(0,)])
    assert rows(dsn, EVENTS) == [("release", "done", "one")]


REPORTING = """UPDATE "Host" SET "lastSeen" = now()"""


def prepare(dsn: str) -> None:
    """A machine that runs on the host that has its lease, and reports."""
    add_machine(dsn)
    execute(
        dsn,
        """INSERT INTO "Host" ("name", "uri", "version") VALUES ('there', 'qemu:///system', '1')""",
        REPORTING,
        """UPDATE "Machine" SET "internalName" = 'one', "hostId" = (SELECT "id" FROM "Host")""",
        """INSERT INTO "MachineDomain" ("machineId", "domainUuid", "state", "reason", "vcpus", "memoryKB", "channel")
        SELECT "id", gen_random_uuid(), 'running', 'booted', 1, 1, 'absent' FROM "Machine" """,
    )
    take_lease(dsn)


def test_the_lease_of_a_machine_that_runs_where_its_host_reports_it_is_not_released(dsn: str) -> None:
    """It was released, and another host could start the machine while it ran."""
    prepare(dsn)
    shown = release(dsn, "one")
    assert (shown.returncode, "--lease" in shown.stdout) == (0, False)
    for line in ("this host reports\n", "last known state of the domain: running\n", "not released: it runs there"):
        assert line in shown.stdout
    facts = json.loads(release(dsn, "one", "--json").stdout)
    known = ("host_reports", "assigned", "state", "runs_there", "released")
    assert [facts[name] for name in known] == [True, True, "running", True, False]
    refused = release(dsn, "one", "--lease", facts["lease"])
    assert (refused.returncode, rows(dsn, LEASES), rows(dsn, EVENTS)) == (1, [(1,)], [])
    assert "not released: it runs there; shut it down there" in refused.stdout


@pytest.mark.parametrize(
    "change",
    [
        """UPDATE "Host" SET "lastSeen" = now() - INTERVAL '61 seconds'""",
        """UPDATE "Host" SET "lastSeen" = NULL""",
        # Only the filters of this host write: it is refused.
        """UPDATE "Host" SET "reportedAt" = now() - INTERVAL '61 seconds'""",
        """UPDATE "MachineDomain" SET "state" = 'shutoff'""",
        """UPDATE "MachineDomain" SET "state" = 'missing'""",
        """UPDATE "Machine" SET "hostId" = NULL""",
        """DELETE FROM "MachineDomain" """,
    ],
)
def test_a_lease_is_released_where_the_host_does_not_report_that_the_machine_runs_there(dsn: str, change: str) -> None:
    prepare(dsn)
    execute(dsn, change)
    digest = release(dsn, "one").stdout.split()[-1]
    assert release(dsn, "one", "--lease", digest).returncode == 0
    assert rows(dsn, LEASES) == [(0,)]


def test_the_statement_that_releases_a_lease_checks_itself_that_the_machine_does_not_run_there(dsn: str) -> None:
    """A host may report again between what is read and what is deleted."""
    prepare(dsn)
    with psycopg.connect(dsn) as connection:
        ((machine_id, host_id, taken_at),) = connection.execute(
            'SELECT "machineId", "hostId", "takenAt" FROM "MachineLease"'
        ).fetchall()
        values = {"machine_id": machine_id, "host_id": host_id, "taken_at": taken_at, "name": "one", "reason": ""}
        assert connection.execute(query("vms/release_lease"), values).rowcount == 0
        connection.execute("""UPDATE "MachineDomain" SET "state" = 'shutoff'""")
        assert connection.execute(query("vms/release_lease"), values).rowcount == 1
