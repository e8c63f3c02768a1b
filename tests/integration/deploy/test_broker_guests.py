"""What a guest with a user of its own can do to others at a real mosquitto with the files of deploy/mosquitto."""

import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from tools.harness.broker import DEPLOY, Broker, prefix
from tools.harness.ports import free_port
from tools.harness.waiting import eventually

from support.broker import PASSWORDS, started

ATTACKER, VICTIM = "6a1f0d5c-2b1e-4b62-9a52-8a3c1f5e7d90", "7a1f0d5c-2b1e-4b62-9a52-8a3c1f5e7d90"
USERS = PASSWORDS | {ATTACKER: "attacker's", VICTIM: "victim's"}
METRICS = "guestd/v1/+/metrics"
GROUP = "7b0c6f4e5d"


class Guest:
    """A client of the broker that keeps its session for ten minutes; connects once."""

    def __init__(self, port: int, user: str, client_id: str, *, version: str = "5", is_clean: bool = False) -> None:
        is_5 = version == "5"
        self.client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=MQTTProtocolVersion.MQTTv5 if is_5 else MQTTProtocolVersion.MQTTv311,
            clean_session=None if is_5 else is_clean,
            reconnect_on_failure=False,
        )
        self.client.username_pw_set(user, USERS[user])
        self.received: list[MQTTMessage] = []
        self.confirmed = 0
        self.is_connected = threading.Event()
        self.is_gone = threading.Event()
        self.assigned_id = ""
        self._answers = 0
        self.client.on_connect = self._on_connect
        self.client.on_message = lambda _, __, message: self.received.append(message)
        self.client.on_publish = self._on_publish
        self.client.on_subscribe = self._on_subscribe
        self.client.on_disconnect = lambda *_: self.is_gone.set()
        if is_5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = 600
            self.client.connect("127.0.0.1", port, clean_start=is_clean, properties=properties)
        else:
            self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert self.is_connected.wait(30)

    def subscribe(self, *topics: str) -> None:
        """Subscribe at QoS 1 and wait for the answer, or the end of the connection."""
        before = self._answers
        self.client.subscribe([(topic, 1) for topic in topics])
        eventually(lambda: self._answers > before or self.is_gone.is_set(), "an answer")

    def publish(self, payloads: range, machine: str = VICTIM, size_bytes: int = 0) -> None:
        """Publish numbers at QoS 1."""
        for number in payloads:
            self.client.publish(f"guestd/v1/{machine}/metrics", b"%d".ljust(size_bytes) % number, 1)

    def count_received(self) -> int:
        """How many different messages it has received."""
        return len({bytes(message.payload) for message in self.received})

    def leave(self) -> None:
        """Disconnect; the session stays."""
        self.client.disconnect()
        self.client.loop_stop()

    def _on_connect(self, _client: Client, _: object, _flags: object, _reason: object, properties: object) -> None:
        self.assigned_id = getattr(properties, "AssignedClientIdentifier", "")
        self.is_connected.set()

    def _on_publish(self, *_: object) -> None:
        self.confirmed += 1

    def _on_subscribe(self, *_: object) -> None:
        self._answers += 1


@contextmanager
def connected(port: int, user: str, client_id: str, **options: str | bool) -> Iterator[Guest]:
    guest = Guest(port, user, client_id, **options)  # type: ignore[arg-type]
    try:
        yield guest
    finally:
        guest.leave()


@contextmanager
def shipped_broker(directory: Path, *overrides: str, **options: list[str]) -> Iterator[Broker]:
    broker = Broker(directory / "broker", prefix=prefix(), overrides=overrides, **options)  # type: ignore[arg-type]
    for user, password in USERS.items():
        broker.add_user(user, password)
    with started(broker):
        yield broker


@pytest.fixture
def port(directory: Path) -> Iterator[int]:
    with shipped_broker(directory) as broker:
        yield broker.port


def leave_session(port: int, *topics: str, version: str = "5") -> None:
    """As guestd, subscribe and leave."""
    with connected(port, "guestd", "guestd-host", version=version) as daemon:
        daemon.subscribe(*topics)


@pytest.mark.parametrize("version", ["5", "3.1.1"])
@pytest.mark.parametrize("sent", [300, 690])
def test_a_guest_that_sends_the_client_id_of_guestd_takes_none_of_its_messages(
    port: int, version: str, sent: int
) -> None:
    leave_session(port, METRICS, version=version)
    with connected(port, VICTIM, "agent", version=version) as victim:
        for first in range(0, sent, 30):
            victim.publish(range(first, first + 30))
            eventually(lambda: victim.confirmed == first + 30, "the broker has them")  # noqa: B023
            for stolen_id in ("guestd-host", "guestd"):
                # One deletes the session, the other receives what is queued in it.
                Guest(port, ATTACKER, stolen_id, version=version, is_clean=bool(first % 60)).leave()
    with connected(port, "guestd", "guestd-host", version=version) as daemon:
        eventually(lambda: daemon.count_received() == sent, "all that was queued")


