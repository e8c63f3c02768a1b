"""Live migration between two real libvirtds, each with a guestd, and one store for both."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tools.harness.waiting import eventually, wait_seconds

from guestd.vms.plan import SHUTOFF_DEBOUNCE_SECONDS
from support.daemon import Daemon, execute, rows
from support.faults import Reliability
from support.lab import BOOT_SECONDS, LabGuest, LabGuests, World, started_lab
from support.libvirt import libvirt

pytestmark = pytest.mark.timeout(900)


@dataclass(frozen=True)
class Hosts:
    """Two hosts, by the names that they have in the store."""

    worlds: dict[str, World]

    def holds(self, guest: LabGuest, name: str) -> None:
        """Wait until this host has the guest."""
        held = 'SELECT h."name" FROM "Machine" m JOIN "Host" h ON h."id" = m."hostId" WHERE m."id" = %s'
        dsn = self.worlds[name].daemon.dsn
        eventually(lambda: rows(dsn, held, guest.uuid) == [(name,)], f"host {name} has it", BOOT_SECONDS)


@pytest.fixture
def hosts(world: World, directory: Path) -> Iterator[Hosts]:
    """Host a is the session's lab, host b one of this test's."""
    (directory / "b").mkdir()
    with started_lab(beside=world.lab) as lab:
        daemon = Daemon(directory / "b", world.daemon.dsn)
        other = World(daemon, LabGuests(lab))
        worlds = {"a": world, "b": other}
        for name, each in worlds.items():
            each.daemon.more_tables += f'host_name = "{name}"\n'
        yield Hosts(worlds)
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.kill()


def test_a_live_migrated_guest_is_reassigned_once_and_is_never_off(
    world: World, hosts: Hosts, reliability: Reliability
) -> None:
    (guest,) = world.take()
    hosts.worlds["b"].daemon.start()
    hosts.holds(guest, "a")
    world.status_becomes(guest, "running")
    rounds = reliability.rounds(quick=2, full=6)
    targets = [("b", "a")[number % 2] for number in range(rounds)]
    for target in targets:
        guest.migrate(hosts.worlds[target].lab)
        hosts.holds(guest, target)
        guest.wait_for_samples()
        # Long enough for the old host to take what it still has defined for a machine that is off.
        wait_seconds(2 * SHUTOFF_DEBOUNCE_SECONDS)
    done = rows(
        world.daemon.dsn,
        """SELECT e."action", h."name" FROM "ReconcileEvent" e JOIN "Host" h ON h."id" = e."hostId"
        WHERE e."action" NOT IN ('define', 'remove') ORDER BY e."occurredAt" """,
    )
    assert done == [("claim", "a"), *(("claim", target) for target in targets)]
    assert rows(world.daemon.dsn, 'SELECT "status" FROM "Machine"') == [("running",)]
    # It is on host a again, which is asked once it sends no more.
    eventually(lambda: hosts.worlds["b"].daemon.metric("guestd_spool_frames") == 0, "host b has stored all")
    reliability.record("a guest is migrated live and back", rounds, world.settle(guest))


def test_a_transient_guest_that_is_migrated_to_a_host_without_guestd_is_never_off(world: World, hosts: Hosts) -> None:
    (guest,) = world.take()
    world.status_becomes(guest, "running")
    guest.virsh("undefine")
    guest.migrate(hosts.worlds["b"].lab)
    facts = 'SELECT "state", "reason" FROM "MachineDomain" WHERE "machineId" = %s'
    gone = [("missing", "migrated")]
    eventually(lambda: rows(world.daemon.dsn, facts, guest.uuid) == gone, "host a knows that it was migrated")
    world.daemon.stop()
    world.daemon.start()
    world.state_becomes(guest, "running")
    wait_seconds(2 * SHUTOFF_DEBOUNCE_SECONDS)
    hosts.worlds["b"].daemon.start()
    hosts.holds(guest, "b")
    guest.migrate(world.lab)
    hosts.holds(guest, "a")
    changed = 'SELECT "reason" FROM "ReconcileEvent" WHERE "action" = %s ORDER BY "occurredAt"'
    assert rows(world.daemon.dsn, changed, "status") == []
    assert rows(world.daemon.dsn, 'SELECT "status" FROM "Machine"') == [("running",)]


def test_a_guest_that_was_migrated_while_guestd_was_stopped_is_not_started_again(world: World, hosts: Hosts) -> None:
    world.daemon.more_tables += 'vms = "converge"\n'
    (guest,) = world.take()
    world.status_becomes(guest, "running")
    execute(world.daemon.dsn, """UPDATE "Machine" SET "desiredStatus" = 'running'""")
    facts = 'SELECT "state" FROM "MachineDomain" WHERE "machineId" = %s'
    running = [("running",)]
    eventually(lambda: rows(world.daemon.dsn, facts, guest.uuid) == running, "its domain is known", BOOT_SECONDS)
    connection = libvirt.open(world.lab.uri)
    try:
        connection.defineXML(guest.virsh("dumpxml"))  # another test may have undefined it
    finally:
        connection.close()
    world.daemon.stop()
    guest.migrate(hosts.worlds["b"].lab)
    # libvirtd forgets why the domain is off.
    world.lab.stop_libvirtd()
    world.lab.start_libvirtd()
    left_behind = LabGuest(world.lab, guest.name, guest.uuid)
    assert "shut off" in left_behind.virsh("domstate")
    world.daemon.start()
    problem = 'SELECT "problem" FROM "MachineDomain" WHERE "problem" LIKE %s'
    asked = "%may have been migrated%"
    eventually(lambda: rows(world.daemon.dsn, problem, asked), "host a does not start it", BOOT_SECONDS)
    wait_seconds(2 * SHUTOFF_DEBOUNCE_SECONDS)
    assert "shut off" in left_behind.virsh("domstate")
    hosts.worlds["b"].daemon.start()
    hosts.holds(guest, "b")
    starts = """SELECT 1 FROM "ReconcileEvent" WHERE "action" IN ('start', 'resume')"""
    assert rows(world.daemon.dsn, starts) == []
    guest.migrate(world.lab)
    hosts.holds(guest, "a")
