"""What the clients of a broker decide: another client with our id, reasons as text, lines that must be shorter."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd.agent.outbox import Outbox
from guestd.agent.packet_limit import LEARNED_SECONDS, SMALLEST_LEARNED_BYTES, PacketLimit
from guestd.agent.payload import shorten
from guestd.core.broker import (
    EARLY_CLOSES,
    EARLY_SECONDS,
    TAKEN_OVER_SECONDS,
    UNDISTURBED_SECONDS,
    TakeoverWatch,
    describe_reason,
)
from guestd.core.tasks import Backoff


def test_while_a_session_is_taken_over_each_delay_is_longer_up_to_a_minute() -> None:
    backoff = Backoff(first_seconds=1.0, cap_seconds=10.0)
    watch = TakeoverWatch(backoff)
    delays = []
    for _ in range(12):
        # The other client is back after a second.
        assert watch.note_end(1.0, is_taken_over=True, is_closed=False)
        delays.append(backoff.next_delay_seconds(1.0))
    assert all(0.7 * 2**place <= delay <= 1.3 * 2**place for place, delay in enumerate(delays[:6]))
    assert all(delay >= 0.7 * TAKEN_OVER_SECONDS for delay in delays[6:])
    # Twenty in 22 seconds were reported; now there are five.
    assert sum(1 for place in range(12) if sum(delays[:place]) < 22) <= 6
    assert not watch.note_end(5.0, is_taken_over=False, is_closed=False)
    assert backoff.next_delay_seconds(1.0) <= 13.0


@given(st.floats(60, 600))
def test_while_a_session_is_taken_over_a_connection_of_minutes_does_not_shorten_the_delay(lived_seconds: float) -> None:
    backoff = Backoff(first_seconds=1.0, cap_seconds=10.0)
    watch = TakeoverWatch(backoff)
    for _ in range(10):
        watch.note_end(lived_seconds, is_taken_over=True, is_closed=False)
        delay = backoff.next_delay_seconds(lived_seconds)
    assert delay >= 0.7 * TAKEN_OVER_SECONDS
    # After an undisturbed hour it is a new case, and a usual end is one.
    watch.note_end(UNDISTURBED_SECONDS, is_taken_over=True, is_closed=False)
    assert backoff.next_delay_seconds(UNDISTURBED_SECONDS) <= 1.3
    watch.note_end(lived_seconds, is_taken_over=False, is_closed=False)
    assert backoff.next_delay_seconds(lived_seconds) <= 1.3


def test_only_the_second_refusal_in_a_row_halves_the_size_and_for_an_hour() -> None:
    limit = PacketLimit(announced_bytes=100_000)
    limit.note_refused(80_000, 0.0)
    assert limit.get_bytes(0.0) == 100_000
    limit.note_accepted(90_000, is_shortened=False)
    limit.note_refused(80_000, 1.0)
    assert limit.get_bytes(1.0) == 100_000
    limit.note_accepted(100, is_shortened=False)  # says nothing of larger ones
    limit.note_refused(80_000, 2.0)
    assert limit.get_bytes(2.0) == 40_000
    limit.note_refused(40_000, 3.0)
    assert limit.get_bytes(3.0) == 20_000
    limit.note_accepted(19_000, is_shortened=True)
    limit.note_refused(19_000, 4.0)
    assert limit.get_bytes(4.0) == 20_000
    assert limit.get_bytes(3.0 + LEARNED_SECONDS) == 100_000


@given(st.lists(st.integers(1, 1 << 20), min_size=2))
def test_what_is_learned_of_a_broker_leaves_room_for_a_line(sizes: list[int]) -> None:
    limit = PacketLimit()
    for size_bytes in sizes:
        limit.note_refused(size_bytes, 0.0)
    assert SMALLEST_LEARNED_BYTES <= limit.get_bytes(0.0) <= max(SMALLEST_LEARNED_BYTES, sizes[-1])


def test_a_broker_that_closes_without_a_reason_is_suspected_when_it_does_so_soon_and_again() -> None:
    backoff = Backoff(cap_seconds=10.0)
    watch = TakeoverWatch(backoff)

    def end(lived_seconds: float | None, *, is_closed: bool = True) -> bool:
        return watch.note_end(lived_seconds, is_taken_over=False, is_closed=is_closed)

    assert [end(1.0) for _ in range(EARLY_CLOSES)] == [False] * (EARLY_CLOSES - 1) + [True]
    assert backoff.cap_seconds == TAKEN_OVER_SECONDS
    # A broker that is down, or refuses us, or a connection that was good for long: it is something else.
    for lived_seconds, is_closed in ((None, True), (EARLY_SECONDS + 1, True), (1.0, False)):
        assert not end(lived_seconds, is_closed=is_closed)
        assert backoff.cap_seconds == 10.0
        assert [end(1.0) for _ in range(EARLY_CLOSES)][-1]


@pytest.mark.parametrize(
    ("properties", "text"),
    [
        ({}, "Banned"),
        ({"ReasonString": "for ever"}, "Banned (for ever)"),
        ({"ReasonString": "a", "ServerReference": "b"}, "Banned (a; b)"),
    ],
)
def test_a_reason_has_what_the_broker_adds_to_it(properties: dict[str, str], text: str) -> None:
    assert describe_reason("Banned", SimpleNamespace(**properties), {}) == text
    assert describe_reason("Banned", None, {"Banned": "do this"}) == "Banned (do this)"


ENTRIES = st.lists(
    st.dictionaries(st.text("abc", min_size=1, max_size=3), st.text(max_size=20), max_size=3), max_size=30
)
LINES = st.builds(
    lambda lists, extra: {
        "type": "metrics", "boot_id": "b", "seq": 3, "oldest": 1, "after": "0", "mark": "f", "extra": extra,
        "data": {"system": {"processes": lists[0], "ports": lists[1]}, "applications": lists[2]},
    },
    st.tuples(ENTRIES, ENTRIES, ENTRIES), st.text(max_size=50),
)  # fmt: skip


@given(LINES, st.integers(50, 4000))
def test_a_line_is_shortened_by_the_ends_of_its_lists_and_nothing_else(line: dict[str, Any], limit_bytes: int) -> None:
    shortened = shorten(json.dumps(line).encode(), limit_bytes)
    bare = line | {"data": {"system": {"processes": [], "ports": []}, "applications": []}}
    if shortened is None:
        assert len(json.dumps(bare, separators=(",", ":"), ensure_ascii=False).encode()) > limit_bytes
        return
    assert len(shortened) <= limit_bytes
    found = json.loads(shortened)
    assert found | {"data": None} == line | {"data": None}
    for whole, part in (
        (line["data"]["system"]["processes"], found["data"]["system"]["processes"]),
        (line["data"]["system"]["ports"], found["data"]["system"]["ports"]),
        (line["data"]["applications"], found["data"]["applications"]),
    ):
        assert part == whole[: len(part)]


def test_a_line_that_is_given_up_is_counted_and_does_not_hold_up_the_next() -> None:
    box = Outbox("boot", 1 << 20)
    for number in range(3):
        box.add(json.dumps({"n": number}).encode(), 0.0)
    while box.following_line(0.0) is not None:
        pass
    box.confirm(1)
    box.give_up(2)
    assert (box.acknowledged, box.dropped, box.held_lines) == (1, 1, 1)
    box.give_up(2)
    box.confirm(3)
    assert (box.acknowledged, box.dropped, box.held_lines) == (2, 1, 0)
