"""Turns: a machine that sends little is never stopped, all others together get a part of the writer."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd.ingest.turns import LIGHT, MAX_OBJECTS, TURN_ROWS_PER_SECOND, Turns, estimate_rows, rows_beyond_estimate

HOSTILE, GUESTS = UUID(int=1), [UUID(int=number) for number in range(2, 12)]
BURST = int(LIGHT.burst)


def with_guests(now_seconds: float = 0.0) -> Turns:
    turns = Turns()
    for guest in GUESTS:
        assert turns.take_light(guest, now_seconds, 100, 0)
    return turns


@pytest.mark.parametrize(
    ("payload", "rows"),
    [
        (b"", 5),
        (b'{"type":"metrics"}', 6),
        (b"{" * 1000, 1005),
        (b"{" * 10_000_000, 5 + MAX_OBJECTS + 10_000_000 // 1024),
        (b"x" * 4096, 9),
        (b"\\" * 1000, 15),
        (b'{"exe_path":"/"}' * 2000, 5 + 31 + 2000 * 3),
    ],
)
def test_the_work_of_a_frame_is_estimated_by_its_objects_its_size_and_its_escapes(payload: bytes, rows: int) -> None:
    assert estimate_rows(payload) == rows


@given(st.integers(0, 60_000), st.integers(0, 40_000), st.integers(0, 3000), st.integers(0, 3000))
def test_rows_beyond_the_estimate_are_those_that_it_did_not_show(
    rows: int, objects: int, applications: int, escapes: int
) -> None:
    payload = b"{" * objects + b'exe_path"' * applications + b"\\" * escapes
    assert rows_beyond_estimate(rows, payload) == max(0, rows - estimate_rows(payload))


def test_a_machine_that_sends_what_machines_send_is_never_stopped() -> None:
    turns = with_guests()
    for second in range(10_000):
        assert turns.take_light(GUESTS[0], second, 450, 0)


def test_a_machine_that_sends_more_takes_turns_until_it_has_been_quiet() -> None:
    turns = with_guests()
    assert turns.take_light(HOSTILE, 0, BURST, 0)
    assert not turns.take_light(HOSTILE, 0, 100, 0)
    assert not turns.is_light(HOSTILE, 0.1, 100, 0)
    assert turns.is_light(HOSTILE, 0.2, 100, 0)


def test_one_frame_of_much_work_takes_a_turn_also_if_it_is_the_first() -> None:
    assert not with_guests().take_light(HOSTILE, 0, BURST + 1, 0)


def test_what_a_machine_did_not_send_while_it_was_silent_it_may_send_at_once() -> None:
    turns = with_guests()
    assert turns.take_light(HOSTILE, 0, BURST + 600 * 500, 600)
    assert not turns.take_light(HOSTILE, 0, 1, 600)


def test_all_heavy_machines_together_get_a_part_of_the_writer() -> None:
    turns = with_guests()
    assert turns.wait_seconds(1) == 0
    turns.take_turn(1, TURN_ROWS_PER_SECOND)
    assert turns.wait_seconds(1) == 1
    turns.take_turn(1, TURN_ROWS_PER_SECOND)
    assert turns.wait_seconds(1.5) == 1.5
    assert turns.wait_seconds(4) == 0


def test_when_most_machines_send_what_they_have_kept_there_are_no_turns() -> None:
    turns = with_guests()
    for guest in GUESTS[:5]:
        turns.note_heavy(guest, 1)
    assert not turns.are_most_heavy(1)
    turns.note_heavy(GUESTS[5], 1)
    assert turns.are_most_heavy(1)
    assert not turns.are_most_heavy(12)


def test_rows_that_were_not_estimated_are_charged_to_the_machine_or_to_those_that_take_turns() -> None:
    turns = with_guests()
    turns.charge(GUESTS[0], 0, BURST)
    assert not turns.is_light(GUESTS[0], 0, 1, 0)
    assert turns.wait_seconds(0) == 0
    turns.note_heavy(HOSTILE, 0)
    turns.charge(HOSTILE, 0, TURN_ROWS_PER_SECOND)
    assert turns.wait_seconds(0) == 1


def test_after_a_batch_with_a_heavy_machine_the_others_have_three_times_as_long() -> None:
    turns = with_guests()
    turns.note_stored([HOSTILE, *GUESTS], 5, 2)
    assert turns.wait_seconds(5) == 0
    turns.note_heavy(HOSTILE, 5)
    turns.note_stored(GUESTS, 5, 2)
    assert turns.wait_seconds(5) == 0
    turns.note_stored([HOSTILE, *GUESTS], 5, 2)
    assert turns.wait_seconds(5) == 6
