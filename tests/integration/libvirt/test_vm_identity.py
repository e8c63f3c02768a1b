"""A machine's domain is known by its UUID: a real store, and domains of libvirt's test driver that have its name."""

from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from guestd.hypervisor.driver import Hypervisor
from guestd.telemetry.registry import VmMetrics
from support.daemon import execute, rows
from support.libvirt import domain_xml, own_connection, uri_of
from support.vm_host import Host, add, hypervisor_with, reconciling

pytestmark = pytest.mark.asyncio
OWN, CLONE = 9, 77


def hypervisor_with_a_clone(directory: Path) -> Hypervisor:
    return Hypervisor(uri_of(directory / "clone.xml", [domain_xml("one", CLONE)]), VmMetrics())


def list_leases(dsn: str) -> list[tuple[Any, ...]]:
    return rows(
        dsn,
        'SELECT "name", "domainUuid" FROM "MachineLease" INNER JOIN "Host" ON "MachineLease"."hostId" = "Host"."id"',
    )


async def test_a_clone_on_another_host_claims_nothing_until_it_is_accepted(dsn: str, tmp_path: Path) -> None:
    """It claimed the machine as soon as its host did not report, or had it off."""
    machine_id = add(dsn, "one", desiredStatus="running")
    async with reconciling(Host(dsn, hypervisor_with(tmp_path, "one"))) as host:
        await host.becomes("one", status="running", hostName="host")
        host.domain("one").destroy()
        await host.becomes("one", status="running", domainReason="booted")  # it is started again
    execute(dsn, """UPDATE "Host" SET "reportedAt" = now() - INTERVAL '1 day'""", 'DELETE FROM "MachineLease"')
    async with reconciling(Host(dsn, hypervisor_with_a_clone(tmp_path), name="other")) as other:
        await other.eventually(lambda: any(text.startswith("replaced: one") for text in other.reports), "a report")
        await other.another_run(3)
        assert (other.machine("one")["hostName"], list_leases(dsn)) == ("host", [])
        assert not other.has_acted
        # As the report says, where it is the machine's domain now.
        ((other_id,),) = rows(dsn, """SELECT "id" FROM "Host" WHERE "name" = 'other'""")
        assert str(other_id) in "".join(other.reports)
        execute(
            dsn,
            f"""UPDATE "MachineDomain" SET "domainUuid" = NULL WHERE "machineId" = '{machine_id}'""",
            f"""UPDATE "Machine" SET "hostId" = '{other_id}' WHERE "id" = '{machine_id}'""",
            "NOTIFY guestd_wish",
        )
        await other.becomes("one", hostName="other", status="running", domainState="running", problem=None)
        await other.eventually(lambda: list_leases(dsn) == [("other", UUID(int=CLONE))], "it has the lease")
    assert rows(dsn, 'SELECT "domainUuid" FROM "MachineDomain"') == [(UUID(int=CLONE),)]


async def test_the_end_of_a_clone_says_nothing_of_the_machines_own_domain(dsn: str, tmp_path: Path) -> None:
    """It made the end of the machine's domain known, and the lease was given back."""
    machine_id = add(dsn, "one")
    hypervisor = hypervisor_with(tmp_path, "two")
    async with reconciling(Host(dsn, hypervisor)) as host:
        ((host_id,),) = rows(dsn, 'SELECT "id" FROM "Host"')
        values = f"""'{machine_id}', '{UUID(int=OWN)}'"""
        execute(
            dsn,
            f"""INSERT INTO "MachineDomain"
            ("machineId", "domainUuid", "state", "reason", "vcpus", "memoryKB", "channel")
            VALUES ({values}, 'running', 'booted', 1, 1, 'absent')""",
            f"""INSERT INTO "MachineLease" ("machineId", "domainUuid", "hostId", "hostBoot")
            VALUES ({values}, '{host_id}', 'boot 1')""",
            f"""UPDATE "Machine" SET "hostId" = '{host_id}', "status" = 'running'""",
        )
        clone = own_connection(hypervisor).createXML(domain_xml("one", CLONE), 0)
        await host.eventually(lambda: any(text.startswith("replaced: one") for text in host.reports), "a report")
        clone.destroy()
        await host.eventually(lambda: UUID(int=CLONE) in hypervisor.stops, "its stop is known")
        await host.another_run(3)
        assert (host.machine("one")["domainState"], host.machine("one")["domainReason"]) == ("missing", "unknown")
        assert list_leases(dsn) == [("host", UUID(int=OWN))]
