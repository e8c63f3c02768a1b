"""The spool's disk is really full: a small tmpfs that the frames of an outage fill to the last block."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tools.harness.waiting import eventually

from support.daemon import Daemon
from support.disk import small_disk_at
from support.faults import Reliability, Tally, count_fleet, fleet, store_closed

# Their lines are nearly twice what the disk holds: some are stored before the store is closed.
GUESTS = 8
LINES_PER_GUEST = 300


@pytest.fixture
def small_disk(directory: Path) -> Iterator[Path]:
    """32 MiB for the spool, half of them for its reserve file; the fleet needs more."""
    disk = directory / "disk"
    disk.mkdir()
    with small_disk_at(disk, mebibytes=32):
        yield disk


def test_a_full_disk_loses_nothing_and_empties_by_itself_when_the_store_is_back(
    small_disk: Path, daemon: Daemon, reliability: Reliability
) -> None:
    daemon.spool = small_disk / "spool"
    rounds, tally = reliability.rounds(quick=1, full=5), Tally()
    daemon.start()
    for number in range(rounds):
        eventually(lambda: daemon.page("/readyz")[0] == 200, "ready")
        first = number * GUESTS
        with fleet(daemon, count=LINES_PER_GUEST, guests=GUESTS, interval_seconds=0, processes=50, first=first) as load:
            # A guest of which guestd does not know yet is not read while the store is away.
            eventually(lambda: daemon.metric("guestd_channels_connected") == GUESTS, "all channels are read")
            with store_closed(daemon.dsn):
                eventually(lambda: "spool: it cannot be written" in daemon.page("/readyz")[1], "the disk is full", 60)
                # It must come up again on the full disk, or nothing would ever empty it.
                daemon.kill()
                daemon.start()
                eventually(lambda: daemon.metric("guestd_spool_frames") > 0, "the spool is opened")
            load.finish(daemon)
        assert daemon.page("/readyz") == (200, "ready\n")
        tally += count_fleet(daemon.dsn, load.manifest)
    assert daemon.stop() == 0
    assert tally.stored == rounds * GUESTS * LINES_PER_GUEST
    reliability.record("the spool's disk full, then freed", rounds, tally)
