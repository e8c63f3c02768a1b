"""Many guests whose lines do not end: they share one budget of memory, and a slow guest's long line arrives."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from tools.harness.waiting import eventually, wait_seconds

from support.daemon import Daemon, Guest
from support.faults import Reliability, count_samples, sample_line

MEBIBYTE = 2**20
HOSTILE = 200
BUDGET_BYTES = 32 * MEBIBYTE
# Beside the budget: what the allocator keeps of it, the chunk that each channel reads, SQLite's and Python's own.
SPARE_BYTES = 64 * MEBIBYTE


def test_the_memory_for_lines_that_do_not_end_is_bounded_and_a_slow_long_line_arrives(
    daemon: Daemon, reliability: Reliability
) -> None:
    daemon.virtio_lines = f"partial_bytes = {BUDGET_BYTES}\n"
    slow, *hostile = [daemon.guest() for _ in range(1 + HOSTILE)]
    daemon.start()
    eventually(lambda: daemon.metric("guestd_channels_connected") == 1 + HOSTILE, "all channels are connected", 60)
    before_bytes = _peak_bytes(daemon)
    line = sample_line(1).replace(b'{"type"', b'{"padding":%s,"type"' % json.dumps("x" * 1_200_000).encode())
    with ThreadPoolExecutor(HOSTILE) as threads:
        for guest in hostile:
            threads.submit(_write_without_end, guest, 3 * MEBIBYTE)
        for place in range(0, len(line), 50_000):
            slow.write(line[place : place + 50_000])
            wait_seconds(0.05)
        eventually(lambda: daemon.metric("guestd_frames_refused_total", reason="memory") > HOSTILE / 2, "some end", 60)
    sent = {UUID(slow.path.stem): [1]}
    eventually(lambda: count_samples(daemon.dsn, sent).lost == 0, "the slow guest's line is stored", 60)
    assert _peak_bytes(daemon) - before_bytes < BUDGET_BYTES + SPARE_BYTES
    assert daemon.metric("guestd_bugs_total") == 0
    reliability.record("200 guests whose lines do not end", 1, count_samples(daemon.dsn, sent))
    assert daemon.stop() == 0


def _write_without_end(guest: Guest, size_bytes: int) -> None:
    with suppress(OSError):  # guestd gives the line up
        guest.write(b'{"type":"metrics","x":"' + b"x" * size_bytes)


def _peak_bytes(daemon: Daemon) -> int:
    assert daemon.process is not None
    lines = Path(f"/proc/{daemon.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
