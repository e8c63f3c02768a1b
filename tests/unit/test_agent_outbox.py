"""The outbox against a receiver that follows docs/wire.md, over a channel that loses what channels lose."""

from __future__ import annotations

import json
import re
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from guestd.agent.outbox import BODY_LIMIT_BYTES, LINE_LIMIT_BYTES, NO_MARK, NO_PROGRESS_SECONDS, Outbox

BOOT_ID = "0d3f3a5e-8d0b-4a55-9c0b-5d5e4a2f7c11"
PLENTY_BYTES = 1 << 20


def outbox(limit_bytes: int = PLENTY_BYTES) -> Outbox:
    return Outbox(BOOT_ID, limit_bytes)


def seqs(box: Outbox, now_seconds: float = 0.0) -> list[int]:
    written = []
    while (line := box.next_line(now_seconds)) is not None:
        written.append(int(json.loads(line)["seq"]))
    return written


def lines_of(box: Outbox, now_seconds: float = 0.0) -> list[dict[str, Any]]:
    written = []
    while (line := box.next_line(now_seconds)) is not None:
        written.append(json.loads(line))
    return written


def marks(box: Outbox) -> list[str]:
    return [line["mark"] for line in lines_of(box)]


def filled(lines: int, limit_bytes: int = PLENTY_BYTES) -> Outbox:
    box = outbox(limit_bytes)
    for number in range(1, lines + 1):
        assert box.add(b'{"n":%d}' % number, 0.0) == number
    return box


def test_a_line_begins_with_the_header_of_the_contract_in_its_order() -> None:
    line = filled(1).next_line(0.0)
    assert line is not None
    head, _, rest = line.partition(b',"after":"%s","mark":"' % NO_MARK.encode())
    assert head == b'{"type":"metrics","boot_id":"%s","seq":1,"oldest":1' % BOOT_ID.encode()
    assert re.fullmatch(rb'[0-9a-f]{16}","age_ms":0,"n":1}\n', rest)


def test_a_header_of_the_largest_numbers_leaves_room_for_the_largest_body() -> None:
    box = outbox()
    box._oldest = box._cursor = 10**18 - 2
    box.add(b"{" + b" " * (BODY_LIMIT_BYTES - 2) + b"}", 0.0)
    line = box.next_line(999_999_999.0)
    assert line is not None
    assert len(line) <= LINE_LIMIT_BYTES


def test_a_line_names_its_mark_and_the_one_that_it_follows() -> None:
    first, second = lines_of(filled(2))
    assert (first["after"], second["after"]) == (NO_MARK, first["mark"])
    assert first["mark"] != second["mark"]
    # The mark is the content's: a line that is written again has the one it had.
    assert marks(filled(2)) == marks(filled(2))


def test_a_line_states_for_how_long_it_was_held_whenever_it_is_written() -> None:
    box = outbox()
    box.add(b'{"n":1}', 5.0)
    box.add(b'{"n":2}', 65.25)
    assert [line["age_ms"] for line in lines_of(box, 65.25)] == [60_250, 0]
    box.acknowledge(BOOT_ID, 1, 66.0)
    box.restart()
    assert [line["age_ms"] for line in lines_of(box, 3665.25)] == [3_600_000]


def test_lines_are_written_once_and_in_order() -> None:
    assert seqs(filled(3)) == [1, 2, 3]


def test_an_acknowledgement_forgets_everything_up_to_its_number() -> None:
    box = filled(3)
    seqs(box)
    box.acknowledge(BOOT_ID, 2, 1.0)
    box.restart()
    assert (seqs(box), box.held_lines, box.acknowledged) == ([3], 1, 2)


def test_a_late_acknowledgement_is_ignored() -> None:
    box = filled(3)
    seqs(box)
    box.acknowledge(BOOT_ID, 3, 1.0)
    box.acknowledge(BOOT_ID, 1, 2.0)
    assert (box.held_lines, box.acknowledged) == (0, 3)


def test_an_acknowledgement_of_another_run_is_ignored() -> None:
    box = filled(2)
    box.acknowledge("another", 2, 1.0)
    assert (box.held_lines, seqs(box)) == (2, [1, 2])
    box.resend_after("another", 1, 1.0)
    assert (box.held_lines, seqs(box)) == (2, [])


