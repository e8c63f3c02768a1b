"""The lines of a machine over a broker: which to publish, which to publish again, and which the broker never takes.

Lines go out in order, a few at a time. A broker that has no subscriber for a line, or refuses it, has not accepted it:
the line is published again, with all that follow it, after a pause; after a lost connection at once. guestd knows
duplicates by number and mark.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from enum import Enum
from typing import Protocol

from guestd.agent.transport import ReliableSender

# So many lines of a machine are in flight at once.
WINDOW_LINES = 8
REPUBLISH_SECONDS = 2.0


class Answer(Enum):
    """What became of a line: the broker has it; it did not take it; it never will; the connection was lost before."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    GIVEN_UP = "given up"
    LOST = "lost"


class Link(Protocol):
    """A connection to a broker that is made again whenever it is lost."""

    @property
    def is_connected(self) -> bool:
        """Whether the broker accepts lines now."""

    async def wait_connected(self) -> None:
        """Wait until it does."""

    def publish(self, topic: str, line: bytes) -> asyncio.Future[Answer]:
        """Publish a line; the future has the answer as soon as there is one."""


async def publish_lines(link: Link, topic: str, sender: ReliableSender) -> None:
    """Publish the lines of a machine in order, without end; lines that the broker has accepted are forgotten."""
    outbox = sender.outbox
    in_flight: deque[tuple[int, asyncio.Future[Answer]]] = deque()
    while True:
        while (
            len(in_flight) < WINDOW_LINES
            and link.is_connected
            and (line := outbox.following_line(time.monotonic())) is not None
        ):
            answer = link.publish(topic, line.rstrip(b"\n"))
            answer.add_done_callback(lambda _: sender.wake())
            in_flight.append((outbox.written, answer))
        if not in_flight and not link.is_connected:
            await link.wait_connected()
        elif not in_flight or not in_flight[0][1].done():
            await sender.wait_for_wake()
        elif not _settle(sender, *(first := in_flight.popleft())):
            answers = {seq: await answer for seq, answer in (first, *in_flight)}
            in_flight.clear()
            if Answer.LOST not in answers.values() and link.is_connected:
                await asyncio.sleep(REPUBLISH_SECONDS)
            refused = [seq for seq, answer in answers.items() if answer in (Answer.REFUSED, Answer.GIVEN_UP)]
            # One that the broker has accepted behind a refused one is published again as well.
            outbox.republish(refused=refused, unanswered=answers.keys() - set(refused))


def _settle(sender: ReliableSender, seq: int, answer: asyncio.Future[Answer]) -> bool:
    """Forget a line that the broker has, or never takes; returns whether it is one."""
    if answer.result() is Answer.ACCEPTED:
        sender.confirm(seq)
    elif answer.result() is Answer.GIVEN_UP:
        sender.give_up(seq)
    else:
        return False
    return True
