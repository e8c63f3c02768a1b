"""Two hosts that use one name, one after the other: a real store, and libvirt's test driver."""

import asyncio
from pathlib import Path

import pytest
from tools.harness.waiting import eventually

from guestd.filters.store import open_filter_store
from guestd.hypervisor.driver import Hypervisor
from guestd.telemetry.registry import VmMetrics
from guestd.vms.identity import HostIdentity
from guestd.vms.reconciler import preview_vm_plan
from guestd.vms.store import HostRefused
from support.daemon import execute, rows
from support.libvirt import domain_xml, running, uri_of
from support.vm_host import Host, add, hypervisor_with, reconciling

pytestmark = pytest.mark.asyncio
# The test driver's way to have a domain that is off, for a reason that it does not report.
OFF = "<domain xmlns:test='http://libvirt.org/schemas/domain/test/1.0' type='test'><test:runstate>5</test:runstate>"


class NamedHost(Hypervisor):
    """A libvirt whose host has a UUID; the test driver's has none."""

    host_uuid = "uuid a"

    async def get_host_uuid(self) -> str:
        """Get libvirt's UUID of the host."""
        return self.host_uuid


class MovedHost(NamedHost):
    """libvirt is connected again, to another host behind the same URI, while it is asked which one it is."""

    async def get_host_uuid(self) -> str:
        """Get the UUID of the host of the connection that was there when it was asked."""
        found, number = self.host_uuid, self.connection_count
        self.host_uuid = "uuid b"
        if found != self.host_uuid:
            self._on_close_event(self._connection)
            await asyncio.to_thread(eventually, lambda: self.connection_count > number, "libvirt is connected again")
        return found


def named(hypervisor: Hypervisor, host_uuid: str) -> NamedHost:
    found = NamedHost(hypervisor.uri, VmMetrics())
    found.host_uuid = host_uuid
    return found


def off(file: Path) -> Hypervisor:
    """A libvirt that has the definition, and has never run it, or has forgotten how it ended."""
    uri_of(file, [domain_xml("one", 1).replace("<domain type='test'>", OFF)])
    return Hypervisor(f"test://{file}", VmMetrics())


@pytest.mark.parametrize(
    ("host_uuid", "machine"), [("uuid b", "machine a"), ("uuid a", "machine b"), ("uuid b", "machine b")]
)
async def test_a_second_host_that_uses_the_name_of_a_first_one_starts_nothing_and_writes_nothing(
    dsn: str, tmp_path: Path, host_uuid: str, machine: str
) -> None:
    add(dsn, "one", desiredStatus="running")
    first = named(hypervisor_with(tmp_path, "one"), "uuid a")
    async with reconciling(Host(dsn, first, host_machine="machine a")) as host:
        await host.becomes("one", status="running")
    before = rows(dsn, 'SELECT * FROM "Host", "MachineLease", "Machine", "MachineDomain"')
    # The guestd of the first host is stopped; its machine runs.
    second = named(off(Path(first.uri.removeprefix("test://"))), host_uuid)
    async with reconciling(Host(dsn, second, host_machine=machine, host_boot="boot b")) as host:
        await host.eventually(lambda: host.lost >= 2, "it is refused again and again")
        assert "host host (test:///" in str(host.reconciler.error)
        assert "its identity is uuid a/machine a" in str(host.reconciler.error)
        assert not host.domain("one").isActive()
        assert (host.runs, host.has_acted) == (0, False)
        assert rows(dsn, 'SELECT * FROM "Host", "MachineLease", "Machine", "MachineDomain"') == before
        with pytest.raises(HostRefused):
            await preview_vm_plan(
                second, dsn=dsn, host_name="host", policy=host.reconciler._policy
            )  # fmt: skip
        # A person is certain that it is that host, as docs/vms.md says.
        execute(dsn, f"""UPDATE "Host" SET "identity" = '{HostIdentity(host_uuid, machine, "")}'""")
        await host.eventually(lambda: host.runs > 1, "it is taken")
        assert rows(dsn, 'SELECT "boot" FROM "Host"') == [("boot b",)]


async def test_a_refused_host_whose_filters_are_kept_counts_as_one_that_does_not_report(
    dsn: str, tmp_path: Path
) -> None:
    """It may run the machine, and does not claim it."""
    add(dsn, "one", desiredStatus="running")
    here = hypervisor_with(tmp_path, "one")
    async with reconciling(Host(dsn, here)) as host:
        await host.becomes("one", status="running")
    there = named(hypervisor_with(tmp_path), "uuid b")
    execute(
        dsn,
        f"""INSERT INTO "Host" ("name", "uri", "version", "identity") VALUES ('there', '{there.uri}', '1', 'a/a')""",
    )
    # This host was restarted, and libvirt does not report how the domain ended.
    restarted = Host(dsn, off(Path(here.uri.removeprefix("test://"))), host_boot="boot 2")
    async with (
        reconciling(Host(dsn, there, name="there")) as refused,
        open_filter_store(dsn, name="there", uri=there.uri, version="1") as filters,
        reconciling(restarted) as host,
    ):
        await refused.eventually(lambda: refused.lost, "it is refused")
        await filters.write_states([], [])
        await host.eventually(lambda: host.machine("one")["problem"], "it is not started")
        assert "may run on a host that does not report: there" in host.machine("one")["problem"]
        assert rows(
            dsn,
            """SELECT "lastSeen" > now() - INTERVAL '60 s', "reportedAt" FROM "Host"
            WHERE "name" = 'there'""",
        ) == [(True, None)]


