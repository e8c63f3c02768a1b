"""guestd's connection at a scripted broker: what it announces, and every reason that it gives, reach the caller."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from guestd.core.config import MqttSettings
from guestd.core.errors import SourceLost
from guestd.mqtt.connection import Subscribed, connect
from guestd.mqtt.options import BrokerOptions, read_options
from support.scripted_broker import SUBSCRIBE, Peer, scripted_broker


def options_of(port: int, **changes: Any) -> BrokerOptions:
    return read_options(MqttSettings(host="127.0.0.1", port=port, client_id="guestd-test", **changes))


@pytest.mark.asyncio
async def test_what_the_broker_announces_is_known() -> None:
    async def script(peer: Peer) -> None:
        # Session Expiry 60, Maximum QoS 0, Retain Available 0, Maximum Packet Size 20000.
        await peer.accept(b"\x11\x00\x00\x00\x3c\x24\x00\x25\x00\x27\x00\x00\x4e\x20")
        await peer.read_until_end()

    async with scripted_broker(script) as port, connect(options_of(port)) as connection:
        found = connection.announced
        assert (found.session_seconds, found.has_qos1, found.retains, found.packet_bytes) == (60, False, False, 20000)
        assert not connection.publishes_status


@pytest.mark.asyncio
async def test_a_granted_qos_and_a_refusal_are_distinguished() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        packet_type, content = await peer.read()
        assert packet_type == SUBSCRIBE
        await peer.send(0x90, content[:2] + b"\x00" + bytes([0, 1, 0x87]))
        await peer.read_until_end()

    answers: list[Subscribed] = []
    async with scripted_broker(script) as port, connect(options_of(port)) as connection:
        connection.subscribe([("a", 1), ("b", 1), ("c", 1)], answers.extend)
        assert await connection.receive(1, 1000, 1.0) == []
    assert answers == [Subscribed("", 0), Subscribed("", 1), Subscribed("Not authorized", 0)]


async def disconnect(peer: Peer, body: bytes) -> None:
    """As a broker that accepts the connection and ends it with a reason."""
    await peer.accept()
    await peer.send(0xE0, body)
    await peer.read_until_end()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (lambda peer: disconnect(peer, b"\x8e\x00"), ("Session taken over", "mqtt.client_id")),
        (lambda peer: disconnect(peer, b"\x95\x00"), ("Packet too large", "max_packet_size")),
        (lambda peer: disconnect(peer, b"\x8b\x08\x1f\x00\x05later"), ("Server shutting down (later)",)),
        (lambda peer: disconnect(peer, b"\xfe\x00"), ("cannot be read",)),
        (lambda peer: peer.accept(b"\x1c\x00\x05other", reason=0x9C), ("Use another server (other)",)),
        (lambda peer: peer.accept(reason=0x85), ("Client identifier not valid", "mqtt.client_id")),
        (lambda peer: peer.accept(b"\xff\xff"), ("cannot be read",)),
        (lambda peer: peer.accept(), ("the connection was lost",)),
        (lambda peer: peer.read(), ("without an answer", "memory_limit")),
    ],
    ids=["taken over", "too large", "a text", "an unknown reason", "moved", "the id", "garbage", "closed", "no answer"],
)
@pytest.mark.asyncio
async def test_each_reason_of_a_broker_is_in_the_error(script: Callable[[Peer], Any], words: Sequence[str]) -> None:
    async with scripted_broker(script) as port:
        with pytest.raises(SourceLost) as caught:
            async with connect(options_of(port)) as connection:
                await connection.receive(1, 1000, 20.0)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.asyncio
async def test_a_broker_of_the_older_protocol_that_closes_is_distinguished_from_one_that_refuses() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept(is_version_5=False)

    async with scripted_broker(script) as port:
        with pytest.raises(SourceLost, match="the connection was lost"):
            async with connect(options_of(port, version="3.1.1")) as connection:
                await connection.receive(1, 1000, 20.0)
        assert connection.is_closed_by_broker
        assert connection.end_code is None
        assert connection.lived_seconds is not None


@pytest.mark.parametrize("bug", [LookupError("a bug"), TypeError("a bug"), AttributeError("a bug"), MemoryError()])
@pytest.mark.asyncio
async def test_a_bug_in_what_is_called_back_ends_the_connection_and_reaches_the_caller(bug: Exception) -> None:
    """It is no fault of the broker, which a caller would take for a lost connection."""

    async def script(peer: Peer) -> None:
        await peer.accept()
        _, content = await peer.read()
        await peer.send(0x90, content[:2] + b"\x00" + bytes([1]))
        await peer.read_until_end()

    def fail(_: list[Subscribed]) -> None:
        raise bug

    async with scripted_broker(script) as port, connect(options_of(port)) as connection:
        connection.subscribe([("a", 1)], fail)
        with pytest.raises(type(bug)) as caught:
            await connection.receive(1, 1000, 20.0)
    assert caught.value is bug