def test_a_guest_that_sends_the_client_id_of_another_agent_does_not_end_its_connection(port: int) -> None:
    with connected(port, VICTIM, f"guestd-agent-{VICTIM}") as victim:
        for stolen_id in (f"guestd-agent-{VICTIM}", VICTIM):
            with connected(port, ATTACKER, stolen_id) as attacker:
                attacker.publish(range(1), ATTACKER)
                eventually(lambda: attacker.confirmed == 1, "the attacker is served")
        victim.publish(range(1))
        eventually(lambda: victim.confirmed == 1, "the victim is served")
        assert not victim.is_gone.is_set()


def test_a_client_without_an_id_is_told_that_it_has_the_one_of_its_user(port: int) -> None:
    with connected(port, "guestd", "") as daemon:
        assert daemon.assigned_id == "guestd"


def test_a_guest_reads_nothing_whatever_it_subscribes_to(port: int) -> None:
    with connected(port, "guestd", "") as daemon, connected(port, ATTACKER, "") as attacker:
        daemon.subscribe(METRICS, f"$share/{GROUP}/{METRICS}")
        attacker.subscribe("#", METRICS, "$SYS/#", f"guestd/v1/{VICTIM}/metrics", "guestd/v1/host/+/status")
        with connected(port, VICTIM, "") as victim:
            victim.publish(range(50))
            eventually(lambda: daemon.count_received() == 50, "guestd receives them")
        assert attacker.received == []


def test_a_guest_that_does_not_know_the_shared_group_takes_no_part_of_its_messages(port: int) -> None:
    with connected(port, "guestd", "") as daemon, connected(port, ATTACKER, "") as attacker:
        daemon.subscribe(f"$share/{GROUP}/{METRICS}")
        attacker.subscribe(f"$share/guestd/{METRICS}", f"$share/{GROUP}x/{METRICS}", f"$share/{GROUP}/{METRICS}/x")
        with connected(port, VICTIM, "") as victim:
            victim.publish(range(100))
            eventually(lambda: daemon.count_received() == 100, "guestd receives all")


def test_below_a_mount_point_a_guest_that_knows_the_shared_group_takes_no_part_either(directory: Path) -> None:
    guests, acl = "guests/guestd/v1", directory / "acl"
    acl.write_text((DEPLOY / "acl").read_text().replace(" guestd/v1", f" {guests}"))
    acl.chmod(0o600)
    own_port = free_port()
    # What docs/how-to/mqtt.md describes for guests that are not trusted.
    own = [f"acl_file {acl}", f"listener {own_port} 127.0.0.1", "use_username_as_clientid true"]
    with (
        shipped_broker(directory, lines=["mount_point guests/"], access=own) as broker,
        connected(own_port, "guestd", "") as daemon,
        connected(broker.port, ATTACKER, "") as attacker,
    ):
        daemon.subscribe(f"$share/{GROUP}/{guests}/+/metrics")
        attacker.subscribe(f"$share/{GROUP}/{METRICS}", f"$share/{GROUP}/{guests}/+/metrics", f"$share/{GROUP}/#")
        with connected(broker.port, VICTIM, "") as victim:
            victim.publish(range(100))
            eventually(lambda: daemon.count_received() == 100, "guestd receives all")


def test_a_guest_leaves_nothing_on_the_topics_of_others(port: int) -> None:
    topics = [f"guestd/v1/{VICTIM}/metrics", f"guestd/v1/{VICTIM}/status", "guestd/v1/host/guestd/status"]
    for topic in topics:
        # mosquitto also ends a connection of MQTT 5 that publishes what it may not.
        attacker = Guest(port, ATTACKER, "attacker", version="3.1.1")
        attacker.client.publish(topic, b"forged", 1, retain=True)
        eventually(lambda: attacker.confirmed == 1, "the broker has answered")  # noqa: B023
        attacker.leave()
        _leave_will(port, topic)
    with connected(port, "guestd", "") as daemon, connected(port, VICTIM, "") as victim:
        daemon.subscribe(METRICS, "guestd/v1/+/status")
        victim.publish(range(1))
        eventually(lambda: daemon.count_received() == 1, "the victim's own")
        assert [message.payload for message in daemon.received] == [b"0"]


