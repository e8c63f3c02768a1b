"""What happens to a host: its clock is stepped, a thousand guests come at once and go, one guest fills its share of the
spool, a second guestd is started."""

import shutil
from collections import defaultdict
from pathlib import Path
from uuid import UUID

from tools.harness.waiting import eventually, wait_seconds

from support.daemon import Daemon, add_machine, faketime_library, rows
from support.faults import Reliability, Tally, count_fleet, count_samples, fleet, sample_line, store_closed

CLOCK_OFFSETS_SECONDS = (600, 0, -600, 0, 86_400, 0, -86_400, 0, 60, -60, 0)
SAMPLES_PER_STEP = 20


def with_clock(daemon: Daemon, file: Path) -> None:
    """Give guestd a wall clock with the offset in the file; the monotonic clock stays true."""
    daemon.wrapper = [
        "env", f"LD_PRELOAD={faketime_library()}", f"FAKETIME_TIMESTAMP_FILE={file}", "FAKETIME_NO_CACHE=1",
        "FAKETIME_DONT_FAKE_MONOTONIC=1", "NO_FAKE_STAT=1",
    ]  # fmt: skip


def step(file: Path, offset_seconds: int) -> None:
    """Put the clock forward or back by so much, from its true time."""
    new = file.with_suffix(".new")
    new.write_text(f"{offset_seconds:+d}\n")
    new.rename(file)


def test_a_host_clock_that_is_stepped_loses_nothing_and_is_followed_when_it_is_right_again(
    daemon: Daemon, reliability: Reliability
) -> None:
    rounds = reliability.rounds(quick=1, full=5)
    clock = daemon.directory / "clock"
    step(clock, 0)
    with_clock(daemon, clock)
    guests = {machine_id: daemon.guest(machine_id) for machine_id in (add_machine(daemon.dsn) for _ in range(5))}
    sent: defaultdict[UUID, list[int]] = defaultdict(list)
    daemon.start()
    number = 0
    for offset_seconds in CLOCK_OFFSETS_SECONDS * rounds:
        step(clock, offset_seconds)
        for _ in range(SAMPLES_PER_STEP):
            number += 1
            for machine_id, guest in guests.items():
                guest.write(sample_line(number))
                sent[machine_id].append(number)
        eventually(lambda: count_samples(daemon.dsn, sent).lost == 0, "all are stored", 60)
        at = 'SELECT max(abs(extract(epoch FROM "receivedAt" - now()))) FROM "SystemMetrics" WHERE "uptime" = %s'
        ((away_seconds,),) = rows(daemon.dsn, at, number)
        # A step back of less than five minutes is waited out, not followed: the order of a machine's frames goes first.
        assert abs(float(away_seconds) - abs(offset_seconds)) < 300
    assert daemon.stop() == 0
    reliability.record(
        "the host's clock stepped forward and back, by up to a day",
        len(CLOCK_OFFSETS_SECONDS) * rounds,
        count_samples(daemon.dsn, sent),
    )


def test_a_thousand_sockets_at_once_are_read_and_leave_nothing_behind(daemon: Daemon, reliability: Reliability) -> None:
    rounds, tally = reliability.rounds(quick=1, full=5), Tally()
    daemon.start()
    eventually(lambda: daemon.page("/readyz")[0] == 200, "ready")
    for number in range(rounds):
        with fleet(daemon, guests=1000, count=2, interval_seconds=1, processes=2, first=1000 * number) as load:
            eventually(lambda: daemon.metric("guestd_channels_connected") == 1000, "all are connected", 100)
            load.finish(daemon)
        eventually(lambda: daemon.metric("guestd_channels") == 0, "their channels are dropped", 60)
        eventually(lambda: descriptors(daemon) < 100, "their descriptors are closed")
        tally += count_fleet(daemon.dsn, load.manifest)
    assert daemon.stop() == 0
    reliability.record("1,000 sockets appear at once and vanish", rounds, tally)


def descriptors(daemon: Daemon) -> int:
    assert daemon.process is not None
    return sum(1 for _ in Path(f"/proc/{daemon.process.pid}/fd").iterdir())