async def test_a_machine_of_a_refused_host_whose_filters_are_kept_is_claimed_where_it_runs(
    dsn: str, tmp_path: Path
) -> None:
    add(dsn, "one")
    execute(
        dsn,
        """INSERT INTO "Host" ("name", "uri", "version", "reportedAt") VALUES ('there', 'b', '1', now() - INTERVAL '1h')
        """,
        """UPDATE "Machine" SET "hostId" = (SELECT "id" FROM "Host")""",
    )
    async with open_filter_store(dsn, name="there", uri="b", version="1") as filters:
        await filters.write_states([], [])
    async with reconciling(Host(dsn, hypervisor_with(tmp_path, "one"))) as host:
        await host.becomes("one", hostName="host", status="running")


async def test_a_uuid_that_libvirt_makes_up_at_each_start_is_another_one_after_a_restart_of_the_host_only(
    dsn: str, tmp_path: Path
) -> None:
    add(dsn, "one")
    hypervisor = hypervisor_with(tmp_path, "one")
    for number in range(3):
        async with reconciling(Host(dsn, named(hypervisor, f"made up {number}"), host_machine="machine a")) as host:
            assert host.reconciler.error is None
    restarted = Host(dsn, named(hypervisor, "made up 3"), host_machine="machine a", host_boot="boot 2")
    async with reconciling(restarted) as host:
        await host.eventually(lambda: host.lost, "it is refused")
        assert "its identity is made up 2/machine a" in str(host.reconciler.error)


async def test_another_host_behind_the_same_uri_is_noticed_when_libvirt_is_connected_again(
    dsn: str, tmp_path: Path
) -> None:
    add(dsn, "one")
    hypervisor = named(hypervisor_with(tmp_path, "one"), "uuid a")
    async with reconciling(Host(dsn, hypervisor, host_boot="", host_machine="")) as host:
        await host.becomes("one", status="running")
        hypervisor.host_uuid = "uuid b"
        hypervisor._on_close_event(hypervisor._connection)
        await host.eventually(lambda: "its identity is uuid a/none" in str(host.reconciler.error), "it is refused")


async def test_a_host_to_which_libvirt_is_connected_while_the_one_before_is_checked_is_not_taken_for_it(
    dsn: str, tmp_path: Path
) -> None:
    add(dsn, "one")
    hypervisor = MovedHost(hypervisor_with(tmp_path, "one").uri, VmMetrics())
    async with reconciling(Host(dsn, hypervisor, host_boot="", host_machine="")) as host:
        await host.eventually(lambda: "its identity is uuid a/none" in str(host.reconciler.error), "it is refused")
        assert (host.runs, rows(dsn, 'SELECT 1 FROM "MachineDomain"')) == (0, [])


async def test_a_host_of_an_earlier_guestd_is_taken_in_the_boot_of_its_leases_only(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one")
    hypervisor = named(hypervisor_with(tmp_path, "one"), "uuid a")
    async with reconciling(Host(dsn, hypervisor, host_machine="machine a")) as host:
        await host.becomes("one", status="running")
        await host.eventually(lambda: rows(dsn, 'SELECT 1 FROM "MachineLease"'), "it has a lease")
    execute(dsn, 'UPDATE "Host" SET "identity" = NULL, "boot" = NULL')
    async with reconciling(
        Host(dsn, named(hypervisor, "uuid a"), host_machine="machine a", host_boot="boot 2")
    ) as host:
        await host.eventually(lambda: host.lost, "it is refused")
        assert "it has leases of an earlier boot and no identity" in str(host.reconciler.error)
    async with reconciling(Host(dsn, named(hypervisor, "uuid a"), host_machine="machine a")) as host:
        assert host.reconciler.error is None
    assert rows(dsn, 'SELECT "identity", "boot" FROM "Host"') == [("uuid a/machine a", "boot 1")]


async def test_the_host_of_a_preview_need_not_be_registered(dsn: str, tmp_path: Path) -> None:
    hypervisor = hypervisor_with(tmp_path, "one")
    async with running(hypervisor):
        plan = await preview_vm_plan(
            hypervisor, dsn=dsn, host_name="new", policy=Host(dsn, hypervisor).reconciler._policy
        )
    assert [str(report) for report in plan.reports] == [
        "unmatched: one: no Machine has this domain name as its internalName"
    ]