def _leave_will(port: int, topic: str) -> None:
    """Connect with a last will for this topic, and vanish."""
    client = Client(CallbackAPIVersion.VERSION2, client_id="", protocol=MQTTProtocolVersion.MQTTv5)
    client.username_pw_set(ATTACKER, USERS[ATTACKER])
    client.will_set(topic, b"forged", 1, retain=True)
    client.connect("127.0.0.1", port)
    client.loop(1.0)
    vanishing = client.socket()
    assert isinstance(vanishing, socket.socket)
    vanishing.close()


def test_a_message_at_qos_2_which_the_broker_would_hold_is_refused(port: int) -> None:
    attacker = Guest(port, ATTACKER, "", version="3.1.1", is_clean=True)
    attacker.client.publish(f"guestd/v1/{ATTACKER}/metrics", b"x" * 1_000_000, 2)
    assert attacker.is_gone.wait(30)
    attacker.leave()


def test_a_guest_that_fills_the_memory_of_the_broker_is_disconnected_and_nothing_accepted_is_lost(
    directory: Path,
) -> None:
    assert "memory_limit" in (DEPLOY / "conf.d/guestd.conf").read_text()
    # Of the shipped limit, what a test can fill.
    with shipped_broker(directory, "memory_limit 60000000") as broker:
        leave_session(broker.port, METRICS)
        attacker = Guest(broker.port, ATTACKER, "")
        number = 0
        while not attacker.is_gone.is_set():
            attacker.subscribe(*(f"{'x' * 60_000}/{number + each}" for each in range(50)))
            number += 50
        attacker.leave()
        victim = Guest(broker.port, VICTIM, "")
        victim.publish(range(300), size_bytes=100_000)
        assert victim.is_gone.wait(60)
        victim.leave()
        assert victim.confirmed < 300
        with connected(broker.port, "guestd", "") as daemon:
            eventually(lambda: daemon.count_received() >= victim.confirmed, "what the broker accepted")


def test_a_queue_that_fills_the_memory_of_the_broker_is_received_after_a_restart_with_more_memory(
    directory: Path,
) -> None:
    with shipped_broker(directory, "memory_limit 20000000") as broker:
        leave_session(broker.port, METRICS)
        with connected(broker.port, VICTIM, "") as victim:
            victim.publish(range(100))
            eventually(lambda: victim.confirmed == 100, "the broker has them")
        attacker = Guest(broker.port, ATTACKER, "attacker", version="3.1.1")
        while not attacker.is_gone.is_set():
            before = attacker.confirmed
            for _ in range(1000):
                attacker.client.publish(f"guestd/v1/{ATTACKER}/metrics", b"", 1)
            eventually(lambda: attacker.confirmed == before + 1000 or attacker.is_gone.is_set(), "an answer")  # noqa: B023
        attacker.leave()
        broker.stop()
        broker.overrides = ["memory_limit 60000000"]
        broker.start()
        with connected(broker.port, "guestd", "") as daemon:
            daemon.subscribe(METRICS)
            eventually(lambda: daemon.count_received() == 101, "the victim's, and the empty one")


def _open_until_refused(stack: ExitStack, port: int, *, count: int, below: int) -> None:
    """As a stranger, open connections and say nothing, until the broker has closed all but fewer than `below`."""
    strangers = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(count)]
    for each in strangers:
        each.setblocking(False)
    # The broker closes them one after another; after 90 s it closes whoever says nothing.
    eventually(lambda: [_is_closed(each) for each in strangers].count(False) < below, "the broker closes the rest", 30)


def _is_closed(connection: socket.socket) -> bool:
    try:
        return not connection.recv(1)
    except BlockingIOError:
        return False
    except OSError:
        return True


def test_strangers_use_as_many_connections_as_a_listener_has_and_leave_descriptors_for_the_others(
    directory: Path,
) -> None:
    assert "\nmax_connections " in (DEPLOY / "mosquitto.conf").read_text()
    own_port = free_port()
    # What docs/how-to/mqtt.md describes: a listener of its own for guestd.
    own = [f"acl_file {DEPLOY / 'acl'}", f"listener {own_port} 127.0.0.1", "use_username_as_clientid true"]
    with (
        # Of the shipped limits, what a test can use up.
        shipped_broker(directory, lines=["max_connections 40"], access=own) as broker,
        connected(broker.port, VICTIM, "") as victim,
        ExitStack() as stack,
    ):
        pid = broker.pid()
        assert pid is not None
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (64, 64))
        _open_until_refused(stack, broker.port, count=100, below=40)
        with connected(own_port, "guestd", "") as daemon:
            daemon.subscribe(METRICS)
            victim.publish(range(50))
            eventually(lambda: daemon.count_received() == 50, "guestd receives what the guest sends")
