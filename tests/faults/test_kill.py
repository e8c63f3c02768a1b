"""kill -9 of guestd under load from agents that number their lines: each is in the tables exactly once."""

import json
import random
import subprocess

from fix_daemon import Daemon, add_machine, command, environment, eventually, let_it_work, rows
from guestd.simulate import machine_ids

GUESTS = 10
LINES_PER_GUEST = 400
PROCESSES = 10
KILLS_AT_LEAST = 10
KILLS_AT_MOST = 15


def test_every_line_survives_kill_9_of_guestd_exactly_once(daemon: Daemon) -> None:
    machines = machine_ids(GUESTS, seed=1)
    for machine_id in machines:
        add_machine(daemon.dsn, machine_id)
    manifest = daemon.directory / "manifest.jsonl"
    fleet = subprocess.Popen(
        command(
            "guestd", "simulate", "--directory", str(daemon.channels), "--guests", str(GUESTS), "--interval", "0.05",
            "--processes", str(PROCESSES), "--count", str(LINES_PER_GUEST), "--manifest", str(manifest),
        ),
        env=environment(),
    )  # fmt: skip
    try:
        kills = 0
        while fleet.poll() is None and kills < KILLS_AT_MOST:
            daemon.start()
            daemon.url()
            let_it_work(random.uniform(0, 0.7))
            daemon.kill()
            kills += 1
        assert kills >= KILLS_AT_LEAST, "the fleet was done too early: this proves little"
        daemon.start()
        assert fleet.wait(60) == 0
        eventually(lambda: daemon.metric("guestd_spool_frames") == 0, "the spool is empty")
    finally:
        fleet.kill()
        fleet.wait()
    assert daemon.stop() == 0
    sent = {line["machine"]: line for line in map(json.loads, manifest.read_text().splitlines())}
    assert len(sent) == GUESTS
    assert {(line["sent"], line["acknowledged"], line["given_up"]) for line in sent.values()} == {
        (LINES_PER_GUEST, LINES_PER_GUEST, 0)
    }
    stored = dict(rows(daemon.dsn, 'SELECT "machineId"::text, count(*) FROM "SystemMetrics" GROUP BY 1'))
    assert stored == dict.fromkeys(sent, LINES_PER_GUEST)
    processes = dict(rows(daemon.dsn, 'SELECT "machineId"::text, count(*) FROM "ProcessSnapshot" GROUP BY 1'))
    assert processes == dict.fromkeys(sent, LINES_PER_GUEST * PROCESSES)
    assert rows(daemon.dsn, 'SELECT count(*) FROM "QuarantinedFrame"') == [(0,)]
