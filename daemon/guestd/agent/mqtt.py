"""One connection to a broker: paho-mqtt implements the protocol, the event loop waits.

A lost connection is not repaired: its successor is a new object. At most Receive Maximum lines are in flight; every
line that was not answered when the connection ends is lost, and the caller publishes it again.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import time
from collections import deque
from dataclasses import dataclass, field
from uuid import UUID

from paho.mqtt import MQTTException
from paho.mqtt.client import Client, DisconnectFlags
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from guestd.agent.publish import Answer
from guestd.core import broker
from guestd.core.address import format_host_port
from guestd.core.errors import SourceLost
from guestd.core.tls import explain_unconnected

ANSWER_SECONDS = 10.0
TICK_SECONDS = 1.0
# For all machines of a connection together.
MOST_IN_FLIGHT = 1000
# Reason codes of PUBACK: received, and dropped because no client is subscribed; the payload can never be accepted.
NO_MATCHING_SUBSCRIBERS = 0x10
PAYLOAD_INVALID = 0x99
# A sample without its lists has some 900 bytes; a broker that takes fewer gets nothing.
SMALLEST_LINE_BYTES = 1024
# What paho raises for a packet that it cannot read.
_UNREADABLE = (MQTTException, struct.error, ValueError, LookupError, TypeError)
_REMEDIES = {
    "Bad user name or password": "--mqtt-user, --mqtt-password-file",
    "Not authorized": "--mqtt-user, --mqtt-password-file, or the broker's ACL",
    "No matching subscribers": "no guestd is subscribed, or to another --mqtt-prefix",
    "Unsupported protocol version": "the broker must support MQTT 5",
    "Session taken over": "another client has our id: does another agent run with this --machine-id or --mqtt-user?",
    "Packet too large": "the broker's max_packet_size",
    "QoS not supported": "the broker must accept QoS 1: max_qos",
    "Retain not supported": "connecting without a status topic",
}


class _Client(Client):
    """paho's client, which also says which packet it could not read."""

    unreadable_type = 0

    def _packet_handle(self) -> MQTTErrorCode:
        self.unreadable_type = self._in_packet["command"] >> 4
        code = super()._packet_handle()
        self.unreadable_type = 0
        return code


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

    def count_metrics_bytes(self, line_bytes: int) -> int:
        """The bytes of a packet with a line of any machine."""
        return broker.count_packet_bytes(self.topic(UUID(int=0), "metrics"), line_bytes)


@dataclass(frozen=True, slots=True)
class Announced:
    """What the broker takes, by its CONNACK; `packet_bytes` is the size of the largest whole packet."""

    packet_bytes: int
    in_flight: int
    has_qos1: bool
    retains: bool


