"""A real mosquitto with deploy/mosquitto's configuration, and a publisher that knows what the broker has taken."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from uuid import UUID, uuid4

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from tools.harness.broker import Broker, prefix
from tools.harness.waiting import eventually

from support.daemon import Daemon, add_machine
from support.faults import sample_line

PASSWORDS = {"guestd": "daemon's", "simulator": "everybody's"}


@contextmanager
def started(broker: Broker) -> Iterator[Broker]:
    """This broker, running, with the users of PASSWORDS."""
    for user, password in PASSWORDS.items():
        broker.add_user(user, password)
    try:
        broker.start()
        yield broker
    finally:
        broker.stop()


@pytest.fixture
def broker(directory: Path) -> Iterator[Broker]:
    """A running broker of this test's own."""
    with started(Broker(directory / "broker", prefix=prefix())) as broker:
        yield broker


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


def known_machine(daemon: Daemon) -> UUID:
    """A machine that the store and guestd know."""
    known = daemon.metric("guestd_machines")
    machine_id = add_machine(daemon.dsn)
    eventually(lambda: daemon.metric("guestd_machines") > known, "guestd knows the machine")
    return machine_id


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
        self.client.on_publish = self._on_publish
        self._sent = self._taken = 0
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert self._connected.wait(30)

    def __enter__(self) -> "Publisher":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, where: TracebackType | None
    ) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def send(self, machine_id: UUID | str, payload: bytes, *, kind: str = "metrics", retain: bool = False) -> None:
        """Publish one message; does not wait. What the broker cannot take now is sent when it is back."""
        self._sent += 1
        self.client.publish(f"{self._prefix}/{machine_id}/{kind}", payload.rstrip(b"\n"), qos=1, retain=retain)

    def all_is_taken(self) -> None:
        """Wait until the broker has taken all that was sent."""
        eventually(lambda: self._taken == self._sent, "the broker has taken all", 60)

    def _on_publish(self, *_: object) -> None:
        self._taken += 1


class Load:
    """Samples of several machines, published one after the other from a thread until `finish`.

    Half of the machines number their lines, as our agent does.
    """

    def __init__(self, publisher: Publisher, machines: list[UUID], *, per_second: int = 200) -> None:
        self._publisher = publisher
        self._runs = {machine_id: uuid4() if place % 2 else None for place, machine_id in enumerate(machines)}
        self._pause_seconds = 1 / per_second
        self._ending = threading.Event()
        self.sent: dict[UUID, list[int]] = {machine_id: [] for machine_id in machines}
        self._thread = threading.Thread(target=self._publish)

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, where: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()

    @property
    def count(self) -> int:
        """How many were sent until now."""
        return sum(map(len, self.sent.values()))

    def grows_by(self, samples: int) -> None:
        """Wait until so many more were sent."""
        wanted = self.count + samples
        eventually(lambda: self.count >= wanted, "the load goes on", 60)

    def finish(self) -> None:
        """Send no more, and wait until the broker has taken all."""
        self._ending.set()
        self._thread.join()
        self._publisher.all_is_taken()

    def _publish(self) -> None:
        number = 0
        while True:
            number += 1
            for machine_id, boot_id in self._runs.items():
                if self._ending.wait(self._pause_seconds):
                    return
                self._publisher.send(machine_id, sample_line(number, boot_id, oldest=number))
                self.sent[machine_id].append(number)
