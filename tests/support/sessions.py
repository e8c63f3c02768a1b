"""guestd's session at a real broker, without the daemon around it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion
from prometheus_client import CollectorRegistry
from tools.harness.broker import Broker, prefix
from tools.harness.waiting import eventually

from guestd.core.config import MqttSettings
from guestd.ingest.mqtt_session import BrokerSession
from guestd.mqtt.connection import BrokerConnection, Subscribed
from guestd.mqtt.options import read_options
from guestd.mqtt.session_file import SessionFile, open_session_file
from guestd.telemetry.registry import BrokerMetrics
from support.broker import PASSWORDS, started

TOPIC = "guestd/v1/+/metrics"
# As a mosquitto whose configuration is older than guestd's.
FREE_IDS = "use_username_as_clientid false"


@contextmanager
def free_broker(directory: Path) -> Iterator[Broker]:
    """A broker at which each client chooses its id."""
    with started(Broker(directory / "broker", prefix=prefix(), overrides=[FREE_IDS])) as broker:
        yield broker


@dataclass(frozen=True)
class OpenSession:
    """A session that is connected and subscribed, with the metrics that it counts with."""

    connection: BrokerConnection
    file: SessionFile
    registry: CollectorRegistry
    former_topic: str | None

    def count(self, metric: str) -> float | None:
        """The value of guestd_mqtt_<metric>_total."""
        return self.registry.get_sample_value(f"guestd_mqtt_{metric}_total")

    async def receive(self, count: int) -> None:
        """Receive and acknowledge so many messages."""
        received = 0
        while received < count:
            messages = await self.connection.receive(100, 1024 * 1024, 20.0)
            assert messages
            self.connection.acknowledge(messages)
            received += len(messages)
        assert received == count


def mqtt_settings(broker: Broker, user: str = "guestd", **changes: Any) -> MqttSettings:
    """guestd's settings for this broker, without a client id."""
    password_file = str(broker.directory / f"{user}.password")
    own: dict[str, Any] = {
        "host": "127.0.0.1", "port": broker.port, "username": user, "password_file": password_file
    }  # fmt: skip
    return MqttSettings(**(own | changes))


@dataclass
class Guestd:
    """What of guestd has a session: its settings and the directory of its spool; `start` is a start of the process."""

    settings: MqttSettings
    directory: Path
    now: Callable[[], float] = time.time

    def start(self, *, is_upgrade: bool = False) -> "Started":
        registry = CollectorRegistry()
        file = open_session_file(self.directory, self.settings.client_id, is_upgrade=is_upgrade)
        session = BrokerSession(read_options(self.settings), file, BrokerMetrics(registry), self.now)
        return Started(session, file, registry)


@dataclass(frozen=True)
class Started:
    """One life of a guestd."""

    session: BrokerSession
    file: SessionFile
    registry: CollectorRegistry

    @asynccontextmanager
    async def connected(self, topic: str = TOPIC) -> AsyncIterator[OpenSession]:
        """Connect and subscribe."""
        async with self.session.connect() as connection:
            former_topic = await self.session.begin(connection, topic)
            answered: asyncio.Future[list[Subscribed]] = asyncio.get_running_loop().create_future()
            connection.subscribe([(topic, 1)], answered.set_result)
            await asyncio.wait_for(answered, 20.0)
            yield OpenSession(connection, self.file, self.registry, former_topic)


def leave_session(broker: Broker, client_id: str, *topics: str, is_clean: bool = False) -> None:
    """Connect as guestd's user under this id, subscribe and leave; `is_clean` deletes what the session had."""
    with client_of(broker, "guestd", client_id, is_clean=is_clean) as client:
        answered: list[object] = []
        client.on_subscribe = lambda *_: answered.append(_)
        for topic in topics:
            client.subscribe(topic, 1)
        eventually(lambda: len(answered) == len(topics), "the broker has answered")


def publish(broker: Broker, count: int) -> None:
    """Publish so many messages at QoS 1 and wait until the broker has them."""
    with client_of(broker, "simulator", "publisher", is_clean=True) as client:
        confirmed: list[object] = []
        client.on_publish = lambda *_: confirmed.append(_)
        for number in range(count):
            client.publish("guestd/v1/6a1f0d5c-2b1e-4b62-9a52-8a3c1f5e7d90/metrics", b"%d" % number, 1)
        eventually(lambda: len(confirmed) == count, "the broker has all")


@contextmanager
def client_of(broker: Broker, user: str, client_id: str, *, is_clean: bool) -> Iterator[Client]:
    """A client of MQTT 3.1.1."""
    client = Client(CallbackAPIVersion.VERSION2, client_id=client_id, clean_session=is_clean)
    client.username_pw_set(user, PASSWORDS[user])
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    eventually(client.is_connected, "it is connected")
    try:
        yield client
    finally:
        client.disconnect()
        client.loop_stop()