def test_a_guest_that_fills_its_share_during_an_outage_does_not_hold_up_the_others(
    daemon: Daemon, reliability: Reliability
) -> None:
    rounds, tally = reliability.rounds(quick=1, full=10), Tally()
    daemon.spool_max_bytes = 20_000_000
    daemon.start()
    for number in range(rounds):
        eventually(lambda: daemon.page("/readyz")[0] == 200, "ready")
        first = 100 * number
        with (
            fleet(daemon, guests=9, first=first, count=100, interval_seconds=0.1) as modest,
            fleet(daemon, guests=1, first=first + 99, count=600, interval_seconds=0, processes=200) as greedy,
        ):
            with store_closed(daemon.dsn):
                eventually(
                    lambda: daemon.metric("guestd_spool_bytes") > 1_800_000, "its share, a tenth, is nearly full"
                )
                assert modest.is_writing()
                assert modest.process.wait(100) == 0  # all that they sent is on disk
                assert greedy.is_writing()
            greedy.finish(daemon)
        tally += count_fleet(daemon.dsn, greedy.manifest) + count_fleet(daemon.dsn, modest.manifest)
    assert daemon.stop() == 0
    reliability.record("one guest fills its share of the spool during an outage", rounds, tally)


def test_a_second_guestd_on_one_spool_is_refused_under_load_and_takes_over_when_the_first_is_gone(
    daemon: Daemon, reliability: Reliability
) -> None:
    rounds = reliability.rounds(quick=2, full=20)
    second = Daemon(daemon.directory, daemon.dsn, "second.log")
    with fleet(daemon, count=rounds * 60, interval_seconds=0.2) as load:
        try:
            for _ in range(rounds):
                daemon.start()
                second.start()
                eventually(lambda: [daemon.ended(), second.ended()].count(None) == 1, "one is refused")
                running, refused = (daemon, second) if daemon.ended() is None else (second, daemon)
                assert refused.ended() == 78
                wait_seconds(0.3)
                assert load.is_writing()
                running.kill()
        finally:
            if second.ended() is None:
                second.kill()
        daemon.start()
        load.finish(daemon)
    assert daemon.stop() == 0
    tally = count_fleet(daemon.dsn, load.manifest)
    reliability.record("two daemons on one spool, the running one killed", rounds, tally)


def test_two_hosts_that_use_copies_of_one_spool_lose_and_double_nothing(
    daemon: Daemon, reliability: Reliability
) -> None:
    rounds, tally = reliability.rounds(quick=1, full=10), Tally()
    home = daemon.directory / "clone"
    home.mkdir()
    clone = Daemon(home, daemon.dsn)
    hosts = (daemon, clone)
    try:
        for number in range(rounds):
            _clone_spool(daemon, clone)
            first = 100 * number
            with (
                fleet(daemon, guests=5, count=300, interval_seconds=0.1, first=first) as load,
                fleet(clone, guests=5, count=300, interval_seconds=0.1, first=first + 50) as other_load,
            ):
                for host in hosts:
                    host.start()
                for host in hosts:
                    _is_ready(host)
                    _reads(host, channels=5)
                with store_closed(daemon.dsn):
                    for host in hosts:
                        _has_frames(host)
                        host.kill()
                # One stores under these numbers while the other is down.
                for host, each in zip(hosts, (load, other_load), strict=True):
                    host.start()
                    each.finish(host)
                    assert host.stop() == 0
            for each in (load, other_load):
                tally += count_fleet(daemon.dsn, each.manifest)
    finally:
        if clone.process is not None and clone.ended() is None:
            clone.kill()
    reliability.record("a spool cloned to a second host, one stores while the other is down", rounds, tally)


def _is_ready(daemon: Daemon) -> None:
    eventually(lambda: daemon.page("/readyz")[0] == 200, "ready")


def _reads(daemon: Daemon, channels: int) -> None:
    eventually(lambda: daemon.metric("guestd_channels_connected") == channels, "all channels are read")


def _has_frames(daemon: Daemon) -> None:
    eventually(lambda: daemon.metric("guestd_spool_frames") >= 20, "frames wait")


def _clone_spool(daemon: Daemon, clone: Daemon) -> None:
    daemon.start()
    _is_ready(daemon)
    assert daemon.stop() == 0
    shutil.rmtree(clone.spool, ignore_errors=True)
    shutil.copytree(daemon.spool, clone.spool)
