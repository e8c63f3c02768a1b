"""One connection to an MQTT broker: paho-mqtt speaks the protocol, the event loop does the waiting.

Messages are acknowledged by hand, and only over the connection that they came by: a broker that forgot its sessions
numbers from 1 again, and an acknowledgement of the connection before would be taken for one of another message. A
connection that is lost is not mended; its successor is another object.

No thread of its own: paho asks the kernel four times a message, and each time would have to wait for whoever holds the
interpreter (docs/decisions/0007-drive-paho-from-the-event-loop.md).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags
from paho.mqtt.enums import LogLevel, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from guestd.core.errors import SourceLost
from guestd.mqtt.client import ManualClient, Message
from guestd.mqtt.options import Login

ANSWER_SECONDS = 10.0
TICK_SECONDS = 1.0
# So many packets are read before others have their turn on the loop: some 3 ms.
READ_AT_ONCE = 100
# Whose setting is wrong when the broker says so.
_REMEDIES = {
    "Bad user name or password": "mqtt.username, mqtt.password_file",
    "Not authorized": "mqtt.username, mqtt.password_file, or the broker's ACL",
    "Client identifier not valid": "mqtt.client_id",
    "Unsupported protocol version": "mqtt.version",
    "Session taken over": "another client has our id: mqtt.client_id",
}


class Connection:
    """A connection that is up, until `received` or `acknowledge` raise SourceLost. Made by `connected`."""

    def __init__(self, client: ManualClient, login: Login) -> None:
        self._client = client
        self._login = login
        connected_socket = client.socket()
        assert isinstance(connected_socket, socket.socket)
        self._socket = connected_socket
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._lost: SourceLost | None = None
        self._last_error = ""
        self._is_reading = False
        self._unacknowledged_bytes = 0
        self._subscribing: dict[int, Callable[[list[str]], None]] = {}
        self.unacknowledged = 0
        self.has_session: bool | None = None
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_log = self._on_log
        client.on_socket_register_write = self._on_something_to_write
        client.on_socket_unregister_write = self._on_nothing_to_write
        client.on_socket_close = self._on_socket_close
        self._tick = self._loop.call_later(TICK_SECONDS, self._look_after)
        self._read_if_room()

    async def greeted(self) -> None:
        """Wait for the broker's answer to our coming."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._wait(lambda: self.has_session is not None)
        except TimeoutError:
            raise SourceLost(f"{_address(self._login)}it does not answer") from None
        self._client.on_log = None

    def subscribe(self, filters: Sequence[tuple[str, int]], heard: Callable[[list[str]], None]) -> None:
        """Subscribe to topics with a QoS each; what is retained comes with QoS 0 only.

        `heard` gets the answer, for each why it was refused; an empty text: it was granted. Nobody waits for it: it may
        come behind more messages than we want to hold.
        """
        if self._login.version is MQTTProtocolVersion.MQTTv5:
            options = [(topic, SubscribeOptions(qos, retainHandling=2 if qos else 0)) for topic, qos in filters]
            _, mid = self._client.subscribe(options)
        else:
            _, mid = self._client.subscribe(list(filters))
        assert mid is not None
        self._subscribing[mid] = heard

    def give_up(self, exc: str) -> None:
        """Make this connection one that is lost."""
        self._last_error = ""
        self._fail(exc)

    def publish(self, topic: str, payload: bytes) -> None:
        """Say something once, to be kept for later listeners."""
        self._client.publish(topic, payload, qos=0, retain=True)

    async def received(self, most: int, seconds: float | None) -> list[Message]:
        """Up to so many messages, in order: at least one, unless none comes for so long. Raises SourceLost."""
        taken = self._client.taken
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wait(lambda: bool(taken))
        return [taken.popleft() for _ in range(min(most, len(taken)))]

    def acknowledge(self, messages: Iterable[Message]) -> None:
        """Tell the broker that it may forget messages: the oldest that are not acknowledged yet, in order.

        Raises SourceLost when the connection is gone: they will come again.
        """
        if self._lost is not None:
            raise self._lost
        for message in messages:
            self._unacknowledged_bytes -= len(message.payload)
            self.unacknowledged -= 1
            if message.mid:
                self._client.ack(message.mid, 1)
        self._read_if_room()

    def close(self) -> None:
        """Leave in good order, as far as the socket takes it; the session stays."""
        self._tick.cancel()
        if self._lost is None:
            if self._login.will_topic:
                self.publish(self._login.will_topic, b"offline")
            self._client.disconnect()
            self._write()
        self._fail("closed")
        if self._client.socket() is not None:  # the farewell found no room
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()

    def _read_if_room(self) -> None:
        """Read on unless the broker has sent more than we want to hold: with 3.1.1 nothing else bounds it."""
        has_room = (
            self._unacknowledged_bytes < self._login.unacknowledged_bytes
            # Twice, so that a broker that keeps to it is always heard: its answers come behind what it has sent.
            and self.unacknowledged < 2 * self._login.receive_maximum
        )
        if self._lost is None and has_room is not self._is_reading:
            self._is_reading = has_room
            if has_room:
                self._loop.add_reader(self._socket, self._read)
                self._loop.call_soon(self._read)  # what was read ahead makes no event
            else:
                self._loop.remove_reader(self._socket)

    def _read(self) -> None:
        taken = self._client.taken
        for _ in range(READ_AT_ONCE):
            before = len(taken)
            if not self._is_reading or self._lost is not None:
                break
            if self._client.loop_read() != MQTTErrorCode.MQTT_ERR_SUCCESS:
                self._fail("the connection was lost")
                break
            if len(taken) > before:
                self.unacknowledged += 1
                self._unacknowledged_bytes += len(taken[-1].payload)
                self._read_if_room()
            elif not self._has_more():
                break
        else:
            if self._has_more():
                self._loop.call_soon(self._read)
        self._news.set()

    def _has_more(self) -> bool:
        """Whether there is something to read that the socket makes no event for."""
        if self._lost is not None:
            return False
        return self._client.has_read_ahead or (isinstance(self._socket, ssl.SSLSocket) and self._socket.pending() > 0)

    def _write(self) -> None:
        """Write what waits: hundreds of acknowledgements of 4 bytes in one segment."""
        if self._lost is not None:
            return
        self._cork(1)
        if self._client.loop_write() != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._fail("the connection was lost")
        self._cork(0)

    def _cork(self, is_on: int) -> None:
        with suppress(OSError):
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, is_on)

    def _look_after(self) -> None:
        """Ping when it is quiet, and notice when nobody answers; unless it is we who do not listen."""
        if not self._is_reading:
            self._client.excuse_silence()
        if self._client.loop_misc() != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._fail("it does not answer any more")
        self._tick = self._loop.call_later(TICK_SECONDS, self._look_after)

    async def _wait(self, is_so: Callable[[], bool]) -> None:
        while True:
            if self._lost is not None:
                raise self._lost
            if is_so():
                return
            self._news.clear()
            await self._news.wait()

    def _fail(self, exc: str) -> None:
        if self._lost is None:
            self._lost = SourceLost(_address(self._login) + (self._last_error or exc))
            self._tick.cancel()
            self._news.set()

    def _on_connect(
        self, _client: Client, _: object, flags: ConnectFlags, reason: ReasonCode, _properties: object
    ) -> None:
        if reason.is_failure:
            self._last_error = _refusal(reason)
        else:
            self.has_session = bool(flags.session_present)
            self._last_error = ""
        self._news.set()

    def _on_subscribe(
        self, _client: Client, _: object, mid: int, reasons: list[ReasonCode], _properties: object
    ) -> None:
        self._subscribing.pop(mid)([str(code) if code.is_failure else "" for code in reasons])

    def _on_disconnect(
        self, _client: Client, _: object, flags: DisconnectFlags, reason: ReasonCode, _properties: object
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            self._last_error = _refusal(reason)
        self._fail("the connection was lost")

    def _on_something_to_write(self, _client: Client, _: object, _socket: object) -> None:
        self._loop.add_writer(self._socket, self._write)

    def _on_nothing_to_write(self, _client: Client, _: object, _socket: object) -> None:
        self._loop.remove_writer(self._socket)

    def _on_socket_close(self, _client: Client, _: object, _socket: object) -> None:
        self._loop.remove_reader(self._socket)

    def _on_log(self, _client: Client, _: object, level: int, text: str) -> None:
        # The only way to hear why a handshake failed.
        if level == LogLevel.MQTT_LOG_ERR:
            self._last_error = text


def _refusal(reason: ReasonCode) -> str:
    remedy = _REMEDIES.get(str(reason))
    return f"{reason} ({remedy})" if remedy else str(reason)


def _address(login: Login) -> str:
    return f"{login.host} port {login.port}: "


@asynccontextmanager
async def connected(login: Login) -> AsyncIterator[Connection]:
    """Connect, with the session that the broker keeps under our id; closed in good order on leaving.

    Raises SourceLost when it cannot be reached or does not want us; the text names the setting that it is about.
    """
    client = ManualClient(login)
    if login.username:
        client.username_pw_set(login.username, login.password)
    if login.tls is not None:
        client.tls_set_context(login.tls)
    if login.will_topic:
        client.will_set(login.will_topic, b"offline", qos=1, retain=True)
    client.connect_timeout = ANSWER_SECONDS
    try:
        await asyncio.to_thread(_connect, client, login)
    except ssl.SSLCertVerificationError as exc:
        raise SourceLost(f"{_address(login)}{exc.verify_message} (mqtt.tls_ca_file, mqtt.host)") from exc
    except (OSError, UnicodeError) as exc:  # the latter of names that cannot be one
        raise SourceLost(f"{_address(login)}{getattr(exc, 'strerror', None) or exc}") from exc
    connection = Connection(client, login)
    try:
        await connection.greeted()
        yield connection
    finally:
        connection.close()


def _connect(client: ManualClient, login: Login) -> None:
    """Name, socket, handshake: paho waits for these, so this runs in a thread."""
    if login.version is not MQTTProtocolVersion.MQTTv5:
        client.connect(login.host, login.port, login.keepalive_seconds)
        return
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho's only untyped class
    properties.SessionExpiryInterval = login.session_seconds
    properties.ReceiveMaximum = login.receive_maximum
    properties.MaximumPacketSize = login.max_message_bytes
    client.connect(login.host, login.port, login.keepalive_seconds, clean_start=False, properties=properties)
