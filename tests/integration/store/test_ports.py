"""The listening ports of machines in VmPort: merged every minute, bounded, and removed when nothing listens."""

from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry

from guestd.wire import limits
from support.daemon import add_machine, execute, rows
from support.reports import refresher_of, report

pytestmark = pytest.mark.asyncio
PORTS = 'SELECT "portStart", "portEnd", "protocol", "running", "enabled" FROM "VmPort" ORDER BY "portStart", "protocol"'
COUNT = 'SELECT count(*) FROM "VmPort"'
PRUNE = "SELECT guestd_enforce_retention('VmPort')"


async def test_a_listening_port_has_a_row(dsn: str) -> None:
    machine_id = add_machine(dsn)
    report(dsn, machine_id, (22, "TCP"), (22, "TCP6"), (53, "UDP"), age=timedelta(seconds=60))
    await refresher_of(dsn).refresh()
    assert rows(dsn, PORTS) == [(22, 22, "tcp", True, False), (53, 53, "udp", True, False)]
    report(dsn, machine_id, (53, "UDP"))
    await refresher_of(dsn).refresh()
    assert rows(dsn, PORTS) == [(22, 22, "tcp", False, False), (53, 53, "udp", True, False)]


async def test_an_enabled_range_covers_the_ports_within_it(dsn: str) -> None:
    machine_id = add_machine(dsn)
    execute(
        dsn,
        f"""INSERT INTO "VmPort" ("portStart", "portEnd", "protocol", "running", "enabled", "toEnable", "vmId")
        VALUES (8000, 9000, 'tcp', FALSE, TRUE, TRUE, '{machine_id}')""",
    )
    report(dsn, machine_id, (8080, "TCP"), (8080, "UDP"))
    await refresher_of(dsn).refresh()
    assert rows(dsn, PORTS) == [(8000, 9000, "tcp", True, True), (8080, 8080, "udp", True, False)]


async def test_nothing_listens_in_a_machine_that_is_off(dsn: str) -> None:
    machine_id = add_machine(dsn)
    report(dsn, machine_id, (22, "TCP"))
    await refresher_of(dsn).refresh()
    execute(dsn, """UPDATE "Machine" SET "status" = 'off'""")
    await refresher_of(dsn).refresh()
    assert rows(dsn, PORTS) == [(22, 22, "tcp", False, False)]


async def test_ports_that_have_not_changed_are_not_written(dsn: str) -> None:
    machine_id = add_machine(dsn)
    seen = report(dsn, machine_id, (22, "TCP"), age=timedelta(minutes=6))
    await refresher_of(dsn).refresh()
    before = rows(dsn, 'SELECT xmin::text, "lastSeen" FROM "VmPort"')
    report(dsn, machine_id, (22, "TCP"), age=timedelta(minutes=4))
    await refresher_of(dsn).refresh()
    assert rows(dsn, 'SELECT xmin::text, "lastSeen" FROM "VmPort"') == before
    assert before[0][1] == seen
    newest = report(dsn, machine_id, (22, "TCP"))
    await refresher_of(dsn).refresh()
    assert rows(dsn, 'SELECT "lastSeen" FROM "VmPort"') == [(newest,)]


async def test_a_machine_has_no_more_rows_than_it_may_and_the_ports_left_out_are_counted(dsn: str) -> None:
    machine_id, other, registry = add_machine(dsn), add_machine(dsn), CollectorRegistry()
    refresher = refresher_of(dsn, registry)
    report(dsn, other, (22, "TCP"))
    report(dsn, machine_id, *[(port, "TCP") for port in range(limits.PORTS + 5)])
    for _ in range(2):
        await refresher.refresh()
        assert rows(dsn, COUNT) == [(limits.PORTS + 1,)]
        assert rows(dsn, f'{COUNT} WHERE "running" AND "isAutomatic"') == [(limits.PORTS + 1,)]
        assert registry.get_sample_value("guestd_ports_left_out") == 5


async def test_ports_that_listen_displace_those_that_do_not(dsn: str) -> None:
    machine_id = add_machine(dsn)
    for base in (10_000, 30_000):
        report(dsn, machine_id, *[(base + port, "TCP") for port in range(limits.PORTS)])
        await refresher_of(dsn).refresh()
    assert rows(dsn, f'{COUNT} WHERE "portStart" >= 30000') == rows(dsn, COUNT) == [(limits.PORTS,)]


async def test_rows_of_people_stay_and_neither_count_nor_are_in_the_way(dsn: str) -> None:
    machine_id = add_machine(dsn)
    report(dsn, machine_id, (22, "TCP"), (80, "TCP"), age=timedelta(seconds=30))
    await refresher_of(dsn).refresh()
    execute(
        dsn,
        # Somebody has opened and closed it: it is no longer guestd's.
        """UPDATE "VmPort" SET "enabled" = TRUE WHERE "portStart" = 22""",
        """UPDATE "VmPort" SET "enabled" = FALSE WHERE "portStart" = 22""",
        f"""INSERT INTO "VmPort" ("portStart", "portEnd", "protocol", "running", "enabled", "toEnable", "vmId")
        VALUES (443, 443, 'tcp', FALSE, FALSE, FALSE, '{machine_id}')""",
    )
    report(dsn, machine_id, *[(10_000 + port, "TCP") for port in range(limits.PORTS)])
    await refresher_of(dsn).refresh()
    execute(dsn, """UPDATE "VmPort" SET "running" = FALSE, "lastSeen" = now() - INTERVAL '31 days'""", PRUNE)
    assert rows(dsn, 'SELECT "portStart" FROM "VmPort" ORDER BY 1') == [(22,), (443,)]


async def test_automatic_ports_that_are_gone_are_removed_after_their_retention(dsn: str) -> None:
    machine_id = add_machine(dsn)
    report(dsn, machine_id, (22, "TCP"), (80, "TCP"))
    await refresher_of(dsn).refresh()
    execute(
        dsn,
        """UPDATE "VmPort" SET "lastSeen" = now() - INTERVAL '31 days'""",
        """UPDATE "VmPort" SET "running" = FALSE WHERE "portStart" = 80""",
    )
    assert rows(dsn, """SELECT "due" FROM "RetentionDue" WHERE "relation" = 'VmPort'""") == [(1,)]
    execute(dsn, PRUNE)
    assert rows(dsn, 'SELECT "portStart" FROM "VmPort"') == [(22,)]


async def test_ports_that_an_earlier_guestd_adds_are_automatic(dsn: str) -> None:
    machine_id = add_machine(dsn)
    columns = '"vmId", "portStart", "portEnd", "protocol", "running", "enabled", "toEnable", "lastSeen"'
    seen = "now() - INTERVAL '2 seconds'"
    execute(
        dsn,
        # As guestd did before migration 18.
        f"""INSERT INTO "VmPort" ({columns}) VALUES ('{machine_id}', 22, 22, 'tcp', TRUE, FALSE, FALSE, {seen})""",
        # People's rows open something, cover a range, or do not listen yet.
        f"""INSERT INTO "VmPort" ({columns}) VALUES
        ('{machine_id}', 80, 80, 'tcp', TRUE, TRUE, FALSE, {seen}),
        ('{machine_id}', 81, 81, 'tcp', TRUE, FALSE, TRUE, {seen}),
        ('{machine_id}', 90, 99, 'tcp', TRUE, FALSE, FALSE, {seen}),
        ('{machine_id}', 443, 443, 'tcp', FALSE, FALSE, FALSE, DEFAULT)""",
    )
    assert rows(dsn, 'SELECT "portStart" FROM "VmPort" WHERE "isAutomatic"') == [(22,)]
