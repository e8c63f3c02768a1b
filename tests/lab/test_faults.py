"""What else may befall real guests: nothing that was acknowledged is missing, nothing is there twice."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tools.harness.lab import Lab
from tools.harness.waiting import eventually

from support.daemon import rows
from support.faults import Reliability
from support.lab import BOOT_SECONDS, LabGuest, World

pytestmark = pytest.mark.timeout(900)


def connected(guest: LabGuest) -> socket.socket:
    """Another client of its channel."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(BOOT_SECONDS)
    client.connect(str(guest.socket))
    return client


@contextmanager
def libvirtd_away(lab: Lab, end: str) -> Iterator[None]:
    """Stopped, killed or hung for a while."""
    if end == "hung":
        lab.signal_libvirtd(signal.SIGSTOP)
    else:
        lab.stop_libvirtd(signal.SIGTERM if end == "stopped" else signal.SIGKILL)
    try:
        yield
    finally:
        if end == "hung":
            lab.signal_libvirtd(signal.SIGCONT)
        else:
            lab.start_libvirtd()


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_restart_of_guestd_while_guests_write_loses_nothing(world: World, reliability: Reliability, end: str) -> None:
    guests = world.take(2)
    rounds = reliability.rounds(quick=2, full=20)
    for _ in range(rounds):
        getattr(world.daemon, end)()
        world.daemon.start()
        for guest in guests:
            guest.wait_for_samples(5)
    reliability.record(f"guestd is ended ({end}) while guests write", rounds, world.settle(*guests))


def test_a_killed_agent_begins_a_new_run(world: World, reliability: Reliability) -> None:
    (guest,) = world.take()
    rounds = reliability.rounds(quick=1, full=10)
    for number in range(1, rounds + 1):
        guest.restart_sender()
        guest.wait_for_new_run(number)
    reliability.record("the agent is killed", rounds, world.settle(guest))


def test_another_client_on_the_channel_only_delays(world: World, reliability: Reliability) -> None:
    (guest,) = world.take()
    world.daemon.stop()
    with connected(guest) as other:
        assert other.recv(65536), "what the agent writes, the other client gets"
        world.daemon.start()
        # That guestd has connected proves nothing: it waits in QEMU's backlog.
        eventually(lambda: world.daemon.metric("guestd_channels_connected") == 1, "guestd waits behind it")
        assert world.daemon.metric("guestd_frames_accepted_total") == 0
    guest.wait_for_samples()
    reliability.record("another client holds the channel", 1, world.settle(guest))


def test_a_hung_qemu_does_not_block_other_guests(world: World, reliability: Reliability) -> None:
    hung, other = world.take(2)
    world.lab.signal_qemu(hung.name, signal.SIGSTOP)
    other.wait_for_samples(40)
    world.lab.signal_qemu(hung.name, signal.SIGCONT)
    hung.wait_for_samples()
    reliability.record("a QEMU hangs", 1, world.settle(hung, other))


def test_a_guest_that_panics_and_one_that_is_destroyed_come_back(world: World, reliability: Reliability) -> None:
    panicking, destroyed = world.take(2)
    with panicking.running_command("echo c > /proc/sysrq-trigger"):
        world.status_becomes(panicking, "error")
    for guest in (panicking, destroyed):
        guest.virsh("destroy")
        guest.virsh("start")
    for guest in (panicking, destroyed):
        guest.wait_for_new_run(1)
        world.status_becomes(guest, "running")
    reliability.record("a guest panics, one is destroyed", 1, world.settle(panicking, destroyed))


@pytest.mark.skipif(os.environ.get("GUESTD_FAULTS") != "full", reason="./dev faults boots twenty guests")
@pytest.mark.timeout(3600)
def test_twenty_guests_at_once(world: World, reliability: Reliability) -> None:
    # Two cores emulate all of them: what matters is their number, not their rate.
    guests = world.take(20, sample_milliseconds=500)
    for guest in guests:
        guest.wait_for_samples(20)
    reliability.record("twenty guests at once", 1, world.settle(*guests))


def test_a_guest_that_reboots_itself_stays_running(world: World, reliability: Reliability) -> None:
    (guest,) = world.take()
    world.status_becomes(guest, "running")
    rounds = reliability.rounds(quick=1, full=5)
    for number in range(1, rounds + 1):
        with guest.running_command("reboot -f"):
            guest.wait_for_new_run(number)
    reliability.record("a guest reboots itself", rounds, world.settle(guest))
    written = rows(world.daemon.dsn, """SELECT "reason" FROM "ReconcileEvent" WHERE "action" = 'status'""")
    assert written == []


@pytest.mark.parametrize("end", ["stopped", "killed", "hung"])
def test_samples_continue_while_libvirtd_is_away_for_a_minute(world: World, reliability: Reliability, end: str) -> None:
    # Two: guestd then has two calls to a hung libvirtd on one connection, which crashed libvirt's client (0048).
    guest, other = world.take(2)
    world.state_becomes(guest, "running")
    with libvirtd_away(world.lab, end):
        before = guest.acknowledged()
        # The state is unknown when libvirt has not answered for sixty seconds.
        world.state_becomes(guest, "unknown")
        guest.wait_for_samples()
        assert guest.acknowledged() - before > 100
        world.status_becomes(guest, "running")
    world.state_becomes(guest, "running")
    reliability.record(f"libvirtd is {end} for a minute", 1, world.settle(guest, other))
