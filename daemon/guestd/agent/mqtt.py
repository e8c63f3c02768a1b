"""Reporting to a broker: lines are published at QoS 1 and stay in the outbox until the broker has confirmed them.

paho's own thread keeps the connection, reconnects after a loss and sends again what was not confirmed. Lines go out in
order, a few at a time. A broker that answers that there is no subscriber, or that it refuses a line, has not accepted
it: the line is published again, with all that follow it, after a pause. guestd knows duplicates by number and mark.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from uuid import UUID

import structlog
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

from guestd.agent.transport import ReliableSender
from guestd.core.address import format_host_port

# So many lines of a machine are in flight at once.
WINDOW_LINES = 8
REPUBLISH_SECONDS = 2.0
LONGEST_RECONNECT_SECONDS = 10
# PUBACK of MQTT 5: received, and dropped because no client is subscribed.
NO_MATCHING_SUBSCRIBERS = 0x10

_log: structlog.stdlib.BoundLogger = structlog.get_logger("guestd.agent")


@dataclass(frozen=True, slots=True)
class Address:
    """A broker and the credentials for it. `tls` None: no encryption."""

    host: str
    port: int
    prefix: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = None

    def __str__(self) -> str:
        return format_host_port(self.host, self.port)

    def topic(self, machine_id: object, kind: str) -> str:
        """The topic of a machine's messages of a kind."""
        return f"{self.prefix}/{machine_id}/{kind}"


class Connection:
    """A client of a broker, for one machine (whose presence is published on `will_topic`) or for many."""

    def __init__(self, address: Address, client_id: str, will_topic: str | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._will_topic = will_topic
        self._waiting: dict[int, asyncio.Future[bool]] = {}
        self._trouble = ""
        self._client = Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.max_inflight_messages_set(1000)
        self._client.reconnect_delay_set(1, LONGEST_RECONNECT_SECONDS)
        if address.user is not None:
            self._client.username_pw_set(address.user, address.password)
        if address.tls is not None:
            self._client.tls_set_context(address.tls)
        if will_topic is not None:
            self._client.will_set(will_topic, b"offline", qos=1, retain=True)
        self._client.on_connect = self._on_connect
        self._client.on_connect_fail = lambda *_: self._report(f"{address} cannot be reached")
        self._client.on_publish = self._on_publish
        self._client.connect_async(address.host, address.port)
        self._client.loop_start()

    def publish(self, topic: str, line: bytes) -> asyncio.Future[bool]:
        """Send a line; the future tells whether the broker has accepted it, as soon as the broker answers."""
        accepted: asyncio.Future[bool] = self._loop.create_future()
        # Without a connection it is sent as soon as there is one; the answer cannot arrive before this returns.
        self._waiting[self._client.publish(topic, line.rstrip(b"\n"), qos=1).mid] = accepted
        return accepted

    def close(self) -> None:
        """Disconnect cleanly."""
        if self._will_topic is not None:
            self._client.publish(self._will_topic, b"offline", qos=0, retain=True)
        self._client.disconnect()
        self._client.loop_stop()

    # ---- called by paho's thread

    def _on_connect(self, _client: Client, _: object, _flags: object, reason: ReasonCode, _properties: object) -> None:
        self._report(f"the broker refused the connection: {reason}" if reason.is_failure else "")
        if not reason.is_failure and self._will_topic is not None:
            self._client.publish(self._will_topic, b"online", qos=0, retain=True)

    def _on_publish(self, _client: Client, _: object, mid: int, reason: ReasonCode, _properties: object) -> None:
        self._loop.call_soon_threadsafe(self._on_answer, mid, reason)

    def _report(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            _log.warning("broker unavailable: lines stay in the buffer; retrying", error=trouble)
        self._trouble = trouble

    # ---- called on the loop

    def _on_answer(self, mid: int, reason: ReasonCode) -> None:
        accepted = self._waiting.pop(mid, None)
        if reason.is_failure:
            self._report(f"the broker refused a message: {reason}")
        if accepted is not None and not accepted.done():
            accepted.set_result(not reason.is_failure and reason.value != NO_MATCHING_SUBSCRIBERS)


async def serve_broker(address: Address, machine_id: UUID, sender: ReliableSender) -> None:
    """Report one machine to a broker without end."""
    connection = Connection(address, f"guestd-agent-{machine_id}", address.topic(machine_id, "status"))
    try:
        await publish_lines(partial(connection.publish, address.topic(machine_id, "metrics")), sender)
    finally:
        connection.close()


async def publish_lines(publish: Callable[[bytes], asyncio.Future[bool]], sender: ReliableSender) -> None:
    """Publish the lines of a machine in order, without end; lines that the broker has accepted are forgotten."""
    outbox = sender.outbox
    in_flight: deque[tuple[int, asyncio.Future[bool]]] = deque()
    while True:
        while len(in_flight) < WINDOW_LINES and (line := outbox.following_line()) is not None:
            answer = publish(line)
            answer.add_done_callback(lambda _: sender.wake())
            in_flight.append((outbox.written, answer))
        if not in_flight or not in_flight[0][1].done():
            await sender.wait_for_wake()
            continue
        seq, answer = in_flight.popleft()
        if answer.result():
            sender.confirm(seq)
            continue
        await asyncio.gather(*(later for _, later in in_flight))
        in_flight.clear()
        await asyncio.sleep(REPUBLISH_SECONDS)
        outbox.restart()
