"""What an agent measured while guestd was away: samples are stored when they were taken and in their order, whatever
the agent's clock shows; roll-ups and the latest sample follow."""

import json
import os
import subprocess
from collections import Counter
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from statistics import median
from uuid import UUID, uuid4

from tools.harness.waiting import eventually, wait_seconds

from guestd.simulator import machine_ids
from support.daemon import Daemon, add_machine, command, execute, faketime_library, rows, started
from support.faults import sample_line

SAMPLES = 'SELECT "timestamp" FROM "SystemMetrics" WHERE "machineId" = %s ORDER BY "uptime"'
# The agent's clocks run so much faster. It sends again what is not acknowledged within 5 s of its own time.
SPEED = 20
AWAY_SECONDS = 600
INTERVAL_SECONDS = 10
YEAR_SECONDS = 365 * 86_400
SEED = 7
NO_LIMITS = "[limits]\nbytes_per_second = 1_000_000_000\nframes_per_second = 1_000_000\n"


def made_at(number: int, boot_id: UUID, at: datetime) -> bytes:
    """A numbered line that claims this time."""
    line = json.loads(sample_line(number, boot_id))
    line["timestamp"] = at.isoformat(timespec="milliseconds")
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def whole_ms(moment: datetime) -> datetime:
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def stored(daemon: Daemon, machine_id: UUID, count: int) -> list[datetime]:
    """The times of a machine's samples in the order of their numbers, when there are as many."""
    eventually(lambda: len(rows(daemon.dsn, SAMPLES, str(machine_id))) >= count, "they are stored", 20)
    return [at for (at,) in rows(daemon.dsn, SAMPLES, str(machine_id))]


def test_lines_that_waited_for_guestd_are_stored_at_their_own_times(daemon: Daemon) -> None:
    machine_id, boot_id, now = add_machine(daemon.dsn), uuid4(), whole_ms(datetime.now(UTC))
    times = [now - timedelta(minutes=8) + number * timedelta(seconds=10) for number in range(49)]
    guest = daemon.guest(machine_id)
    daemon.start()
    guest.write(b"".join(made_at(number, boot_id, at) for number, at in enumerate(times, 1)))
    assert stored(daemon, machine_id, len(times)) == times
    ((latest, received_at),) = rows(daemon.dsn, 'SELECT "timestamp", "receivedAt" FROM "MachineLatest"')
    assert latest == times[-1]
    assert received_at >= now


def test_the_roll_ups_have_such_lines_in_the_hours_in_which_they_were_taken(daemon: Daemon) -> None:
    machine_id, boot_id, now = add_machine(daemon.dsn), uuid4(), whole_ms(datetime.now(UTC))
    # Rolled up before the older ones come.
    newest = made_at(1, uuid4(), now - timedelta(minutes=70))
    times = [now - timedelta(hours=6) + number * timedelta(minutes=7) for number in range(40)]
    guest = daemon.guest(machine_id)
    daemon.start()
    guest.write(newest)
    stored(daemon, machine_id, 1)
    roll_up(daemon.dsn)
    guest.write(b"".join(made_at(number, boot_id, at) for number, at in enumerate(times, 1)))
    stored(daemon, machine_id, 1 + len(times))
    roll_up(daemon.dsn)
    found = rows(daemon.dsn, 'SELECT "bucket", "samples" FROM "SystemMetrics_1h"')
    taken = Counter(at.replace(minute=0, second=0, microsecond=0) for at in [*times, now - timedelta(minutes=70)])
    assert dict(found) == taken


def roll_up(dsn: str) -> None:
    execute(dsn, "SELECT guestd_roll_up_minutes(100000)", "SELECT guestd_roll_up_hours(100000)")


def alone() -> list[str]:
    """What runs a command as on a machine of its own, where this host permits it.

    A sample is then small. One of a machine that runs all these tests has thousands of sockets: sending twenty of them
    takes seconds of a busy processor, each of which is SPEED seconds of the agent.
    """
    options = ["--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    words = ["unshare", *([] if os.geteuid() == 0 else ["--map-root-user"]), *options]
    return words if subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0 else []


def test_what_an_agent_measured_before_guestd_came_is_stored_as_it_was_taken(daemon: Daemon) -> None:
    """The agent itself, minutes of its time before guestd, with a clock that is right or wrong all the time."""
    (simulated,) = machine_ids(1, SEED)
    right, wrong = uuid4(), uuid4()
    simulate = ["simulate", "--guests", "1", "--seed", str(SEED), "--directory", str(daemon.channels)]
    with ExitStack() as running:
        for machine_id, offset_seconds in ((right, 0), (wrong, -YEAR_SECONDS), (simulated, 0)):
            add_machine(daemon.dsn, machine_id)
            channel = daemon.channels / f"{machine_id}.socket"
            words = simulate if machine_id == simulated else ["agent", "--listen", str(channel)]
            agent = [*alone(), *command("guestd", *words, "--interval", str(INTERVAL_SECONDS))]
            clock = f"FAKETIME={offset_seconds - AWAY_SECONDS:+d}s x{SPEED}"
            running.enter_context(started(["env", f"LD_PRELOAD={faketime_library()}", clock, "NO_FAKE_STAT=1", *agent]))
            eventually(channel.exists, "the agent has started")
        wait_seconds(AWAY_SECONDS / SPEED)
        daemon.more_tables = NO_LIMITS
        daemon.start()
        daemon.url()
        for machine_id in (right, wrong, simulated):
            stored(daemon, machine_id, 20)
    for machine_id in (right, wrong, simulated):
        found = rows(
            daemon.dsn,
            'SELECT "timestamp", "receivedAt" FROM "SystemMetrics" WHERE "machineId" = %s ORDER BY "receivedAt"',
            str(machine_id),
        )
        times, received = [at for at, _ in found], [received_at for _, received_at in found]
        assert times == sorted(times)
        spacings = [(later - earlier).total_seconds() for earlier, later in pairwise(times[:20])]
        # While the lines are sent, too, the agent's clocks run faster than guestd's: some come nearer to each other.
        assert sum(spacings) > 19 * INTERVAL_SECONDS / 2
        assert median(spacings) > INTERVAL_SECONDS / 2
        assert timedelta(minutes=5) < received[0] - times[0] < timedelta(minutes=30)