def test_an_answer_about_a_line_that_never_was_begins_a_new_run_with_all_that_is_held() -> None:
    box = filled(3)
    seqs(box)
    box.acknowledge(BOOT_ID, 1, 1.0)
    box.acknowledge(BOOT_ID, 7, 1.0)
    assert box.boot_id != BOOT_ID
    written = lines_of(box, 1.0)
    assert [(line["boot_id"], line["seq"], line["oldest"], line["n"]) for line in written] == [
        (box.boot_id, 1, 1, 2),
        (box.boot_id, 2, 1, 3),
    ]
    assert written[0]["after"] == NO_MARK
    assert (box.rewound, box.held_lines, box.last) == (1, 2, 2)


def test_an_answer_about_another_line_of_that_number_begins_a_new_run() -> None:
    box = filled(3)
    seqs(box)
    box.acknowledge(BOOT_ID, 3, 1.0, mark="f" * 16)
    assert (box.rewound, box.held_lines) == (1, 3)
    resent = filled(3)
    seqs(resent)
    resent.resend_after(BOOT_ID, 2, 1.0, mark="f" * 16)
    assert (resent.rewound, seqs(resent, 1.0)) == (1, [1, 2, 3])


def test_an_answer_about_the_very_line_forgets_it() -> None:
    box = filled(3)
    mark = marks(box)[1]
    box.acknowledge(BOOT_ID, 2, 1.0, mark=mark)
    assert (box.rewound, box.held_lines) == (0, 1)


def test_an_outbox_that_was_rewound_and_holds_nothing_goes_on_from_one() -> None:
    box = outbox()
    box.acknowledge(BOOT_ID, 7, 1.0)
    assert box.add(b'{"n":1}', 0.0) == 1
    assert seqs(box) == [1]


def test_two_reverts_to_one_state_lead_to_two_names() -> None:
    one, other = filled(2), filled(2)
    one.add(b'{"n":3}', 0.0)
    other.add(b'{"n":4}', 0.0)
    for box in (one, other):
        box.acknowledge(BOOT_ID, 3, 1.0, mark="f" * 16)
    assert len({BOOT_ID, one.boot_id, other.boot_id}) == 3


def test_an_acknowledged_line_that_was_about_to_be_written_again_is_not() -> None:
    box = filled(3)
    seqs(box)
    box.restart()
    box.acknowledge(BOOT_ID, 2, 1.0)
    assert seqs(box, 1.0) == [3]


def test_a_resend_request_writes_everything_held_again() -> None:
    box = filled(4)
    seqs(box)
    box.resend_after(BOOT_ID, 2, 1.0)
    assert seqs(box, 1.0) == [3, 4]


def test_a_host_that_forgot_everything_gets_all_that_is_held() -> None:
    box = filled(4)
    seqs(box)
    box.acknowledge(BOOT_ID, 2, 1.0)
    box.resend_after(BOOT_ID, 0, 2.0)
    assert seqs(box, 2.0) == [3, 4]


def test_lines_without_progress_are_written_again_after_five_seconds() -> None:
    box = filled(2)
    assert seqs(box, 100.0) == [1, 2]
    assert box.resend_at == 100.0 + NO_PROGRESS_SECONDS
    assert seqs(box, 104.9) == []
    assert seqs(box, 105.0) == [1, 2]
    assert box.resend_at == 110.0


def test_progress_restarts_the_five_seconds() -> None:
    box = filled(2)
    seqs(box, 100.0)
    box.acknowledge(BOOT_ID, 1, 104.0)
    assert seqs(box, 108.9) == []
    assert seqs(box, 109.0) == [2]


def test_a_line_after_a_long_silence_is_not_written_twice() -> None:
    box = filled(1)
    seqs(box, 100.0)
    box.acknowledge(BOOT_ID, 1, 100.1)
    assert box.resend_at is None
    box.add(b'{"n":2}', 0.0)
    assert seqs(box, 200.0) == [2]
    assert box.resend_at == 205.0


