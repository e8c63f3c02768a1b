"""Real guests on a real libvirtd, discovered through it: rows match the domains, every sample is stored once.

This is the part that `./dev test` runs; tests/lab/test_faults.py is the rest.
"""

import signal

import pytest
from tools.harness.waiting import eventually

from support.daemon import rows
from support.faults import Reliability
from support.lab import BOOT_SECONDS, World, register

pytestmark = pytest.mark.timeout(900)


def test_a_paused_guest_continues_where_it_stopped(world: World, reliability: Reliability) -> None:
    (guest,) = world.take()
    world.status_becomes(guest, "running")
    guest.virsh("suspend")
    world.status_becomes(guest, "suspended")
    eventually(lambda: world.daemon.metric("guestd_spool_frames") == 0, "what it had written is stored")
    assert world.daemon.metric("guestd_channels_connected") == 1
    guest.virsh("resume")
    world.status_becomes(guest, "running")
    guest.wait_for_samples()
    reliability.record("a guest is paused and resumed", 1, world.settle(guest))


def test_libvirtd_is_not_needed_for_samples(world: World, reliability: Reliability) -> None:
    (guest,) = world.take()
    for number in (signal.SIGTERM, signal.SIGKILL):
        world.lab.stop_libvirtd(number)
        guest.wait_for_samples()
        world.lab.start_libvirtd()
        guest.wait_for_samples()
    world.lab.signal_libvirtd(signal.SIGSTOP)
    guest.wait_for_samples(20)
    world.lab.signal_libvirtd(signal.SIGCONT)
    reliability.record("libvirtd is stopped, killed, hung", 3, world.settle(guest))


def test_a_channel_that_is_unplugged_and_replugged_continues(world: World, reliability: Reliability) -> None:
    (guest,) = world.take()
    guest.unplug_channel()
    eventually(lambda: world.daemon.metric("guestd_channels") == 0, "guestd drops it")
    guest.plug_channel()
    guest.wait_for_samples()
    reliability.record("a channel is unplugged", 1, world.settle(guest))


def test_a_reset_without_end_of_stream_begins_a_new_run(world: World, reliability: Reliability) -> None:
    (guest,) = world.take()
    guest.virsh("reset")
    guest.wait_for_new_run(1)
    assert world.daemon.metric("guestd_channels_lost_total") == 0
    reliability.record("a guest is reset", 1, world.settle(guest))


def test_an_undefined_guest_leaves_samples_but_no_channel(world: World, reliability: Reliability) -> None:
    (guest,) = world.take()
    guest.virsh("destroy")
    world.status_becomes(guest, "off")
    guest.virsh("undefine")
    eventually(lambda: world.daemon.metric("guestd_channels") == 0, "guestd drops its channel")
    eventually(lambda: world.daemon.metric("guestd_spool_frames") == 0, "all is stored")
    assert world.samples(guest) == world.daemon.metric("guestd_frames_accepted_total")
    reliability.record("a guest is destroyed and undefined", 1, world.count_samples())


def test_the_agent_itself_reports_a_real_guest(world: World) -> None:
    guest = world.guests.boot("lab.interval=1")
    world.in_use.append(guest)
    register(world.daemon.dsn, guest)
    world.daemon.start()
    eventually(lambda: world.samples(guest) >= 3, "three samples are in the tables", BOOT_SECONDS)
    guest.virsh("destroy")  # nothing counts its samples for a later test
    ((memory_kib, uptime),) = rows(world.daemon.dsn, 'SELECT max("totalMemoryKB"), max("uptime") FROM "SystemMetrics"')
    assert 100_000 < memory_kib < 176 * 1024
    assert uptime < BOOT_SECONDS * 2
    names = {name for (name,) in rows(world.daemon.dsn, 'SELECT DISTINCT "name" FROM "ProcessSnapshot"')}
    assert {"kthreadd", "python3.11"} <= names
