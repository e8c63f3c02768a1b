"""How many frames are written at once after time-outs: fewer until they fit into the deadline, and more again later."""

from datetime import UTC, datetime
from uuid import UUID

import pytest

from guestd.core.errors import BadFrame
from guestd.ingest.slow_writes import FAST_SECONDS, SlowWrites
from guestd.rows.batch import Prepared

DEADLINE_SECONDS = 60


def batch(*seqs: int) -> list[Prepared]:
    content = BadFrame("json", "")
    return [Prepared(seq, UUID(int=1), datetime.now(UTC), b"", content, None) for seq in seqs]


def write_batch(slow: SlowWrites, frames: list[Prepared], seconds_each: float) -> tuple[int, list[int]]:
    """Write a batch as the writer does: the number of time-outs, and the sizes of what was committed."""
    timeouts, sizes = 0, []
    while frames:
        part = slow.choose(frames)
        assert part == frames[: len(part)] != []
        if len(part) * seconds_each > DEADLINE_SECONDS:
            timeouts += 1
            slow.note_timeout(part)
        else:
            sizes.append(len(part))
            slow.note_written(len(part), len(part) * seconds_each)
            frames = frames[len(part) :]
    return timeouts, sizes


def test_without_time_outs_a_batch_is_written_whole() -> None:
    slow = SlowWrites()
    assert [write_batch(slow, batch(*range(1, 1001)), 0.001) for _ in range(3)] == [(0, [1000])] * 3


@pytest.mark.parametrize("frames", [1, 2, 3, 64, 1000])
def test_frames_that_take_long_are_written_in_parts_that_fit_into_the_deadline(frames: int) -> None:
    slow = SlowWrites()
    timeouts, sizes = write_batch(slow, batch(*range(1, frames + 1)), 20)
    assert sum(sizes) == frames
    assert max(sizes) <= 3
    assert timeouts <= 10
    # The next batch does not time out again.
    assert write_batch(slow, batch(*range(1, frames + 1)), 20)[0] == 0


def test_after_fast_writes_a_batch_is_written_whole_again() -> None:
    slow = SlowWrites()
    write_batch(slow, batch(*range(1, 65)), 20)
    for _ in range(2):
        assert write_batch(slow, batch(*range(1, 1001)), 0.001)[0] == 0
    assert write_batch(slow, batch(*range(1, 1001)), 0.001) == (0, [1000])


def test_writes_that_just_fit_do_not_grow_into_the_next_time_out() -> None:
    slow = SlowWrites()
    slow.note_timeout(batch(1, 2, 3, 4))
    slow.note_written(2, FAST_SECONDS)
    assert len(slow.choose(batch(1, 2, 3, 4))) == 2


def test_time_outs_of_one_frame_that_is_written_alone_are_counted_until_something_is_committed() -> None:
    slow = SlowWrites()
    counts = []
    for part in (batch(1, 2), batch(1), batch(1), batch(1), batch(2)):
        slow.note_timeout(part)
        counts.append(slow.timeouts)
    assert counts == [0, 1, 2, 3, 1]
    slow.note_written(1, 0.1)
    assert slow.timeouts == 0
