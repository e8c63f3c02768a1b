"""The way to a broker: lines are published at QoS 1, and held in the outbox until the broker has taken them.

paho's own thread keeps the connection, comes back after a loss and sends again what was not answered. Numbers go out in
order, a few at a time. A broker that answers that nobody listens, or that it refuses, has not taken a line: it is
published again, with all behind it, after a while. What comes twice by that guestd knows by number and mark.
"""

from __future__ import annotations

import argparse
import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from uuid import UUID

import structlog
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

from guestd.agent.transport import Sender
from guestd.core.errors import ConfigError
from guestd.core.secrets import read_secret

# So many lines of a machine are on their way at once.
WINDOW_LINES = 8
NOT_TAKEN_SECONDS = 2.0
LONGEST_RECONNECT_SECONDS = 10
PORT = 1883
# PUBACK of MQTT 5: taken, but for nobody, and so dropped.
NO_MATCHING_SUBSCRIBERS = 0x10

_log: structlog.stdlib.BoundLogger = structlog.get_logger("guestd.agent")


@dataclass(frozen=True, slots=True)
class Address:
    """A broker, and as whom to come. `tls` None: in the clear."""

    host: str
    port: int
    prefix: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = None

    def topic(self, machine_id: object, kind: str) -> str:
        """Where a machine's messages of a kind go."""
        return f"{self.prefix}/{machine_id}/{kind}"


def add_broker_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what it takes beside --mqtt to reach a broker."""
    add = parser.add_argument
    add(
        "--mqtt-ca",
        type=Path,
        metavar="FILE",
        help="authorities (PEM) that the broker's certificate is checked against",
    )
    add("--mqtt-cert", type=Path, metavar="FILE", help="our own certificate, where the broker asks for one")
    add("--mqtt-key", type=Path, metavar="FILE", help="and its key")
    add("--mqtt-user", metavar="NAME", help="user at the broker")
    add("--mqtt-password-file", type=Path, metavar="FILE", help="its password is the first line")
    add("--mqtt-prefix", metavar="TOPIC", default="guestd/v1", help="of the topics (default: guestd/v1)")


def broker_of(arguments: argparse.Namespace) -> Address:
    """The broker that the arguments name. Raises ConfigError for files that cannot be used."""
    host, _, port = arguments.mqtt.rpartition(":")
    if not host:
        host, port = port, str(PORT)
    if not port.isdecimal():
        raise ConfigError(f"--mqtt {arguments.mqtt}: must be HOST or HOST:PORT")
    file = arguments.mqtt_password_file
    password = read_secret(file, "--mqtt-password-file").decode() if file else None
    return Address(host, int(port), arguments.mqtt_prefix, arguments.mqtt_user, password, _tls(arguments))


def _tls(arguments: argparse.Namespace) -> ssl.SSLContext | None:
    if arguments.mqtt_ca is None:
        return None
    try:
        context = ssl.create_default_context(cafile=arguments.mqtt_ca)
        if arguments.mqtt_cert is not None:
            context.load_cert_chain(arguments.mqtt_cert, arguments.mqtt_key)
    except OSError as exc:  # an SSLError is one too
        raise ConfigError(f"--mqtt-ca, --mqtt-cert, --mqtt-key: {exc.strerror or exc}") from exc
    return context


class Connection:
    """A client of a broker, for one machine (`will_topic` tells others whether it is there) or for many."""

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
        self._client.on_connect_fail = lambda *_: self._tell(f"{address.host} port {address.port} cannot be reached")
        self._client.on_publish = self._on_publish
        self._client.connect_async(address.host, address.port)
        self._client.loop_start()

    def publish(self, topic: str, line: bytes) -> asyncio.Future[bool]:
        """Send a line; whether the broker has taken it comes with its answer, however long that takes."""
        taken: asyncio.Future[bool] = self._loop.create_future()
        # Without a connection it is sent as soon as there is one; the answer cannot be heard before this returns.
        self._waiting[self._client.publish(topic, line.rstrip(b"\n"), qos=1).mid] = taken
        return taken

    def close(self) -> None:
        """Leave in good order."""
        if self._will_topic is not None:
            self._client.publish(self._will_topic, b"offline", qos=0, retain=True)
        self._client.disconnect()
        self._client.loop_stop()

    # ---- called by paho's thread

    def _on_connect(self, _client: Client, _: object, _flags: object, reason: ReasonCode, _properties: object) -> None:
        self._tell(f"the broker does not let us in: {reason}" if reason.is_failure else "")
        if not reason.is_failure and self._will_topic is not None:
            self._client.publish(self._will_topic, b"online", qos=0, retain=True)

    def _on_publish(self, _client: Client, _: object, mid: int, reason: ReasonCode, _properties: object) -> None:
        self._loop.call_soon_threadsafe(self._answered, mid, reason)

    def _tell(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            _log.warning("the broker is not available, trying again", why=trouble)
        self._trouble = trouble

    # ---- called on the loop

    def _answered(self, mid: int, reason: ReasonCode) -> None:
        taken = self._waiting.pop(mid, None)
        if reason.is_failure:
            self._tell(f"the broker refuses what we publish: {reason}")
        if taken is not None and not taken.done():
            taken.set_result(not reason.is_failure and reason.value != NO_MATCHING_SUBSCRIBERS)


async def attend_broker(address: Address, machine_id: UUID, sender: Sender) -> None:
    """Report one machine to a broker, for ever."""
    connection = Connection(address, f"guestd-agent-{machine_id}", address.topic(machine_id, "status"))
    try:
        await speak(partial(connection.publish, address.topic(machine_id, "metrics")), sender)
    finally:
        connection.close()


async def speak(publish: Callable[[bytes], asyncio.Future[bool]], sender: Sender) -> None:
    """Publish the lines of a machine, in order, for ever; what the broker has taken is forgotten."""
    outbox = sender.outbox
    on_their_way: deque[tuple[int, asyncio.Future[bool]]] = deque()
    while True:
        while len(on_their_way) < WINDOW_LINES and (line := outbox.following_line()) is not None:
            answer = publish(line)
            answer.add_done_callback(lambda _: sender.wake())
            on_their_way.append((outbox.written, answer))
        if not on_their_way or not on_their_way[0][1].done():
            await sender.woken()
            continue
        seq, answer = on_their_way.popleft()
        if answer.result():
            sender.taken(seq)
            continue
        await asyncio.gather(*(later for _, later in on_their_way))
        on_their_way.clear()
        await asyncio.sleep(NOT_TAKEN_SECONDS)
        outbox.restart()
