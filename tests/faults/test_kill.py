"""guestd is ended under load from agents that number their lines: each is in the tables exactly once."""

import random
import sqlite3
from contextlib import closing
from uuid import UUID

from tools.harness.waiting import eventually, wait_seconds

from support.daemon import Daemon, add_machine, rows
from support.faults import (
    Reliability,
    count_fleet,
    count_samples,
    fleet,
    frames_on_disk,
    sample_line,
    sample_number,
)

GUESTS = 10
# A start takes seconds where the machine is busy, and the load must outlast it.
LINES_PER_ROUND = 60
PROCESSES = 10


def test_every_line_survives_kill_9_of_guestd_exactly_once(daemon: Daemon, reliability: Reliability) -> None:
    kills = reliability.rounds(quick=6, full=40)
    lines = kills * LINES_PER_ROUND
    with fleet(daemon, count=lines, guests=GUESTS, processes=PROCESSES) as load:
        for _ in range(kills):
            daemon.start()
            daemon.url()
            wait_seconds(random.uniform(0, 0.7))
            assert load.is_writing()
            daemon.kill()
        daemon.start()
        load.finish(daemon)
    assert daemon.stop() == 0
    tally = count_fleet(daemon.dsn, load.manifest)
    assert (tally.sent, tally.stored) == (GUESTS * lines, GUESTS * lines)
    processes = dict(rows(daemon.dsn, 'SELECT "machineId", count(*) FROM "ProcessSnapshot" GROUP BY 1'))
    assert processes == dict.fromkeys(load.machines, lines * PROCESSES)
    reliability.record("kill -9 of guestd at random moments under load", kills, tally)


def test_a_kill_between_commit_and_trim_stores_nothing_twice(daemon: Daemon, reliability: Reliability) -> None:
    kills = reliability.rounds(quick=3, full=30)
    # Little is taken between two kills: slowly, so that what the agents hold meanwhile fits their buffers.
    lines = kills * LINES_PER_ROUND // 2
    with fleet(daemon, count=lines, guests=GUESTS, processes=PROCESSES, interval_seconds=0.2) as load:
        for _ in range(kills):
            daemon.start()
            eventually(lambda: daemon.page("/readyz")[0] == 200, "ready")
            assert load.is_writing()
            _kill_between_commit_and_trim(daemon)
        daemon.start()
        load.finish(daemon)
    assert daemon.stop() == 0
    reliability.record("kill -9 between COMMIT and the spool's trim", kills, count_fleet(daemon.dsn, load.manifest))


def _kill_between_commit_and_trim(daemon: Daemon) -> None:
    """Take the write lock of the spool's file while frames wait: COMMIT does not need it, the trim behind it does."""
    ledger = 'SELECT "committedSeq" FROM "IngestLedger" WHERE "spoolId" = %s'
    with closing(sqlite3.connect(daemon.spool / "spool.db", isolation_level=None, timeout=30)) as spool:

        def first_waiting() -> int:
            spool.execute("BEGIN IMMEDIATE")
            (seq,) = spool.execute("SELECT min(seq) FROM frame").fetchone()
            if seq is None:
                spool.execute("ROLLBACK")
            return seq or 0

        seq = eventually(first_waiting, "frames wait in the spool")
        (spool_id,) = spool.execute("SELECT spool_id FROM identity").fetchone()
        eventually(lambda: rows(daemon.dsn, ledger, spool_id) >= [(seq,)], "they are committed")
        daemon.kill()
        assert spool.execute("SELECT min(seq) FROM frame").fetchone() == (seq,)
        spool.execute("ROLLBACK")


def test_sigterm_under_load_loses_nothing(daemon: Daemon, reliability: Reliability) -> None:
    stops = reliability.rounds(quick=4, full=30)
    # Twice as many as a quiet machine needs: a busy one takes longer to start and to stop.
    with fleet(daemon, count=2 * stops * LINES_PER_ROUND, guests=GUESTS, processes=PROCESSES) as load:
        for _ in range(stops):
            daemon.start()
            daemon.url()
            wait_seconds(random.uniform(0, 0.7))
            assert load.is_writing()
            assert daemon.stop() == 0
        daemon.start()
        load.finish(daemon)
    assert daemon.stop() == 0
    reliability.record("SIGTERM of guestd under load", stops, count_fleet(daemon.dsn, load.manifest))


def test_of_agents_without_acknowledgement_all_is_stored_that_guestd_had_taken(
    daemon: Daemon, reliability: Reliability
) -> None:
    kills = reliability.rounds(quick=3, full=30)
    guests = {machine_id: daemon.guest(machine_id) for machine_id in (add_machine(daemon.dsn) for _ in range(5))}
    sent: set[tuple[UUID, int]] = set()
    taken: set[tuple[UUID, int]] = set()
    for kill in range(kills):
        daemon.start()
        for number in range(kill * 100, (kill + 1) * 100):
            for machine_id, guest in guests.items():
                guest.write(sample_line(number))
                sent.add((machine_id, number))
        wait_seconds(random.uniform(0, 0.2))
        daemon.kill()
        taken |= {(machine_id, sample_number(payload)) for machine_id, payload in frames_on_disk(daemon)}
        taken |= set(rows(daemon.dsn, 'SELECT "machineId", "uptime" FROM "SystemMetrics"'))
        for guest in guests.values():
            guest.hang_up()
    daemon.start()
    eventually(lambda: daemon.metric("guestd_spool_frames") == 0, "the spool is empty")
    assert daemon.stop() == 0
    numbers = {machine_id: [number for sender, number in sent if sender == machine_id] for machine_id in guests}
    tally = count_samples(daemon.dsn, numbers, sender_gap=len(sent - taken))
    reliability.record("kill -9 of guestd, agents without acknowledgement", kills, tally)
