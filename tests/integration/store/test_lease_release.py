"""`guestd vms release` on a real store, with the daemon's rights."""

import json
import subprocess
import sys

from psycopg.conninfo import make_conninfo

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
