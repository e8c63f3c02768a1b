"""The spool file is damaged, deleted or replaced by an older copy: only what it alone held is lost; no doubles."""

import os
import random
import shutil
import sqlite3
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from uuid import UUID

import pytest
from tools.harness.waiting import eventually, wait_seconds

from support.daemon import Daemon
from support.faults import Fleet, Reliability, count_fleet, fleet, frames_on_disk, sample_ms, store_closed

GUESTS = 5
LINES_PER_ROUND = 100
# Enough to go on until the damage is done and noticed, which is when the next line is spooled.
LINES_TO_NOTICE_BY = 240
# More than the agents have under way, so that some of it is acknowledged and is nowhere but in the file.
WAITING = 8 * GUESTS
PARTS = ("spool.db", "spool.db-wal", "spool.db-shm")


def truncated(spool: Path) -> None:
    file = all_in_one_file(spool)
    os.truncate(file, file.stat().st_size // 2)


def overwritten(spool: Path) -> None:
    for part in PARTS[:2]:
        if (spool / part).exists():
            (spool / part).write_bytes(random.randbytes((spool / part).stat().st_size))


def overwritten_in_the_middle(spool: Path) -> None:
    """The page on which one of the frames lies: the pages beside it may be free, and nothing would be damaged."""
    file = all_in_one_file(spool)
    with closing(sqlite3.connect(file)) as connection:
        payloads = connection.execute("SELECT payload FROM frame ORDER BY seq").fetchall()
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    ((payload,), content) = (payloads[len(payloads) // 2], file.read_bytes())
    with file.open("r+b") as damaged:
        damaged.seek(content.index(payload[:500]) // page_bytes * page_bytes)
        damaged.write(random.randbytes(page_bytes))


def all_in_one_file(spool: Path) -> Path:
    """What the log holds is in the file first, so that the damage is met where the frames are."""
    with closing(sqlite3.connect(spool / PARTS[0])) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return spool / PARTS[0]


def deleted(spool: Path) -> None:
    for part in PARTS:
        (spool / part).unlink(missing_ok=True)


def deleted_without_its_log(spool: Path) -> None:
    (spool / PARTS[0]).unlink()


def deleted_with_its_directory(spool: Path) -> None:
    while spool.exists():
        shutil.rmtree(spool, ignore_errors=True)  # guestd may make a file in it meanwhile


@pytest.mark.parametrize(
    "damage",
    [truncated, overwritten, overwritten_in_the_middle, deleted, deleted_without_its_log, deleted_with_its_directory],
    ids=lambda damage: damage.__name__,
)
def test_a_damaged_file_costs_what_only_it_held(
    daemon: Daemon, reliability: Reliability, damage: Callable[[Path], None]
) -> None:
    rounds = reliability.rounds(quick=1, full=5)
    held: defaultdict[UUID, set[int]] = defaultdict(set)
    with fleet(daemon, count=rounds * LINES_PER_ROUND, guests=GUESTS) as load:
        for _ in range(rounds):
            _work(daemon, load)
            with store_closed(daemon.dsn):
                eventually(lambda: daemon.metric("guestd_spool_frames") >= WAITING, "frames wait")
                daemon.kill()
                _note_held(daemon, held)
                damage(daemon.spool)
        daemon.start()
        load.finish(daemon)
    assert daemon.stop() == 0
    tally = count_fleet(daemon.dsn, load.manifest, destroyed=held)
    assert tally.destroyed
    reliability.record(f"the spool's file {damage.__name__.replace('_', ' ')}", rounds, tally)


def test_an_older_copy_that_is_put_back_costs_what_came_after_it_and_was_not_stored(
    daemon: Daemon, reliability: Reliability
) -> None:
    rounds = reliability.rounds(quick=2, full=10)
    held: defaultdict[UUID, set[int]] = defaultdict(set)
    copy = daemon.directory / "copy"
    with fleet(daemon, count=3 * rounds * LINES_PER_ROUND, guests=GUESTS) as load:
        for _ in range(rounds):
            _work(daemon, load)
            daemon.kill()
            shutil.copytree(daemon.spool, copy)
            _work(daemon, load)
            with store_closed(daemon.dsn):
                eventually(lambda: daemon.metric("guestd_spool_frames") >= WAITING, "frames wait")
                daemon.kill()
                _note_held(daemon, held)
                shutil.rmtree(daemon.spool)
                copy.rename(daemon.spool)
        daemon.start()
        load.finish(daemon)
    assert daemon.stop() == 0
    tally = count_fleet(daemon.dsn, load.manifest, destroyed=held)
    reliability.record("the spool's file rolled back to an older copy", rounds, tally)


@pytest.mark.parametrize("damage", [deleted, deleted_with_its_directory], ids=lambda damage: damage.__name__)
def test_a_file_that_is_deleted_under_guestd_is_noticed_and_what_it_held_is_stored(
    daemon: Daemon, reliability: Reliability, damage: Callable[[Path], None]
) -> None:
    rounds = reliability.rounds(quick=1, full=5)
    with fleet(daemon, count=rounds * LINES_TO_NOTICE_BY, guests=GUESTS) as load:
        for _ in range(rounds):
            _work(daemon, load)
            with store_closed(daemon.dsn):
                eventually(lambda: daemon.metric("guestd_spool_frames") >= WAITING, "frames wait")
                damage(daemon.spool)
                eventually(lambda: "deleted or replaced" in daemon.page("/readyz")[1], "/readyz reports it")
            assert daemon.process is not None
            assert daemon.process.wait(60) == 1  # systemd starts it again, on a new file
            assert load.is_writing()
        daemon.start()
        load.finish(daemon)
    assert daemon.stop() == 0
    fault = f"the spool's file {damage.__name__.replace('_', ' ')} while guestd runs"
    reliability.record(fault, rounds, count_fleet(daemon.dsn, load.manifest))


def _work(daemon: Daemon, load: Fleet) -> None:
    daemon.start()
    eventually(lambda: daemon.page("/readyz")[0] == 200, "ready")
    wait_seconds(random.uniform(0.2, 0.7))
    assert load.is_writing()


def _note_held(daemon: Daemon, held: dict[UUID, set[int]]) -> None:
    for machine_id, payload in frames_on_disk(daemon):
        held[machine_id].add(sample_ms(payload))
