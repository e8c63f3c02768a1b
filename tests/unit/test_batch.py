"""Batches: where samples are placed in time, when a batch is due, how it is halved."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from guestd.core.errors import BadFrame
from guestd.rows.batch import (
    Limits,
    Moment,
    Placed,
    Prepared,
    digest,
    find_free_moments,
    is_due,
    keep_order,
    split_batch,
)
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


def test_a_guest_whose_times_lie_within_a_span_of_used_ones_costs_no_more_than_its_frames_and_the_span() -> None:
    # Each of the later ones would walk to the end of the span: 400 million steps.
    wanted = [(MACHINES[0], START)] * 20_000 + [(MACHINES[0], START + n * MILLISECOND) for n in range(20_000)]
    assert find_free_moments(wanted, set())[-1] == (MACHINES[0], START + 39_999 * MILLISECOND)
    taken = {(MACHINES[0], START + n * MILLISECOND) for n in range(20_000)}
    wanted = [(MACHINES[0], START + n * MILLISECOND) for n in reversed(range(20_000))]
    assert set(find_free_moments(wanted, taken)).isdisjoint(taken)


def of_run(machine_id: UUID, seq: int, boot_id: str = "b") -> Prepared:
    return Prepared(seq, machine_id, START, b"", BadFrame("json", ""), None, line_id=LineId(boot_id, seq))


@given(st.lists(MOMENTS, max_size=30), st.sets(MOMENTS, max_size=20), st.integers(0, 8))
def test_the_samples_of_a_run_are_in_the_order_of_its_lines(
    wanted: list[Moment], taken: set[Moment], last: int
) -> None:
    lines = [of_run(machine_id, seq) for seq, (machine_id, _) in enumerate(wanted, 1)]
    before = {machine_id: Placed("b", 0, START + last * MILLISECOND) for machine_id in MACHINES}
    moments = find_free_moments(keep_order(wanted, lines, before), taken)
    for machine_id in MACHINES:
        times = [before[machine_id].at, *(at for machine, at in moments if machine == machine_id)]
        assert times == sorted(set(times))


def test_lines_of_another_run_late_lines_and_messages_without_a_number_are_not_moved() -> None:
    machine_id, other = MACHINES
    placed = {machine_id: Placed("b", 7, START + MILLISECOND)}
    unnumbered = Prepared(9, machine_id, START, b"", BadFrame("json", ""), None)
    lines = [of_run(machine_id, 6), of_run(machine_id, 8, "next"), of_run(other, 8), unnumbered]
    wanted = [(line.machine_id, START) for line in lines]
    assert keep_order(wanted, lines, placed) == wanted


def test_a_sample_far_ahead_of_a_receipt_does_not_push_the_next_one_there() -> None:
    """The host's clock was ahead, and was set back."""
    machine_id, _ = MACHINES
    placed = {machine_id: Placed("b", 1, START + timedelta(days=1))}
    assert keep_order([(machine_id, START)], [of_run(machine_id, 2)], placed) == [(machine_id, START)]


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