class Session:
    """A connection, from `open` until `error` is set. `will_topic`: the presence of its machine, None if of many."""

    def __init__(self, address: Address, client_id: str, will_topic: str | None) -> None:
        self._address = address
        self._will_topic = will_topic
        self._loop = asyncio.get_running_loop()
        self._client = self._make_client(client_id)
        self._socket: socket.socket | None = None
        self._tick: asyncio.TimerHandle | None = None
        self._accepted_at: float | None = None
        self._changed = asyncio.Event()
        self._queue: deque[tuple[str, bytes, asyncio.Future[Answer]]] = deque()
        self._in_flight: dict[int, tuple[asyncio.Future[Answer], int]] = {}
        self.announced: Announced | None = None
        self.error: SourceLost | None = None
        self.end_code: int | None = None
        self.refusal = ""
        self.largest_lost_bytes = 0
        self.is_puback_unreadable = False

    @property
    def lived_seconds(self) -> float | None:
        """Seconds since the broker accepted the connection; None if it did not."""
        return None if self._accepted_at is None else time.monotonic() - self._accepted_at

    async def open(self) -> Announced:
        """Connect.

        Raises SourceLost when the broker cannot be reached, refuses us, QoS 1 or any line, or does not answer.
        """
        try:
            await asyncio.to_thread(self._client.connect, self._address.host, self._address.port)
        except ssl.SSLCertVerificationError as exc:
            raise SourceLost(f"{exc.verify_message} (--mqtt-ca, --mqtt)") from exc
        except (OSError, UnicodeError) as exc:  # a UnicodeError for text that is not a host name
            raise SourceLost(explain_unconnected(exc, self._address.tls)) from exc
        self._drive()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                while self.announced is None:
                    await self._wait_for_change()
        except TimeoutError:
            raise SourceLost("no answer") from None
        if not self.announced.has_qos1:
            raise SourceLost("the broker takes QoS 0 only, which confirms nothing: raise its max_qos")
        smallest_bytes = self._address.count_metrics_bytes(SMALLEST_LINE_BYTES)
        if self.announced.packet_bytes < smallest_bytes:
            raise SourceLost(
                f"the broker takes packets of {self.announced.packet_bytes} bytes, and no line fits: "
                f"raise its max_packet_size above {smallest_bytes}"
            )
        self._publish_status(b"online")
        return self.announced

    async def wait_ended(self) -> None:
        """Wait for the end of the connection, and raise it."""
        while True:
            await self._wait_for_change()

    def publish(self, topic: str, payload: bytes, answer: asyncio.Future[Answer]) -> None:
        """Publish a line at QoS 1, when the broker has room for it."""
        if self.error is not None:
            answer.set_result(Answer.LOST)
            return
        self._queue.append((topic, payload, answer))
        self._publish_queued()

    def close(self) -> None:
        """Disconnect cleanly, as far as the socket accepts it."""
        if self._socket is not None and self.error is None:
            self._publish_status(b"offline")
            self._client.disconnect()
            self._write()
        self._fail("closed")
        if self._socket is not None and self._client.socket() is not None:  # paho has not closed it
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()

    def _make_client(self, client_id: str) -> _Client:
        client = _Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTProtocolVersion.MQTTv5,
            reconnect_on_failure=False,
        )  # fmt: skip
        client.max_inflight_messages_set(0)  # not limited here: `_publish_queued` does
        if self._address.user is not None:
            client.username_pw_set(self._address.user, self._address.password)
        if self._address.tls is not None:
            client.tls_set_context(self._address.tls)
        if self._will_topic is not None:
            client.will_set(self._will_topic, b"offline", qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_publish = self._on_publish
        client.on_disconnect = self._on_disconnect
        return client

    def _drive(self) -> None:
        """From now on the event loop waits for the socket."""
        connected = self._client.socket()
        assert isinstance(connected, socket.socket)
        self._socket = connected
        self._client.on_socket_register_write = self._on_write_pending
        self._client.on_socket_unregister_write = self._on_write_done
        self._client.on_socket_close = self._on_socket_close
        self._loop.add_reader(connected, self._read)
        self._keep_alive()

    def _read(self) -> None:
        try:
            while self.error is None and self._client.loop_read() == MQTTErrorCode.MQTT_ERR_SUCCESS:
                # What TLS has decrypted raises no event.
                if not isinstance(self._socket, ssl.SSLSocket) or not self._socket.pending():
                    return
        except _UNREADABLE as exc:
            self._fail_unreadable(str(exc))
        self._fail("the connection was lost")

    def _write(self) -> None:
        if self._client.loop_write() != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._fail("the connection was lost")

    def _keep_alive(self) -> None:
        """Ping when it is quiet, and detect a broker that does not answer."""
        if self._client.loop_misc() != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._fail("no answer")
        if self.error is None:
            self._tick = self._loop.call_later(TICK_SECONDS, self._keep_alive)

    def _on_write_pending(self, _client: Client, _: object, _socket: object) -> None:
        assert self._socket is not None
        self._loop.add_writer(self._socket, self._write)

    def _on_write_done(self, _client: Client, _: object, _socket: object) -> None:
        assert self._socket is not None
        self._loop.remove_writer(self._socket)

    def _on_socket_close(self, _client: Client, _: object, _socket: object) -> None:
        assert self._socket is not None
        self._loop.remove_reader(self._socket)

    def _on_connect(self, _client: Client, _: object, _flags: object, reason: ReasonCode, properties: object) -> None:
        if reason.is_failure:
            self.end_code = reason.value
            self._fail("the broker refused the connection: " + broker.describe_reason(reason, properties, _REMEDIES))
            return
        self._accepted_at = time.monotonic()
        self.announced = Announced(
            packet_bytes=getattr(properties, "MaximumPacketSize", broker.PROTOCOL_PACKET_BYTES),
            in_flight=min(MOST_IN_FLIGHT, getattr(properties, "ReceiveMaximum", MOST_IN_FLIGHT)),
            has_qos1=getattr(properties, "MaximumQoS", 1) > 0,
            retains=bool(getattr(properties, "RetainAvailable", 1)),
        )
        self._changed.set()

    def _on_publish(self, _client: Client, _: object, mid: int, reason: ReasonCode, properties: object) -> None:
        answer, _size_bytes = self._in_flight.pop(mid, (None, 0))
        if answer is None:
            return  # a status message
        is_accepted = not reason.is_failure and reason.value != NO_MATCHING_SUBSCRIBERS
        if not is_accepted:
            self.refusal = broker.describe_reason(reason, properties, _REMEDIES)
        if not answer.done():
            refused = Answer.GIVEN_UP if reason.value == PAYLOAD_INVALID else Answer.REFUSED
            answer.set_result(Answer.ACCEPTED if is_accepted else refused)
        # Not in paho's callback, which holds its lock.
        self._loop.call_soon(self._publish_queued)

    def _on_disconnect(
        self, _client: Client, _: object, flags: DisconnectFlags, reason: ReasonCode, properties: object
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            self.end_code = reason.value
            self._fail("the broker disconnected us: " + broker.describe_reason(reason, properties, _REMEDIES))
        elif reason == "Protocol error":
            self._fail_unreadable("protocol error")
        elif reason == "Keep alive timeout":
            self._fail("no answer")
        else:
            self._fail("the connection was lost")

    def _fail_unreadable(self, reason: str) -> None:
        self.is_puback_unreadable = self.error is None and self._client.unreadable_type == PacketTypes.PUBACK
        self._fail(f"the broker sent a packet that cannot be read: {reason}")

    def _fail(self, reason: str) -> None:
        """The connection has ended; the first reason counts."""
        if self.error is not None:
            return
        self.error = SourceLost(reason)
        if self._tick is not None:
            self._tick.cancel()
        self.largest_lost_bytes = max((size_bytes for _, size_bytes in self._in_flight.values()), default=0)
        unanswered = [answer for answer, _ in self._in_flight.values()] + [answer for *_, answer in self._queue]
        for answer in unanswered:
            if not answer.done():
                answer.set_result(Answer.LOST)
        self._changed.set()

    def _publish_status(self, status: bytes) -> None:
        if self._will_topic is None or self.announced is None or not self.announced.retains:
            return
        if broker.count_packet_bytes(self._will_topic, len(status)) <= self.announced.packet_bytes:
            self._client.publish(self._will_topic, status, qos=0, retain=True)

    def _publish_queued(self) -> None:
        while self.error is None and self._queue and self.announced and len(self._in_flight) < self.announced.in_flight:
            topic, payload, answer = self._queue.popleft()
            mid = self._client.publish(topic, payload, qos=1).mid
            self._in_flight[mid] = (answer, len(payload))

    async def _wait_for_change(self) -> None:
        if self.error is not None:
            raise self.error
        self._changed.clear()
        await self._changed.wait()
