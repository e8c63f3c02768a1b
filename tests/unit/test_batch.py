"""Batches: where samples are placed in time, when a batch is due, how it is halved."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from guestd.core.errors import BadFrame
from guestd.rows.batch import Limits, Moment, Prepared, digest, find_free_moments, is_due, split_batch
from guestd.wire.line import LineId

START = datetime(2025, 10, 1, tzinfo=UTC)
MACHINES = [UUID(int=number) for number in range(2)]
# So near to each other that they meet.
MOMENTS = st.tuples(st.sampled_from(MACHINES), st.integers(0, 8).map(lambda n: START + n * timedelta(milliseconds=1)))
MILLISECOND = timedelta(milliseconds=1)


@given(st.lists(MOMENTS, max_size=30), st.sets(MOMENTS, max_size=20))
def test_every_frame_gets_a_free_moment_of_its_own(wanted: list[Moment], taken: set[Moment]) -> None:
    moments = find_free_moments(wanted, taken)
    assert len(set(moments)) == len(wanted)
    assert taken.isdisjoint(moments)


@given(st.lists(MOMENTS, max_size=30), st.sets(MOMENTS, max_size=20))
def test_a_frame_is_moved_only_when_needed_and_no_further(wanted: list[Moment], taken: set[Moment]) -> None:
    used = set(taken)
    for (machine_id, wish), (placed_for, moment) in zip(wanted, find_free_moments(wanted, taken), strict=True):
        assert placed_for == machine_id
        free = wish
        while (machine_id, free) in used:
            free += MILLISECOND
        assert moment == free
        used.add((machine_id, moment))


@given(st.lists(MOMENTS, max_size=30), st.sets(MOMENTS, max_size=20))
def test_frames_of_one_time_stay_in_their_order(wanted: list[Moment], taken: set[Moment]) -> None:
    moments = find_free_moments(wanted, taken)
    for wish in set(wanted):
        same = [moment for other, moment in zip(wanted, moments, strict=True) if other == wish]
        assert same == sorted(same)


def test_a_guest_that_repeats_one_time_costs_no_more_than_its_frames() -> None:
    # Walking past all the others each time would be 200 million steps: it would not end within the test's time.
    wanted = [(MACHINES[0], START)] * 20_000
    assert find_free_moments(wanted, set())[-1] == (MACHINES[0], START + 19_999 * MILLISECOND)


def test_a_batch_is_due_when_it_is_large_enough_or_old_enough() -> None:
    limits = Limits(max_frames=10, max_bytes=100, max_age_seconds=0.5)
    assert not is_due(99, 0.49, limits)
    assert is_due(100, 0.0, limits)
    assert is_due(0, 0.5, limits)


def frames(count: int) -> list[Prepared]:
    return [Prepared(seq, MACHINES[0], START, b"", BadFrame("json", ""), None) for seq in range(count)]


@given(st.integers(1, 50))
def test_halves_are_the_batch_in_order(count: int) -> None:
    batch = frames(count)
    first, second = split_batch(batch)
    assert [*first, *second] == batch
    assert len(first) - len(second) in (0, 1)


@given(st.integers(1, 200), st.data())
def test_halving_finds_any_one_frame_in_few_steps(count: int, data: st.DataObject) -> None:
    poisoned = data.draw(st.integers(0, count - 1))
    part, steps = frames(count), 0
    while len(part) > 1:
        first, second = split_batch(part)
        part = list(first if any(frame.seq == poisoned for frame in first) else second)
        steps += 1
    assert part[0].seq == poisoned
    assert steps <= (count - 1).bit_length()


def test_a_line_that_comes_under_another_number_is_known_by_its_mark() -> None:
    bad = BadFrame("json", "")
    held = digest(b"as it was", LineId("b1", 9, "a" * 16), bad)
    assert held == digest(b"written again", LineId("b2", 1, "a" * 16), bad)
    assert held != digest(b"another of that number", LineId("b1", 9, "b" * 16), bad)


def test_a_line_without_a_mark_is_known_by_its_number() -> None:
    bad = BadFrame("json", "")
    assert digest(b"x", LineId("b", 9), bad) == digest(b"y", LineId("b", 9), bad)
    assert digest(b"x", LineId("b", 9), bad) != digest(b"x", LineId("b", 10), bad)
