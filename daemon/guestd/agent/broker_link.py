"""Reporting to a broker: the connection is made again whenever it is lost, and what the broker announces is respected.

A line over the broker's Maximum Packet Size loses the ends of its lists; one that is too long even without lists is
given up. Every reason that the broker gives is logged, once while it repeats.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from uuid import UUID

import structlog

from guestd.agent.mqtt import Address, Session
from guestd.agent.packet_limit import PacketLimit
from guestd.agent.payload import shorten
from guestd.agent.publish import Answer, publish_lines
from guestd.agent.transport import ReliableSender
from guestd.core import broker
from guestd.core.address import is_loopback
from guestd.core.errors import SourceLost
from guestd.core.tasks import Backoff, run_with_retry, warn_once

LONGEST_RECONNECT_SECONDS = 10.0

_log: structlog.stdlib.BoundLogger = structlog.get_logger("guestd.agent")


class BrokerLink:
    """The connection to a broker, for one machine, whose presence is published on `will_topic`, or for many."""

    def __init__(self, address: Address, client_id: str, will_topic: str | None = None) -> None:
        self._address = address
        self._client_id = client_id
        self._will_topic = will_topic
        self._backoff = Backoff(first_seconds=1.0, cap_seconds=LONGEST_RECONNECT_SECONDS)
        self._takeovers = broker.TakeoverWatch(self._backoff)
        self._session: Session | None = None
        self._limit = PacketLimit()
        self._connected = asyncio.Event()
        self._warn_refused = _warn("broker did not accept a line: it stays in the buffer; publishing it again")
        self._warn_shortened = _warn("broker takes smaller packets than our lines: the ends of lists are left out")
        self._warn_given_up = _warn("line given up: the broker never takes it")

    @property
    def is_connected(self) -> bool:
        """Whether the broker accepts lines now."""
        return self._session is not None and self._session.error is None

    async def wait_connected(self) -> None:
        """Wait until the broker accepts lines."""
        while not self.is_connected:
            self._connected.clear()
            await self._connected.wait()

    async def run(self) -> None:
        """Connect, again and again, until cancelled."""
        if self._address.password is not None and self._address.tls is None and not is_loopback(self._address.host):
            _log.warning("password is sent unencrypted: use TLS (--mqtt-tls, or --mqtt-ca)", broker=str(self._address))
        warn = warn_once("broker unavailable: lines stay in the buffer; retrying", broker=str(self._address))
        await run_with_retry(self._run_session, expected=SourceLost, backoff=self._backoff, on_failure=warn)

    def publish(self, topic: str, line: bytes) -> asyncio.Future[Answer]:
        """Publish a line, without the ends of its lists if it is too long; the future has the answer."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        if self._session is None:
            answer.set_result(Answer.LOST)
            return answer
        limit_bytes = self._limit.get_bytes(time.monotonic()) - broker.count_packet_bytes(topic, 0)
        payload = line if len(line) <= limit_bytes else shorten(line, limit_bytes)
        if payload is None:
            self._warn_given_up(f"the broker takes {limit_bytes} bytes, and without lists it has more")
            answer.set_result(Answer.GIVEN_UP)
            return answer
        if payload is not line:
            self._warn_shortened(
                f"the broker takes {limit_bytes} bytes: raise its max_packet_size or message_size_limit"
            )
        is_shortened = payload is not line
        answer.add_done_callback(lambda done: self._note_answer(done, len(payload), is_shortened=is_shortened))
        self._session.publish(topic, payload, answer)
        return answer

    def _note_answer(self, answer: asyncio.Future[Answer], size_bytes: int, *, is_shortened: bool) -> None:
        if answer.cancelled() or self._session is None:
            return
        if answer.result() is Answer.ACCEPTED:
            self._limit.note_accepted(size_bytes, is_shortened=is_shortened)
        elif answer.result() is Answer.REFUSED:
            self._warn_refused(self._session.refusal)
        elif answer.result() is Answer.GIVEN_UP:
            self._warn_given_up(self._session.refusal)

    async def _run_session(self) -> None:
        session = Session(self._address, self._client_id, self._will_topic)
        try:
            announced = await session.open()
            self._limit.announced_bytes = announced.packet_bytes
            self._session = session
            self._connected.set()
            await session.wait_ended()
        except SourceLost:
            self._learn_from_end(session)
            raise
        finally:
            self._session = None
            session.close()

    def _learn_from_end(self, session: Session) -> None:
        if session.end_code == broker.RETAIN_NOT_SUPPORTED:
            self._will_topic = None
        # For mosquitto's message_size_limit its PUBACK has a reason that MQTT does not allow.
        if session.largest_lost_bytes and (session.is_puback_unreadable or session.end_code == broker.PACKET_TOO_LARGE):
            self._limit.note_refused(session.largest_lost_bytes, time.monotonic())
        # A broker of MQTT 5 gives the reason: one that only closes is not evidence of another client.
        is_taken_over = session.end_code == broker.SESSION_TAKEN_OVER
        self._takeovers.note_end(session.lived_seconds, is_taken_over=is_taken_over, is_closed=False)


def _warn(event: str) -> Callable[[str], None]:
    """A warning that is logged once, until another reason occurs."""
    warn = warn_once(event)
    return lambda reason: warn(ValueError(reason), 0.0)


async def serve_broker(address: Address, machine_id: UUID, sender: ReliableSender) -> None:
    """Report one machine to a broker without end."""
    # Some brokers require a client id that is the user's name.
    client_id = str(machine_id) if address.user == str(machine_id) else f"guestd-agent-{machine_id}"
    link = BrokerLink(address, client_id, address.topic(machine_id, "status"))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(link.run(), name="broker")
        tasks.create_task(publish_lines(link, address.topic(machine_id, "metrics"), sender), name="publish")
