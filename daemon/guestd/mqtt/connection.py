"""One connection to an MQTT broker: paho-mqtt implements the protocol, the event loop waits.

Messages are acknowledged by hand, and only over the connection that delivered them: a broker that lost its sessions
numbers from 1 again, and an acknowledgement of the connection before would acknowledge another message. A lost
connection is not repaired; its successor is a new object.

No thread of its own: paho makes four system calls a message, and each time would have to wait for the interpreter's
lock (docs/decisions/0007-drive-paho-from-the-event-loop.md).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

from paho.mqtt import MQTTException
from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags
from paho.mqtt.enums import LogLevel, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from guestd.core import broker
from guestd.core.errors import SourceLost
from guestd.core.tls import explain_unconnected
from guestd.mqtt.client import ManualClient, Message
from guestd.mqtt.options import BrokerOptions

ANSWER_SECONDS = 10.0
TICK_SECONDS = 1.0
# Packets read before yielding to the event loop: a millisecond or two.
READ_AT_ONCE, READ_AT_ONCE_BYTES = 100, 1024 * 1024
# The setting to check, by the broker's reason.
_REMEDIES = {
    "Bad user name or password": "mqtt.username, mqtt.password_file",
    "Not authorized": (
        "mqtt.username, mqtt.password_file, or the broker's ACL; or mqtt.client_id, if it must be mqtt.username there"
    ),
    "Client identifier not valid": (
        "mqtt.client_id, which some brokers require to be mqtt.username; "
        "or, with 3.1.1, mqtt.keepalive_seconds above its max_keepalive"
    ),
    "Packet too large": "the broker's max_packet_size",
    "Shared subscription not supported": "mqtt.shared_group",
    "Unsupported protocol version": "mqtt.version",
    "Session taken over": (
        "another client has our id: mqtt.client_id; mqtt.username, if the broker names sessions by it"
    ),
}
_UNANSWERED = (
    "the broker closed the connection without an answer: see its log; it may have no memory (memory_limit) or no file "
    "descriptor left"
)
# What paho raises for a packet that it cannot read.
_UNREADABLE = (MQTTException, struct.error, ValueError, LookupError, TypeError)
# The broker cannot keep our status.
_WILL_REFUSED = (broker.RETAIN_NOT_SUPPORTED, broker.QOS_NOT_SUPPORTED)


@dataclass(frozen=True, slots=True)
class Announced:
    """What the broker offers, by its CONNACK: of MQTT 3.1.1 the defaults, for it announces nothing.

    `session_seconds`: how long it keeps our session, if not as long as we requested. `assigned_id`: the client id that
    it has for us, if we sent none.
    """

    has_session: bool
    assigned_id: str
    packet_bytes: int
    has_qos1: bool
    retains: bool
    session_seconds: int | None


@dataclass(frozen=True, slots=True)
class Subscribed:
    """The broker's answer for one topic: why it refuses it, else an empty text and the QoS that it grants."""

    refusal: str
    qos: int


