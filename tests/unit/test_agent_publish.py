"""The agent's counts of lines over a broker: each line is counted once, whatever answers come or are lost."""

from __future__ import annotations

import asyncio
import json

from hypothesis import given, settings
from hypothesis import strategies as st

from guestd.agent.outbox import Outbox
from guestd.agent.publish import WINDOW_LINES, Answer, publish_lines
from guestd.agent.transport import ReliableSender

BODY = b'{"n":1}'


class Broker:
    """A link whose broker answers as it is told; what it accepted is known here."""

    def __init__(self) -> None:
        self.is_connected = True
        self.accepted: set[int] = set()
        self.unanswered: list[tuple[int, asyncio.Future[Answer]]] = []

    async def wait_connected(self) -> None:
        self.is_connected = True

    def publish(self, _: str, line: bytes) -> asyncio.Future[Answer]:
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.unanswered.append((json.loads(line)["seq"], answer))
        return answer

    def answer(self, what: str) -> None:
        if not self.unanswered:
            return
        seq, answer = self.unanswered.pop(0)
        if what in ("accepted", "accepted, the answer is lost"):
            self.accepted.add(seq)
        if what == "accepted":
            answer.set_result(Answer.ACCEPTED)
        elif what == "given up":
            answer.set_result(Answer.GIVEN_UP)
        elif what == "refused":
            self.is_connected = False  # as a connection that is lost then: no pause
            answer.set_result(Answer.REFUSED)
        else:
            self.is_connected = False
            answer.set_result(Answer.LOST)


ANSWERS = ("accepted", "accepted", "accepted, the answer is lost", "lost", "refused", "given up")
STEPS = st.lists(st.one_of(st.just("add"), st.just("add"), st.sampled_from(ANSWERS)), max_size=60)


async def follow(steps: list[str], buffer_lines: int) -> None:
    broker, sender = Broker(), ReliableSender(Outbox("b", buffer_lines * (len(BODY) - 1)), on_request=lambda: None)
    box = sender.outbox
    publishing = asyncio.create_task(publish_lines(broker, "topic", sender))
    for step in [*steps, *["accepted"] * (buffer_lines + 2 * WINDOW_LINES)]:
        if step == "add":
            sender.post(BODY)
        else:
            broker.answer(step)
        for _ in range(20):
            await asyncio.sleep(0)
        gone = set(range(1, box._oldest)) - broker.accepted
        assert box.acknowledged + box.dropped + box.unconfirmed + box.held_lines == box.last
        assert box.dropped <= len(gone) <= box.dropped + box.unconfirmed
    assert box.held_lines == 0
    publishing.cancel()
    await asyncio.wait([publishing])


@given(STEPS, st.integers(1, 12))
@settings(max_examples=300, deadline=None)
def test_what_is_counted_as_dropped_never_arrived_and_what_is_unconfirmed_is_the_most_that_may_have(
    steps: list[str], buffer_lines: int
) -> None:
    asyncio.run(asyncio.wait_for(follow(steps, buffer_lines), 30))


def test_a_line_that_is_dropped_while_its_answer_is_lost_is_unconfirmed() -> None:
    async def main() -> Outbox:
        broker, sender = Broker(), ReliableSender(Outbox("b", 2 * (len(BODY) - 1)), on_request=lambda: None)
        publishing = asyncio.create_task(publish_lines(broker, "topic", sender))
        for _ in range(3):
            sender.post(BODY)
            await asyncio.sleep(0.01)
        for answer in ("accepted, the answer is lost", "lost", "lost"):
            broker.answer(answer)
        await asyncio.sleep(0.01)
        publishing.cancel()
        await asyncio.wait([publishing])
        return sender.outbox

    box = asyncio.run(main())
    assert (box.dropped, box.unconfirmed, box.held_lines) == (0, 1, 2)
