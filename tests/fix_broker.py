"""A real mosquitto with deploy/mosquitto's configuration, and a publisher that knows what the broker has taken."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from uuid import UUID

import pytest
from paho.mqtt.client import Client, MQTTMessageInfo
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from tools.broker import Broker, prefix

from fix_daemon import Daemon, eventually

PASSWORDS = {"guestd": "daemon's", "simulator": "everybody's"}


@pytest.fixture
def broker(directory: Path) -> Iterator[Broker]:
    """A running broker of this test's own."""
    broker = Broker(directory / "broker", prefix=prefix())
    for user, password in PASSWORDS.items():
        broker.add_user(user, password)
    try:
        broker.start()
        yield broker
    finally:
        broker.stop()


def mqtt_table(broker: Broker, **changes: object) -> str:
    """The table of guestd's configuration that names this broker."""
    keys: dict[str, object] = {
        "host": "127.0.0.1",
        "port": broker.port,
        "username": "guestd",
        "password_file": str(broker.directory / "guestd.password"),
        "client_id": "guestd-test",
    }
    # JSON's texts, numbers and truths are TOML's.
    return "[mqtt]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in (keys | changes).items())


@pytest.fixture
def subscribed(daemon: Daemon, broker: Broker) -> Daemon:
    """A guestd that is subscribed at the broker."""
    daemon.more_tables = mqtt_table(broker)
    daemon.start()
    is_connected(daemon)
    return daemon


def is_connected(daemon: Daemon) -> None:
    """Wait until guestd is subscribed."""
    eventually(lambda: daemon.metric("guestd_mqtt_connected") == 1, "guestd is subscribed")


class Publisher:
    """A client of the broker that publishes at QoS 1 and knows what was acknowledged; reconnects by itself."""

    def __init__(
        self,
        port: int,
        *,
        user: str = "simulator",
        password: str = PASSWORDS["simulator"],
        client_id: str = "publisher",
        prefix: str = "guestd/v1",
    ) -> None:
        self._prefix = prefix
        self.client = Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTProtocolVersion.MQTTv311, clean_session=False
        )
        self.client.username_pw_set(user, password)
        self.client.max_inflight_messages_set(100)
        self.client.reconnect_delay_set(1, 1)
        self._connected = threading.Event()
        self.client.on_connect = lambda *_: self._connected.set()
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert self._connected.wait(30)

    def __enter__(self) -> "Publisher":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, why: BaseException | None, where: TracebackType | None
    ) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def send(
        self, machine_id: UUID | str, payload: bytes, *, kind: str = "metrics", retain: bool = False
    ) -> MQTTMessageInfo:
        """Publish one message; does not wait."""
        return self.client.publish(f"{self._prefix}/{machine_id}/{kind}", payload.rstrip(b"\n"), qos=1, retain=retain)

    def sent(self, *infos: MQTTMessageInfo) -> None:
        """Wait until the broker has taken what was sent."""
        eventually(lambda: all(info.is_published() for info in infos), "the broker has taken it", 60)
