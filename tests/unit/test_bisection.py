"""Which frames of a batch are written after failures, and that the frame that fails alone is found."""

import random
from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

import pytest

from guestd.core.errors import BadFrame
from guestd.ingest.bisection import TRIES, Bisection
from guestd.rows.batch import Prepared


def batch(*seqs: int) -> list[Prepared]:
    content = BadFrame("json", "")
    return [Prepared(seq, UUID(int=1), datetime.now(UTC), b"", content, None) for seq in seqs]


def write_all(bisection: Bisection, frames: Sequence[Prepared], faulty: set[int]) -> tuple[list[int], int]:
    """Write frames as the writer does; returns those that were quarantined, and how often writing failed."""
    quarantined: list[int] = []
    failures = 0
    while frames:
        part = bisection.choose(frames)
        assert part == frames[: len(part)]
        if part[0].seq == bisection.found_seq:
            quarantined.append(part[0].seq)
            bisection.note_quarantined()
            frames = frames[1:]
        elif faulty & {frame.seq for frame in part}:
            failures += 1
            assert bisection.note_failure(part)
        else:
            frames = frames[len(part) :]
    return quarantined, failures


@pytest.mark.parametrize("faulty", [{1}, {8}, {37}, {64}, {1, 2}, {1, 33, 64}, set(range(1, 65))])
def test_each_frame_that_always_fails_is_found_alone(faulty: set[int]) -> None:
    quarantined, failures = write_all(Bisection(), batch(*range(1, 65)), faulty)
    assert quarantined == sorted(faulty)
    assert failures <= TRIES + 7 * len(faulty)


def test_any_frames_of_any_batch_are_found_and_no_others() -> None:
    chance = random.Random(1)
    bisection = Bisection()
    for first in range(1, 20_000, 100):
        seqs = range(first, first + chance.randrange(1, 100))
        faulty = {seq for seq in seqs if chance.random() < 0.05}
        assert write_all(bisection, batch(*seqs), faulty)[0] == sorted(faulty)


def test_a_batch_that_fails_fewer_times_than_it_is_tried_is_written_whole() -> None:
    bisection, frames = Bisection(), batch(1, 2, 3)
    for _ in range(TRIES - 1):
        assert bisection.note_failure(bisection.choose(frames))
    assert bisection.choose(frames) == frames


def test_failures_of_different_batches_are_not_added_up() -> None:
    bisection = Bisection()
    for seq in range(1, 10 * TRIES, 2):
        frames = batch(seq, seq + 1)
        assert bisection.choose(frames) == frames
        assert bisection.note_failure(frames)


def test_a_frame_that_cannot_be_quarantined_either_is_not_the_reason_and_the_whole_batch_is_tried_again() -> None:
    bisection, frames = Bisection(), batch(1, 2)
    while bisection.found_seq is None:
        assert bisection.note_failure(bisection.choose(frames))
    assert not bisection.note_failure(bisection.choose(frames))
    assert bisection.found_seq is None
    assert bisection.choose(frames) == frames


def test_a_frame_that_turns_out_to_be_committed_is_not_quarantined() -> None:
    bisection, frames = Bisection(), batch(1, 2, 3)
    while bisection.found_seq is None:
        assert bisection.note_failure(bisection.choose(frames))
    assert bisection.choose(frames[1:]) == frames[1:]
    assert bisection.found_seq is None
