"""kill -9 of guestd under load from agents that number their lines: each is in the tables exactly once."""

import random
import subprocess

from fix_daemon import Daemon, add_machine, command, environment, eventually, let_it_work, rows
from fix_faults import Reliability, fleet_counted
from guestd.simulate import machine_ids

GUESTS = 10
LINES_PER_KILL = 30
PROCESSES = 10


def test_every_line_survives_kill_9_of_guestd_exactly_once(daemon: Daemon, reliability: Reliability) -> None:
    kills = reliability.rounds(quick=10, full=40)
    lines_per_guest = kills * LINES_PER_KILL
    machines = machine_ids(GUESTS, seed=1)
    for machine_id in machines:
        add_machine(daemon.dsn, machine_id)
    manifest = daemon.directory / "manifest.jsonl"
    fleet = subprocess.Popen(
        command(
            "guestd", "simulate", "--directory", str(daemon.channels), "--guests", str(GUESTS), "--interval", "0.05",
            "--processes", str(PROCESSES), "--count", str(lines_per_guest), "--manifest", str(manifest),
        ),
        env=environment(),
    )  # fmt: skip
    try:
        for _ in range(kills):
            daemon.start()
            daemon.url()
            let_it_work(random.uniform(0, 0.7))
            assert fleet.poll() is None, "the fleet was done too early: this proves little"
            daemon.kill()
        daemon.start()
        assert fleet.wait(120) == 0
        eventually(lambda: daemon.metric("guestd_spool_frames") == 0, "the spool is empty")
    finally:
        fleet.kill()
        fleet.wait()
    assert daemon.stop() == 0
    books = fleet_counted(daemon.dsn, manifest)
    assert (books.sent, books.stored) == (GUESTS * lines_per_guest, GUESTS * lines_per_guest)
    processes = dict(rows(daemon.dsn, 'SELECT "machineId", count(*) FROM "ProcessSnapshot" GROUP BY 1'))
    assert processes == dict.fromkeys(machines, lines_per_guest * PROCESSES)
    reliability.record("kill -9 of guestd at random moments under load", kills, books)