def test_a_full_buffer_gives_up_the_oldest_line_and_later_headers_say_so() -> None:
    box = filled(5, limit_bytes=3 * len('"n":1}'))
    assert (box.dropped, box.held_lines, box.held_bytes) == (2, 3, 18)
    line = box.next_line(0.0)
    assert line is not None
    assert line.startswith(b'{"type":"metrics","boot_id":"%s","seq":3,"oldest":3,' % BOOT_ID.encode())


def test_the_newest_line_is_kept_however_small_the_buffer() -> None:
    box = filled(3, limit_bytes=1)
    assert (box.dropped, box.held_lines) == (2, 1)


def test_a_buffer_overflows_from_the_first_dropped_line_until_no_more_than_half_of_it_is_held() -> None:
    box = filled(4, limit_bytes=4 * len('"n":1}'))
    assert not box.is_overflowing
    box.add(b'{"n":5}', 0.0)
    assert (box.dropped, box.is_overflowing) == (1, True)
    box.acknowledge(BOOT_ID, 2, 0.0)
    assert (box.held_lines, box.is_overflowing) == (3, True)
    box.acknowledge(BOOT_ID, 3, 0.0)
    assert (box.held_lines, box.is_overflowing) == (2, False)
    box.add(b'{"n":6}', 0.0)
    assert not box.is_overflowing


def test_oldest_is_as_of_the_moment_of_writing() -> None:
    box = filled(3)
    seqs(box)
    box.acknowledge(BOOT_ID, 1, 1.0)
    box.restart()
    line = box.next_line(1.0)
    assert line is not None
    assert json.loads(line)["oldest"] == 2


@dataclass
class Receiver:
    """The host's side of docs/wire.md for one boot_id, without the disk."""

    last: int = 0
    taken: list[int] = field(default_factory=list)
    dropped_by_agent: int = 0

    def take(self, line: bytes) -> tuple[int, bool]:
        message: dict[str, Any] = json.loads(line)
        seq, oldest = message["seq"], message["oldest"]
        assert message["n"] == seq
        if seq <= self.last:
            return self.last, False
        if seq == self.last + 1 or seq == oldest:
            self.dropped_by_agent += seq - self.last - 1
            self.last = seq
            self.taken.append(seq)
            return seq, False
        return self.last, True


class World:
    """An outbox and a receiver with two queues between them, stepped by hypothesis."""

    def __init__(self, limit_bytes: int) -> None:
        self.now = 0.0
        self.box = Outbox(BOOT_ID, limit_bytes)
        self.receiver = Receiver()
        self.lines: deque[bytes] = deque()
        self.acks: deque[tuple[int, bool]] = deque()
        self.old_acks: list[tuple[int, bool]] = []

    def step(self, name: str, amount: int) -> None:
        getattr(self, name)(amount)

    def add(self, amount: int) -> None:
        for _ in range(amount):
            self.box.add(b'{"n":%d}' % (self.box.last + 1), self.now)

    def write(self, amount: int) -> None:
        for _ in range(amount):
            line = self.box.next_line(self.now)
            if line is not None:
                self.lines.append(line)

    def read(self, amount: int) -> None:
        for _ in range(min(amount, len(self.lines))):
            self.acks.append(self.receiver.take(self.lines.popleft()))

    def hear(self, amount: int) -> None:
        for _ in range(min(amount, len(self.acks))):
            ack = self.acks.popleft()
            self.old_acks.append(ack)
            self.answer(*ack)

    def answer(self, seq: int, resend: bool) -> None:
        if resend:
            self.box.resend_after(BOOT_ID, seq, self.now)
        else:
            self.box.acknowledge(BOOT_ID, seq, self.now)

    def hear_an_old_ack_again(self, amount: int) -> None:
        if self.old_acks:
            self.answer(*self.old_acks[amount % len(self.old_acks)])

    def cut(self, amount: int) -> None:
        """The host closes: it has read some of what was on the way, the rest and its answers are lost."""
        self.read(amount - 1)
        self.lines.clear()
        self.acks.clear()
        self.box.restart()

    def lose_a_tail(self, amount: int) -> None:
        """A channel that loses its newest lines without anybody noticing."""
        for _ in range(min(amount, len(self.lines))):
            self.lines.pop()

    def lose_acks(self, amount: int) -> None:
        for _ in range(min(amount, len(self.acks))):
            self.acks.popleft()

    def wait(self, amount: int) -> None:
        self.now += amount

    def settle(self) -> None:
        """A channel that works for a while."""
        for _ in range(8):
            self.write(1000)
            self.read(1000)
            self.hear(1000)
            self.now += NO_PROGRESS_SECONDS


