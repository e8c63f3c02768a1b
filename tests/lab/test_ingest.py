"""Real guests on a real libvirtd: whatever befalls them, nothing acknowledged is missing and nothing is there twice."""

import os
import signal
import socket

import pytest

from fix_daemon import eventually, rows
from fix_faults import Reliability
from fix_lab import BOOT_SECONDS, LabGuest, World

pytestmark = pytest.mark.timeout(900)


def connected(guest: LabGuest) -> socket.socket:
    """Another client of its channel."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(BOOT_SECONDS)
    client.connect(str(guest.socket))
    return client


def test_a_paused_guest_is_silent_and_goes_on_where_it_was(world: World, reliability: Reliability) -> None:
    (guest,) = world.take()
    guest.virsh("suspend")
    eventually(lambda: world.daemon.metric("guestd_spool_frames") == 0, "what it had written is stored")
    assert world.daemon.metric("guestd_channels_connected") == 1
    guest.virsh("resume")
    guest.goes_on()
    reliability.record("a guest is paused and resumed", 1, world.settled(guest))


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_guestd_started_again_while_guests_write_has_all_of_it(
    world: World, reliability: Reliability, end: str
) -> None:
    guests = world.take(2)
    rounds = reliability.rounds(quick=2, full=20)
    for _ in range(rounds):
        getattr(world.daemon, end)()
        world.daemon.start()
        for guest in guests:
            guest.goes_on(5)
    reliability.record(f"guestd is ended ({end}) while guests write", rounds, world.settled(*guests))


def test_an_agent_that_is_killed_begins_a_new_run(world: World, reliability: Reliability) -> None:
    (guest,) = world.take()
    rounds = reliability.rounds(quick=1, full=10)
    for number in range(1, rounds + 1):
        guest.restart_sender()
        guest.begins_again(number)
    reliability.record("the agent is killed", rounds, world.settled(guest))


def test_another_client_holding_the_channel_only_delays(world: World, reliability: Reliability) -> None:
    (guest,) = world.take()
    world.daemon.stop()
    with connected(guest) as other:
        assert other.recv(65536), "what the agent writes, the other client gets"
        world.daemon.start()
        # That guestd has connected proves nothing: it waits in QEMU's backlog.
        eventually(lambda: world.daemon.metric("guestd_channels_connected") == 1, "guestd waits behind it")
        assert world.daemon.metric("guestd_frames_accepted_total") == 0
    guest.goes_on()
    reliability.record("another client holds the channel", 1, world.settled(guest))


def test_libvirtd_is_not_needed_for_samples(world: World, reliability: Reliability) -> None:
    (guest,) = world.take()
    for number in (signal.SIGTERM, signal.SIGKILL):
        world.lab.stop_libvirtd(number)
        guest.goes_on()
        world.lab.start_libvirtd()
        guest.goes_on()
    world.lab.signal_libvirtd(signal.SIGSTOP)
    guest.goes_on(20)
    world.lab.signal_libvirtd(signal.SIGCONT)
    reliability.record("libvirtd is stopped, killed, hung", 3, world.settled(guest))


def test_a_qemu_that_hangs_holds_up_no_other_guest(world: World, reliability: Reliability) -> None:
    hung, other = world.take(2)
    world.lab.signal_qemu(hung.name, signal.SIGSTOP)
    other.goes_on(40)
    world.lab.signal_qemu(hung.name, signal.SIGCONT)
    hung.goes_on()
    reliability.record("a QEMU hangs", 1, world.settled(hung, other))


def test_a_channel_that_is_unplugged_and_plugged_in_again_goes_on(world: World, reliability: Reliability) -> None:
    (guest,) = world.take()
    guest.unplug_channel()
    eventually(lambda: world.daemon.metric("guestd_channels") == 0, "guestd drops it")
    guest.plug_channel()
    guest.goes_on()
    reliability.record("a channel is unplugged", 1, world.settled(guest))


def test_a_reset_has_no_end_of_stream_and_a_new_run_is_told_from_the_old(
    world: World, reliability: Reliability
) -> None:
    (guest,) = world.take()
    guest.virsh("reset")
    guest.begins_again(1)
    assert world.daemon.metric("guestd_channels_lost_total") == 0
    reliability.record("a guest is reset", 1, world.settled(guest))


def test_a_guest_that_panics_and_one_that_is_destroyed_come_back(world: World, reliability: Reliability) -> None:
    panicking, destroyed = world.take(2)
    with panicking.told("echo c > /proc/sysrq-trigger"):
        eventually(lambda: panicking.virsh("domstate") == "crashed", "libvirt has seen the panic", BOOT_SECONDS)
    for guest in (panicking, destroyed):
        guest.virsh("destroy")
        guest.virsh("start")
    for guest in (panicking, destroyed):
        guest.begins_again(1)
    reliability.record("a guest panics, one is destroyed", 1, world.settled(panicking, destroyed))


def test_an_undefined_guest_leaves_its_samples_and_no_channel(world: World, reliability: Reliability) -> None:
    (guest,) = world.take()
    guest.virsh("destroy")
    guest.virsh("undefine")
    eventually(lambda: world.daemon.metric("guestd_channels") == 0, "guestd drops its channel")
    eventually(lambda: world.daemon.metric("guestd_spool_frames") == 0, "all is stored")
    assert world.samples(guest) == world.daemon.metric("guestd_frames_accepted_total")
    reliability.record("a guest is destroyed and undefined", 1, world.books())


def test_the_agent_itself_reports_a_real_guest(world: World) -> None:
    guest = world.guests.boot("lab.interval=1")
    world.taken.append(guest)
    world.register(guest)
    world.daemon.start()
    eventually(lambda: world.samples(guest) >= 3, "three samples are in the tables", BOOT_SECONDS)
    guest.virsh("destroy")  # nothing counts its samples for a later test
    ((memory_kib, uptime),) = rows(world.daemon.dsn, 'SELECT max("totalMemoryKB"), max("uptime") FROM "SystemMetrics"')
    assert 100_000 < memory_kib < 160 * 1024
    assert uptime < BOOT_SECONDS * 2
    names = {name for (name,) in rows(world.daemon.dsn, 'SELECT DISTINCT "name" FROM "ProcessSnapshot"')}
    assert {"kthreadd", "python3.11"} <= names


@pytest.mark.skipif(os.environ.get("GUESTD_FAULTS") != "full", reason="./dev faults boots twenty guests")
@pytest.mark.timeout(3600)
def test_twenty_guests_at_once(world: World, reliability: Reliability) -> None:
    guests = world.take(20)
    for guest in guests:
        guest.goes_on(50)
    reliability.record("twenty guests at once", 1, world.settled(*guests))
