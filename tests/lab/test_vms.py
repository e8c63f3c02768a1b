"""The VM reconciler and domain statistics on a real libvirt: what its test driver does not provide.

A QEMU is enough: no test waits for its guest to boot.
"""

import signal
from collections.abc import Iterator
from functools import partial

import pytest
from tools.harness.waiting import eventually

from support.daemon import execute, rows
from support.lab import BOOT_SECONDS, LabGuest, LabGuests, World, register
from support.libvirt import libvirt

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def two(world: World, guests: LabGuests) -> Iterator[tuple[LabGuest, LabGuest]]:
    """Two guests of this test only."""
    first, second = guests.boot(), guests.boot()
    for guest in (first, second):
        register(world.daemon.dsn, guest)
    yield first, second
    for guest in (first, second):
        guests.remove(guest)


def statistic(world: World, guest: LabGuest, name: str) -> float:
    return world.daemon.metric(f"libvirt_domain_{name}", domain=guest.name)


def set_desired(world: World, guest: LabGuest, desired: str) -> None:
    execute(world.daemon.dsn, f"""UPDATE "Machine" SET "desiredStatus" = '{desired}' WHERE "id" = '{guest.uuid}'""")


def test_only_a_hung_qemu_has_no_statistics_and_other_rows_follow_their_domains(
    world: World, two: tuple[LabGuest, LabGuest]
) -> None:
    hung, other = two
    world.daemon.start()
    for guest in two:
        eventually(partial(statistic, world, guest, "info_cpu_time_seconds_total"), "it has statistics", BOOT_SECONDS)
        assert statistic(world, guest, "info_maximum_memory_bytes") > 0
        assert statistic(world, guest, "vcpu_current") == 1
        assert statistic(world, guest, "timed_out") == 0
    world.lab.signal_qemu(hung.name, signal.SIGSTOP)
    try:
        eventually(lambda: statistic(world, hung, "timed_out") == 1, "the hung one is timed out", BOOT_SECONDS)
        before = statistic(world, other, "info_cpu_time_seconds_total")
        eventually(
            lambda: statistic(world, other, "info_cpu_time_seconds_total") > before, "others go on", BOOT_SECONDS
        )
        assert statistic(world, other, "timed_out") == 0
        other.virsh("suspend")
        world.status_becomes(other, "suspended")
        other.virsh("resume")
        world.status_becomes(other, "running")
    finally:
        world.lab.signal_qemu(hung.name, signal.SIGCONT)
    eventually(lambda: statistic(world, hung, "timed_out") == 0, "it answers again", BOOT_SECONDS)
    world.status_becomes(hung, "running")


def test_desired_states_are_reached_on_a_real_libvirt(world: World, two: tuple[LabGuest, LabGuest]) -> None:
    guest, _ = two
    world.daemon.more_tables += 'vms = "converge"\nmay_destroy = true\nshutdown_seconds = 2.0\n'
    world.daemon.start()
    world.status_becomes(guest, "running")
    for desired in ("suspended", "running", "off", "running"):
        set_desired(world, guest, desired)
        world.status_becomes(guest, desired)
    done = rows(
        world.daemon.dsn,
        """SELECT "action" FROM "ReconcileEvent" WHERE "outcome" = 'done'
        AND "action" IN ('start', 'resume', 'suspend', 'shutdown', 'destroy') ORDER BY "occurredAt" """,
    )
    # A guest that has not booted, or has no daemon for the power button, is destroyed at last.
    assert [action for (action,) in done if action != "shutdown"] == ["suspend", "resume", "destroy", "start"]


def test_a_guest_that_was_reset_after_it_was_asked_to_shut_down_is_asked_again_before_it_is_destroyed(
    world: World, two: tuple[LabGuest, LabGuest]
) -> None:
    guest, _ = two
    world.daemon.more_tables += 'vms = "converge"\nmay_destroy = true\nshutdown_seconds = 10.0\n'
    world.daemon.start()
    world.status_becomes(guest, "running")
    set_desired(world, guest, "off")
    actions = """SELECT "action" FROM "ReconcileEvent" WHERE "outcome" = 'done'
    AND "action" IN ('shutdown', 'destroy') ORDER BY "occurredAt" """
    eventually(lambda: rows(world.daemon.dsn, actions) == [("shutdown",)], "it is asked", BOOT_SECONDS)
    guest.virsh("reset")
    world.status_becomes(guest, "off")
    assert rows(world.daemon.dsn, actions) == [("shutdown",), ("shutdown",), ("destroy",)]


def test_a_transient_domain_that_ends_is_off_and_its_machine_runs_when_it_is_created_again(
    world: World, two: tuple[LabGuest, LabGuest]
) -> None:
    destroyed, killed = two
    world.daemon.more_tables += 'vms = "converge"\n'
    world.daemon.start()
    facts = 'SELECT "state", "reason" FROM "MachineDomain" WHERE "machineId" = %s'
    for guest in two:
        eventually(partial(rows, world.daemon.dsn, facts, guest.uuid), "its domain is known", BOOT_SECONDS)
        set_desired(world, guest, "running")
    xml = destroyed.virsh("dumpxml")
    for guest in two:
        guest.virsh("undefine")
    destroyed.virsh("destroy")
    world.lab.signal_qemu(killed.name, signal.SIGKILL)
    for guest in two:
        world.status_becomes(guest, "off")
    assert rows(world.daemon.dsn, facts, destroyed.uuid) == [("missing", "destroyed")]
    assert rows(world.daemon.dsn, facts, killed.uuid) == [("missing", "failed")]
    connection = libvirt.open(world.lab.uri)
    try:
        connection.createXML(xml)
    finally:
        connection.close()
    world.status_becomes(destroyed, "running")
    starts = """SELECT 1 FROM "ReconcileEvent" WHERE "action" IN ('start', 'resume')"""
    assert rows(world.daemon.dsn, starts) == []