MOVES = (
    *("add", "add", "write", "write", "read", "hear"),
    *("hear_an_old_ack_again", "cut", "lose_a_tail", "lose_acks", "wait"),
)
STEPS = st.lists(st.tuples(st.sampled_from(MOVES), st.integers(1, 6)), max_size=120)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_with_room_enough_every_line_arrives_exactly_once_and_in_order(steps: list[tuple[str, int]]) -> None:
    world = World(PLENTY_BYTES)
    for name, amount in steps:
        world.step(name, amount)
    world.settle()
    assert world.receiver.taken == list(range(1, world.box.last + 1))
    assert (world.box.held_lines, world.box.dropped, world.receiver.dropped_by_agent) == (0, 0, 0)


@settings(max_examples=150, deadline=None)
@given(STEPS, st.integers(20, 80))
def test_with_a_small_buffer_only_given_up_lines_are_missing_and_the_rest_is_in_order(
    steps: list[tuple[str, int]], limit_bytes: int
) -> None:
    world = World(limit_bytes)
    for name, amount in steps:
        world.step(name, amount)
        assert world.box.held_bytes <= limit_bytes
    world.settle()
    taken = world.receiver.taken
    assert taken == sorted(set(taken))
    assert world.box.held_lines == 0
    missing = world.box.last - len(taken)
    assert missing == world.receiver.dropped_by_agent
    # A line that was written and given up without an answer may have arrived all the same.
    assert world.box.dropped <= missing <= world.box.dropped + world.box.unconfirmed
    assert world.box.acknowledged + world.box.dropped + world.box.unconfirmed == world.box.last


@settings(max_examples=150, deadline=None)
@given(STEPS, st.integers(20, 80))
def test_at_any_moment_what_is_counted_as_dropped_is_not_at_the_host_and_what_is_acknowledged_is(
    steps: list[tuple[str, int]], limit_bytes: int
) -> None:
    world = World(limit_bytes)
    for name, amount in steps:
        world.step(name, amount)
        box, taken = world.box, len([seq for seq in world.receiver.taken if seq < world.box._oldest])
        assert box.acknowledged <= taken
        assert taken <= box.acknowledged + box.unconfirmed
        assert box.acknowledged + box.dropped + box.unconfirmed + box.held_lines == box.last


def test_a_line_that_was_written_and_dropped_is_counted_as_acknowledged_when_the_late_answer_comes() -> None:
    box = filled(3, limit_bytes=3 * len('"n":1}'))
    assert seqs(box) == [1, 2, 3]
    for number in (4, 5):
        box.add(b'{"n":%d}' % number, 0.0)
    assert (box.dropped, box.unconfirmed, box.acknowledged) == (0, 2, 0)
    box.acknowledge(BOOT_ID, 1, 0.0)
    assert (box.dropped, box.unconfirmed, box.acknowledged) == (0, 1, 1)
    box.acknowledge(BOOT_ID, 3, 0.0)
    assert (box.dropped, box.unconfirmed, box.acknowledged) == (0, 0, 3)


def test_whether_a_line_before_a_gap_arrived_stays_unconfirmed() -> None:
    box = filled(3, limit_bytes=3 * len('"n":1}'))
    seqs(box)
    box.add(b'{"n":4}', 0.0)
    box.restart()  # the channel was closed: did the host read line 1?
    assert seqs(box) == [2, 3, 4]
    box.acknowledge(BOOT_ID, 4, 0.0)
    assert (box.dropped, box.unconfirmed, box.acknowledged) == (0, 1, 3)


def test_an_answer_about_another_line_of_a_dropped_number_confirms_nothing() -> None:
    box = filled(3, limit_bytes=3 * len('"n":1}'))
    seqs(box)
    box.add(b'{"n":4}', 0.0)
    box.acknowledge(BOOT_ID, 1, 0.0, "f" * 16)
    assert (box.unconfirmed, box.acknowledged) == (1, 0)