class BrokerConnection:
    """A connection that is up, until `receive` or `acknowledge` raise SourceLost. Created by `connect`.

    With `forgets_session` set, closing it ends the session too (MQTT 5).
    """

    def __init__(self, client: ManualClient, options: BrokerOptions) -> None:
        self._client = client
        self._options = options
        connected_socket = client.socket()
        assert isinstance(connected_socket, socket.socket)
        self._socket = connected_socket
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._lost: Exception | None = None
        self._last_error = ""
        self._is_reading = False
        self._unacknowledged_bytes = 0
        self._subscribing: dict[int, Callable[[list[Subscribed]], None]] = {}
        self._accepted_at: float | None = None
        self._announced: Announced | None = None
        self.unacknowledged = 0
        self.end_code: int | None = None
        self.is_closed_by_broker = False
        self.forgets_session = False
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_log = self._on_log
        client.on_socket_register_write = self._on_write_pending
        client.on_socket_unregister_write = self._on_write_done
        client.on_socket_close = self._on_socket_close
        self._tick = self._loop.call_later(TICK_SECONDS, self._keep_alive)
        self._read_if_room()

    async def wait_for_connack(self) -> None:
        """Wait for the broker to accept the connection. Raises SourceLost when it does not answer or refuses."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._wait(lambda: self._announced is not None)
        except TimeoutError:
            raise SourceLost(f"{_address(self._options)}no answer") from None
        except SourceLost:
            # Accepted and lost at once: the caller learns of both, from the connection.
            if self._announced is None:
                raise
        self._client.on_log = None

    @property
    def announced(self) -> Announced:
        """What the broker offers."""
        assert self._announced is not None, "connect() waits for it"
        return self._announced

    @property
    def publishes_status(self) -> bool:
        """Whether the broker keeps our status."""
        return bool(self._options.will_topic) and self.announced.retains

    @property
    def lived_seconds(self) -> float | None:
        """Seconds since the broker accepted the connection; None if it did not."""
        return None if self._accepted_at is None else time.monotonic() - self._accepted_at

    def subscribe(self, filters: Sequence[tuple[str, int]], on_answer: Callable[[list[Subscribed]], None]) -> None:
        """Subscribe to topics with a QoS each; retained messages are requested with QoS 0 only.

        `on_answer` gets the broker's answer for each topic. Nothing waits for it: it may arrive after more messages
        than we want to hold. Raises SourceLost.
        """
        if self._lost is not None:
            raise self._lost
        if self._options.version is MQTTProtocolVersion.MQTTv5:
            options = [(topic, SubscribeOptions(qos, retainHandling=2 if qos else 0)) for topic, qos in filters]
            _, mid = self._client.subscribe(options)
        else:
            _, mid = self._client.subscribe(list(filters))
        assert mid is not None
        self._subscribing[mid] = on_answer

    def unsubscribe(self, topic: str) -> None:
        """End a subscription that the session has of an earlier configuration."""
        self._client.unsubscribe(topic)

    def fail(self, reason: str) -> None:
        """Treat the connection as lost."""
        self._last_error = ""
        self._fail(reason)

    def publish(self, topic: str, payload: bytes) -> None:
        """Publish a retained message."""
        self._client.publish(topic, payload, qos=0, retain=True)

    async def receive(self, max_messages: int, max_bytes: int, timeout_seconds: float | None) -> list[Message]:
        """The next messages, in order: at least one, unless the timeout passes. Raises SourceLost."""
        received = self._client.received
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._wait(lambda: bool(received))
        messages: list[Message] = []
        size_bytes = 0
        while received and len(messages) < max_messages and size_bytes < max_bytes:
            messages.append(received.popleft())
            size_bytes += len(messages[-1].payload)
        return messages

    def acknowledge(self, messages: Iterable[Message]) -> None:
        """Acknowledge messages: the oldest that are not acknowledged yet, in order.

        Raises SourceLost when the connection is gone: they will be delivered again.
        """
        if self._lost is not None:
            raise self._lost
        mids = []
        for message in messages:
            self._unacknowledged_bytes -= len(message.payload)
            self.unacknowledged -= 1
            if message.mid:
                mids.append(message.mid)
        self._client.acknowledge(mids)
        self._read_if_room()

    def close(self) -> None:
        """Disconnect cleanly, as far as the socket accepts it; the session stays, unless `forgets_session` is set."""
        self._tick.cancel()
        if self._lost is None:
            if self._announced is not None and self.publishes_status:
                self.publish(self._options.will_topic, b"offline")
            self._client.disconnect(properties=_no_session() if self.forgets_session else None)
            self._write()
        self._fail("closed")
        if self._client.socket() is not None:  # the last packets did not fit
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()

    def _read_if_room(self) -> None:
        """Read unless the broker has sent more than we want to hold: with 3.1.1 nothing else bounds it."""
        has_room = (
            self._unacknowledged_bytes < self._options.unacknowledged_bytes
            # Twice, so that a broker that respects it is always read: its answers come after the messages.
            and self.unacknowledged < 2 * self._options.receive_maximum
        )
        if self._lost is None and has_room is not self._is_reading:
            self._is_reading = has_room
            if has_room:
                self._loop.add_reader(self._socket, self._read)
                self._loop.call_soon(self._read)  # the socket raises no event for what was read ahead
            else:
                self._loop.remove_reader(self._socket)

    def _read(self) -> None:
        received, allowed_bytes = self._client.received, READ_AT_ONCE_BYTES
        for _ in range(READ_AT_ONCE):
            before = len(received)
            if allowed_bytes <= 0:
                self._loop.call_soon(self._read)
                break
            if not self._is_reading or self._lost is not None:
                break
            try:
                is_read = self._client.loop_read() == MQTTErrorCode.MQTT_ERR_SUCCESS
            except _UNREADABLE as exc:
                self._fail_unreadable(str(exc))
                break
            except Exception as exc:
                self._fail_with(exc)
                break
            if not is_read:
                self._fail("the connection was lost")
                break
            if len(received) > before:
                self.unacknowledged += 1
                self._unacknowledged_bytes += len(received[-1].payload)
                allowed_bytes -= len(received[-1].payload)
                self._read_if_room()
            elif not self._has_more():
                break
        else:
            if self._has_more():
                self._loop.call_soon(self._read)
        self._wake.set()

    def _has_more(self) -> bool:
        """Whether there is something to read for which the socket raises no event."""
        if self._lost is not None:
            return False
        return self._client.has_read_ahead or (isinstance(self._socket, ssl.SSLSocket) and self._socket.pending() > 0)

    def _write(self) -> None:
        """Write what is pending."""
        if self._lost is not None:
            return
        try:
            is_written = self._client.loop_write() == MQTTErrorCode.MQTT_ERR_SUCCESS
        except Exception as exc:
            self._fail_with(exc)
            return
        if not is_written:
            self._fail("the connection was lost")

    def _keep_alive(self) -> None:
        """Ping when it is quiet, and detect a broker that does not answer, unless we have stopped reading."""
        if not self._is_reading:
            self._client.reset_keepalive()
        try:
            is_answering = self._client.loop_misc() == MQTTErrorCode.MQTT_ERR_SUCCESS
        except Exception as exc:
            self._fail_with(exc)
            return
        if not is_answering:
            self._fail("no answer")
        self._tick = self._loop.call_later(TICK_SECONDS, self._keep_alive)

    async def _wait(self, is_so: Callable[[], bool]) -> None:
        while True:
            if self._lost is not None:
                raise self._lost
            if is_so():
                return
            self._wake.clear()
            await self._wake.wait()

    def _fail(self, reason: str) -> None:
        self._fail_with(SourceLost(_address(self._options) + (self._last_error or reason)))

    def _fail_with(self, exc: Exception) -> None:
        """End the connection with an exception, that `receive` raises.

        What a callback of the event loop raises would be lost, and the callback called again at once.
        """
        if self._lost is None:
            self._lost = exc
            self._tick.cancel()
            self._wake.set()

    def _on_connect(
        self, _client: Client, _: object, flags: ConnectFlags, reason: ReasonCode, properties: object
    ) -> None:
        if reason.is_failure:
            self.end_code = reason.value
            self._last_error = broker.describe_reason(reason, properties, _REMEDIES)
        else:
            self._accepted_at = time.monotonic()
            self._announced = Announced(
                has_session=bool(flags.session_present),
                assigned_id=getattr(properties, "AssignedClientIdentifier", ""),
                packet_bytes=getattr(properties, "MaximumPacketSize", broker.PROTOCOL_PACKET_BYTES),
                has_qos1=getattr(properties, "MaximumQoS", 1) > 0,
                retains=bool(getattr(properties, "RetainAvailable", 1)),
                session_seconds=getattr(properties, "SessionExpiryInterval", None),
            )
            self._last_error = ""
        self._wake.set()

    def _on_subscribe(
        self, _client: Client, _: object, mid: int, reasons: list[ReasonCode], _properties: object
    ) -> None:
        on_answer = self._subscribing.pop(mid, None)
        if on_answer is None:
            return
        answers = [Subscribed(str(each), 0) if each.is_failure else Subscribed("", each.value) for each in reasons]
        try:
            on_answer(answers)
        except Exception as exc:
            # Not to `_read`, where it could pass for a packet that cannot be read.
            self._fail_with(exc)

    def _on_disconnect(
        self, _client: Client, _: object, flags: DisconnectFlags, reason: ReasonCode, properties: object
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            self.end_code = reason.value
            self._last_error = broker.describe_reason(reason, properties, _REMEDIES)
        elif reason == "Protocol error" and not self._last_error:
            self._fail_unreadable("protocol error")
        elif reason == "Unspecified error" and self._lost is None:
            self.is_closed_by_broker = True
        self._fail("the connection was lost" if self._announced is not None else _UNANSWERED)

    def _fail_unreadable(self, reason: str) -> None:
        self._fail(f"the broker sent a packet that cannot be read: {reason}")

    def _on_write_pending(self, _client: Client, _: object, _socket: object) -> None:
        self._loop.add_writer(self._socket, self._write)

    def _on_write_done(self, _client: Client, _: object, _socket: object) -> None:
        self._loop.remove_writer(self._socket)

    def _on_socket_close(self, _client: Client, _: object, _socket: object) -> None:
        self._loop.remove_reader(self._socket)

    def _on_log(self, _client: Client, _: object, level: int, text: str) -> None:
        # The only place where paho reports why a handshake failed.
        if level == LogLevel.MQTT_LOG_ERR:
            self._last_error = text


def _address(options: BrokerOptions) -> str:
    return f"{options.address}: "


def _no_session() -> Properties:
    properties = Properties(PacketTypes.DISCONNECT)  # type: ignore[no-untyped-call]  # paho's only untyped class
    properties.SessionExpiryInterval = 0
    return properties


@asynccontextmanager
async def connect(options: BrokerOptions) -> AsyncIterator[BrokerConnection]:
    """Connect, with the session that the broker keeps under our id; closed cleanly on leaving.

    Raises BrokerRefused when the broker refuses us, SourceLost when it cannot be reached; the text names the setting to
    check. A broker that cannot keep our status is connected to without it.
    """
    try:
        connection = await _open(options)
    except _WillRefusedError:
        connection = await _open(replace(options, will_topic=""))
    try:
        yield connection
    finally:
        connection.close()


class BrokerRefused(SourceLost):
    """The broker answered, and refuses the connection."""


class _WillRefusedError(BrokerRefused):
    """The broker does not take our last will."""


async def _open(options: BrokerOptions) -> BrokerConnection:
    client = ManualClient(options)
    if options.username:
        client.username_pw_set(options.username, options.password)
    if options.tls is not None:
        client.tls_set_context(options.tls)
    if options.will_topic:
        client.will_set(options.will_topic, b"offline", qos=1, retain=True)
    client.connect_timeout = ANSWER_SECONDS
    try:
        await asyncio.to_thread(_connect, client, options)
    except ssl.SSLCertVerificationError as exc:
        raise SourceLost(f"{_address(options)}{exc.verify_message} (mqtt.tls_ca_file, mqtt.host)") from exc
    except (OSError, UnicodeError) as exc:  # a UnicodeError for text that is not a host name
        raise SourceLost(f"{_address(options)}{explain_unconnected(exc, options.tls)}") from exc
    connection = BrokerConnection(client, options)
    try:
        await connection.wait_for_connack()
    except BaseException as exc:
        connection.close()
        if not isinstance(exc, SourceLost) or connection.end_code is None:
            raise
        if options.will_topic and connection.end_code in _WILL_REFUSED:
            raise _WillRefusedError(str(exc)) from exc
        raise BrokerRefused(str(exc)) from exc
    return connection


def _connect(client: ManualClient, options: BrokerOptions) -> None:
    """Resolve the name, connect, shake hands: paho blocks here, so this runs in a thread."""
    if options.version is not MQTTProtocolVersion.MQTTv5:
        client.connect(options.host, options.port, options.keepalive_seconds)
        return
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho's only untyped class
    properties.SessionExpiryInterval = options.session_seconds
    properties.ReceiveMaximum = options.receive_maximum
    properties.MaximumPacketSize = options.max_message_bytes
    client.connect(options.host, options.port, options.keepalive_seconds, clean_start=False, properties=properties)
