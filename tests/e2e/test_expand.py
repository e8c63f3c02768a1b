"""Expand, migrate, contract: the daemon of a release goes on when the schema of the next is laid beneath it."""

from dataclasses import replace

from tools.harness.waiting import eventually

from gueststore.contract import SCHEMA_VERSION
from gueststore.migrations import migrate
from gueststore.scripts import Migration, load_scripts
from support.daemon import Daemon, add_machine, metrics_line, rows

EXPANDS = """
ALTER TABLE "SystemMetrics" ADD COLUMN "diskLatencySeconds" double precision;
ALTER TABLE "Machine" ADD COLUMN "rack" text NOT NULL DEFAULT 'none';
CREATE TABLE "Rack" ("name" text PRIMARY KEY);
"""


def test_a_daemon_goes_on_storing_when_the_schema_is_expanded_beneath_it_and_starts_on_it(daemon: Daemon) -> None:
    machine_id = add_machine(daemon.dsn)
    guest = daemon.guest(machine_id)
    stored = 'SELECT count(*) FROM "SystemMetrics"'
    daemon.start()
    guest.write(metrics_line())
    eventually(lambda: rows(daemon.dsn, stored) == [(1,)], "a sample before")
    newer = Migration(SCHEMA_VERSION + 1, "next_release", EXPANDS, compat=SCHEMA_VERSION, transactional=True)
    migrate(daemon.dsn, scripts=replace(load_scripts(), migrations=(*load_scripts().migrations, newer)))
    guest.write(metrics_line())
    eventually(lambda: rows(daemon.dsn, stored) == [(2,)], "a sample after, by the same daemon")
    assert daemon.stop() == 0
    again = daemon.guest(add_machine(daemon.dsn))
    daemon.start()
    again.write(metrics_line())
    eventually(lambda: rows(daemon.dsn, stored) == [(3,)], "a sample after, by one that was started on it")
    assert rows(daemon.dsn, 'SELECT count(*) FROM "QuarantinedFrame"') == [(0,)]
