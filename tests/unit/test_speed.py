"""A guard against making the hot path several times dearer by accident: a ratio within one run, of processor time.

`./dev bench ingest` measures; this only says that a frame has not become far more work than it is.
"""

import statistics
import time
from collections.abc import Callable

from guestd.rows.normalise import GuestHistory
from guestd.simulator.guest import Guest
from support.rows import rows_of

# About 1 here, on Python 3.11; whoever makes a frame several times as dear learns of it.
MOST_TIMES_THE_REFERENCE = 4.0
MESSAGES, PROCESSES = 10, 100


def reference(lines: list[bytes]) -> int:
    """Plain Python about as long as what is guarded: tuples made of a dict, for every process of the messages."""
    made = 0
    for number in range(len(lines) * PROCESSES):
        row = {str(place): place * number for place in range(13)}
        made += len(tuple(value for value in row.values() if value >= 0))
    return made


def to_rows(lines: list[bytes]) -> int:
    stream = GuestHistory()
    return sum(rows_of(line, stream).count for line in lines)


def cpu_seconds(work: Callable[[list[bytes]], int], lines: list[bytes]) -> float:
    began = time.process_time()
    assert work(lines) >= MESSAGES * PROCESSES
    return time.process_time() - began


def test_a_row_costs_no_more_than_a_few_times_a_plain_loop() -> None:
    guest = Guest(1, seed=1, processes=PROCESSES, start_s=1_759_314_000)
    lines = [b'{"type":"metrics",' + guest.body(1_759_314_630_000 + 1000 * each)[1:] for each in range(MESSAGES)]
    ratios = [cpu_seconds(to_rows, lines) / cpu_seconds(reference, lines) for _ in range(15)]
    assert statistics.median(ratios) < MOST_TIMES_THE_REFERENCE, ratios
