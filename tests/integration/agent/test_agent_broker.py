"""The agent at a real broker: what the broker announces, refuses or says at the end is respected and logged."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import trustme
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion
from structlog.testing import capture_logs
from tools.harness.broker import Broker, prefix
from tools.harness.waiting import eventually_async

from guestd.agent.broker_link import serve_broker
from guestd.agent.mqtt import Address
from guestd.agent.outbox import Outbox
from guestd.agent.transport import ReliableSender
from guestd.cli.broker_arguments import read_broker
from guestd.cli.main import make_parser
from guestd.core.broker import EARLY_CLOSES
from support.broker import PASSWORDS, started
from support.scripted_broker import PUBLISH, Peer, scripted_broker

MACHINE = UUID("6a1f0d5c-2b1e-4b62-9a52-8a3c1f5e7d90")
DEADLINE_SECONDS = 20


@contextmanager
def running_broker(directory: Path, *overrides: str, **options: Any) -> Iterator[Broker]:
    with started(Broker(directory / "broker", prefix=prefix(), overrides=overrides, **options)) as broker:
        yield broker


def address_of(broker: Broker, host: str = "127.0.0.1") -> Address:
    return Address(host, broker.port, "guestd/v1", "simulator", PASSWORDS["simulator"])


def body(number: int, processes: int, padding: int = 0) -> bytes:
    names = [{"id": each, "name": f"process {each}"} for each in range(processes)]
    return json.dumps({"n": number, "padding": "x" * padding, "data": {"system": {"processes": names}}}).encode()


@contextmanager
def subscribed(broker: Broker, host: str = "127.0.0.1") -> Iterator[list[Any]]:
    """What a client as guestd receives, decoded."""
    received: list[Any] = []
    client = Client(CallbackAPIVersion.VERSION2, client_id="reader")
    client.username_pw_set("guestd", PASSWORDS["guestd"])
    client.on_message = lambda _, __, message: received.append(json.loads(message.payload))

    def subscribe(*_: object) -> None:
        client.subscribe("guestd/v1/+/metrics", 1)

    client.on_connect = subscribe
    client.connect(host, broker.port)
    client.loop_start()
    try:
        yield received
    finally:
        client.disconnect()
        client.loop_stop()


@asynccontextmanager
async def reporting(address: Address, bodies: Sequence[bytes] = ()) -> AsyncIterator[ReliableSender]:
    """An agent of this machine, with lines to report."""
    sender = ReliableSender(Outbox("0d3f3a5e-8d0b-4a55-9c0b-5d5e4a2f7c11", 1 << 24), on_request=lambda: None)
    for each in bodies:
        sender.post(each)
    task = asyncio.create_task(serve_broker(address, MACHINE, sender))
    try:
        yield sender
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=DEADLINE_SECONDS)
        assert task.cancelled()


def errors_of(logs: Sequence[Any]) -> list[str]:
    return [each["error"] for each in logs if "error" in each]


async def is_logged(logs: Sequence[Any], *words: str) -> None:
    def found() -> bool:
        return any(all(word in error for word in words) for error in errors_of(logs))

    await eventually_async(found, f"{words} in {logs}", DEADLINE_SECONDS)


async def all_is_settled(sender: ReliableSender) -> None:
    await eventually_async(lambda: sender.outbox.held_lines == 0, "nothing is held", DEADLINE_SECONDS)


@pytest.mark.asyncio
async def test_a_line_over_the_largest_packet_of_the_broker_arrives_without_the_ends_of_its_lists(
    directory: Path,
) -> None:
    with capture_logs() as logs, running_broker(directory, "max_packet_size 20000") as broker:
        with subscribed(broker) as received:
            lines = [body(1, 10), body(2, 2000), body(3, 10), body(4, 10, padding=30_000), body(5, 10)]
            async with reporting(address_of(broker), lines) as sender:
                await all_is_settled(sender)
        assert broker.read_log().count("as simulator") == 1
    assert (sender.outbox.acknowledged, sender.outbox.dropped) == (4, 1)
    assert sorted({each["n"] for each in received}) == [1, 2, 3, 5]
    counts = {each["n"]: len(each["data"]["system"]["processes"]) for each in received}
    assert counts[1] == counts[3] == counts[5] == 10
    assert 100 < counts[2] < 2000
    assert [each["n"] for each in received if each["after"] == next(e["mark"] for e in received if e["n"] == 2)] == [3]
    await is_logged(logs, "max_packet_size", "the broker takes 199")
    assert "line given up: the broker never takes it" in [each["event"] for each in logs]


@pytest.mark.asyncio
async def test_a_limit_that_the_broker_does_not_announce_is_learned(directory: Path) -> None:
    limit = "message_size_limit 10000"
    with capture_logs() as logs, running_broker(directory, limit) as broker, subscribed(broker) as received:
        async with reporting(address_of(broker), [body(1, 500), body(2, 5)]) as sender:
            await all_is_settled(sender)
    assert sorted({each["n"] for each in received}) == [1, 2]
    assert sender.outbox.acknowledged == 2
    await is_logged(logs, "message_size_limit")


@pytest.mark.asyncio
async def test_two_agents_of_one_machine_say_so(directory: Path) -> None:
    with capture_logs() as logs, running_broker(directory) as broker:
        async with reporting(address_of(broker)), reporting(address_of(broker, "localhost")):
            both = {f"127.0.0.1:{broker.port}", f"localhost:{broker.port}"}
            said = "Session taken over (another client has our id: does another agent run with this --machine-id or "

            def speakers() -> set[str]:
                return {each["broker"] for each in logs if said in each.get("error", "")}

            await eventually_async(lambda: speakers() == both, "both say so", DEADLINE_SECONDS)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("max_qos 0", ("QoS not supported", "must accept QoS 1")),
        ("allow_zero_length_clientid false", ("No matching subscribers", "no guestd is subscribed")),
    ],
)
@pytest.mark.asyncio
async def test_what_a_broker_refuses_is_logged_and_the_line_stays(
    directory: Path, override: str, words: Sequence[str]
) -> None:
    # max_qos belongs to the listener.
    options: dict[str, Any] = {"lines": [override]} if override.startswith("max_qos") else {}
    overrides = () if options else (override,)
    with capture_logs() as logs, running_broker(directory, *overrides, **options) as broker:
        async with reporting(address_of(broker), [body(1, 1)]) as sender:
            await is_logged(logs, *words)
            assert sender.outbox.held_lines == 1


@pytest.mark.asyncio
async def test_a_broker_that_retains_nothing_gets_lines_without_a_status(directory: Path) -> None:
    limit = "retain_available false"
    with capture_logs() as logs, running_broker(directory, limit) as broker, subscribed(broker) as received:
        async with reporting(address_of(broker), [body(1, 1)]) as sender:
            await all_is_settled(sender)
    assert [each["n"] for each in received] == [1]
    await is_logged(logs, "Retain not supported")


@pytest.mark.asyncio
async def test_an_ipv6_listener_is_reached(directory: Path) -> None:
    with running_broker(directory, address="::1") as broker, subscribed(broker, "::1") as received:
        words = ["agent", "--mqtt", f"[::1]:{broker.port}", "--mqtt-user", "simulator"]
        words += ["--mqtt-password-file", str(broker.directory / "simulator.password")]
        async with reporting(read_broker(make_parser().parse_args(words)), [body(1, 1)]) as sender:
            await all_is_settled(sender)
    assert [each["n"] for each in received] == [1]


# paho leaves the socket of a failed handshake to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.asyncio
async def test_a_certificate_without_authorities_speaks_tls_and_sends_nothing_in_the_clear(directory: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(directory / "broker.pem")
    authority.issue_cert("me@here").private_key_and_cert_chain_pem.write_to_path(directory / "own.pem")
    (directory / "own.pem").chmod(0o600)
    tls = [f"{name} {directory / file}" for name, file in
           (("cafile", "ca.pem"), ("certfile", "broker.pem"), ("keyfile", "broker.pem"))]  # fmt: skip
    with capture_logs() as logs, running_broker(directory, lines=[*tls, "require_certificate true"]) as broker:
        words = ["agent", "--mqtt", f"127.0.0.1:{broker.port}", "--mqtt-user", "simulator", "--mqtt-password-file",
                 str(broker.directory / "simulator.password"), "--mqtt-cert", str(directory / "own.pem")]  # fmt: skip
        async with reporting(read_broker(make_parser().parse_args(words)), [body(1, 1)]) as sender:
            await is_logged(logs, "certificate", "--mqtt-ca")
            assert sender.outbox.held_lines == 1
        assert "as simulator" not in broker.read_log()
        words += ["--mqtt-ca", str(directory / "ca.pem")]
        async with reporting(read_broker(make_parser().parse_args(words))):
            await eventually_async(lambda: "as simulator" in broker.read_log(), "TLS", DEADLINE_SECONDS)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.asyncio
async def test_tls_to_a_listener_without_it_is_logged_with_the_port_as_the_possible_cause(directory: Path) -> None:
    with capture_logs() as logs, running_broker(directory) as broker:
        words = ["agent", "--mqtt", f"127.0.0.1:{broker.port}", "--mqtt-tls"]
        async with reporting(read_broker(make_parser().parse_args(words))):
            await is_logged(logs, "is this port a TLS listener (usually 8883)?")
    with capture_logs() as logs:  # nobody listens there any more, which is not for TLS to explain
        async with reporting(read_broker(make_parser().parse_args(words))):
            await is_logged(logs, "refused")
        assert "TLS" not in str(errors_of(logs))


@pytest.mark.asyncio
async def test_an_agent_ends_although_its_broker_hangs(directory: Path) -> None:
    with running_broker(directory) as broker, subscribed(broker):
        pid = broker.pid()
        assert pid is not None
        async with reporting(address_of(broker), [body(1, 1)]) as sender:
            await all_is_settled(sender)
            os.kill(pid, signal.SIGSTOP)
            sender.post(body(2, 1))
        os.kill(pid, signal.SIGCONT)
    assert sender.outbox.held_lines == 1


async def refuse(peer: Peer, reason: int) -> None:
    """As a broker that disconnects with a reason."""
    await peer.accept()
    await peer.send(0xE0, bytes([reason, 0]))
    await peer.read_until_end()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (lambda peer: refuse(peer, 0x8B), ("disconnected us: Server shutting down",)),
        (lambda peer: refuse(peer, 0x97), ("disconnected us: Quota exceeded",)),
        (lambda peer: refuse(peer, 0xFE), ("cannot be read",)),
        (lambda peer: peer.accept(reason=0x88), ("refused the connection: Server unavailable",)),
        (lambda peer: peer.accept(b"\x1c\x00\x05other", reason=0x9C), ("Use another server (other)",)),
        (lambda peer: peer.accept(b"\x1f\x00\x04gone", reason=0x97), ("Quota exceeded (gone)",)),
        (lambda peer: peer.accept(b"\xff\xff"), ("cannot be read",)),
        (lambda peer: peer.accept(b"\x24\x00"), ("QoS 0 only",)),
        (
            lambda peer: peer.accept(b"\x27\x00\x00\x00\x64"),
            ("takes packets of 100 bytes", "raise its max_packet_size"),
        ),
        (lambda peer: peer.accept(), ("the connection was lost",)),
    ],
    ids=[
        "shutting down",
        "quota",
        "an unknown reason",
        "unavailable",
        "moved",
        "a text",
        "garbage",
        "QoS 0",
        "tiny",
        "closed",
    ],
)
@pytest.mark.asyncio
async def test_each_reason_of_a_broker_is_logged(script: Callable[[Peer], Any], words: Sequence[str]) -> None:
    with capture_logs() as logs:
        async with scripted_broker(script) as port, reporting(Address("127.0.0.1", port, "guestd/v1")):
            await is_logged(logs, *words)


@pytest.mark.asyncio
async def test_a_broker_that_closes_without_a_reason_is_not_taken_for_another_agent() -> None:
    ends = 0

    async def script(peer: Peer) -> None:
        nonlocal ends
        await peer.accept()
        ends += 1

    with capture_logs() as logs:
        async with scripted_broker(script) as port, reporting(Address("127.0.0.1", port, "guestd/v1")):
            await eventually_async(lambda: ends > EARLY_CLOSES, "connected again", DEADLINE_SECONDS)
    assert set(errors_of(logs)) == {"the connection was lost"}


@pytest.mark.asyncio
async def test_a_broker_whose_packets_hold_no_line_gets_none_and_the_lines_stay() -> None:
    sent: list[int] = []

    async def script(peer: Peer) -> None:
        await peer.accept(b"\x27\x00\x00\x00\x14")  # Maximum Packet Size 20, below the header of a line
        while True:
            sent.append((await peer.read())[0])

    with capture_logs() as logs:
        lines = [body(1, 1)]
        async with scripted_broker(script) as port, reporting(Address("127.0.0.1", port, "guestd/v1"), lines) as sender:
            await is_logged(logs, "takes packets of 20 bytes", "raise its max_packet_size")
            assert (sender.outbox.held_lines, sender.outbox.dropped) == (1, 0)
    assert PUBLISH not in sent


@pytest.mark.parametrize(("first", "content"), [(0xE0, b"\xfe\x00"), (0x40, b"\x00\x01\xfe\x00"), (0x20, b"\xff")])
@pytest.mark.asyncio
async def test_one_packet_that_cannot_be_read_does_not_shorten_the_lines(first: int, content: bytes) -> None:
    sizes: list[int] = []

    async def script(peer: Peer) -> None:
        await peer.accept()
        while True:
            packet_type, packet = await peer.read()
            if packet_type == PUBLISH and b"/metrics" in packet:
                sizes.append(len(packet))
                if len(sizes) == 1:
                    return await peer.send(first, content)
                await peer.puback(peer.published[-1])

    lines = [body(1, 2000)]
    async with scripted_broker(script) as port, reporting(Address("127.0.0.1", port, "guestd/v1"), lines) as sender:
        await all_is_settled(sender)
        sender.post(body(2, 2000))
        await all_is_settled(sender)
    assert len(sizes) == 3
    assert min(sizes) > len(body(1, 2000))


@pytest.mark.asyncio
async def test_no_more_lines_are_in_flight_than_the_broker_receives_at_once() -> None:
    most = 0

    async def script(peer: Peer) -> None:
        nonlocal most
        await peer.accept(b"\x21\x00\x03")  # Receive Maximum 3
        waiting = 0
        while waiting < 3:
            packet_type, _ = await peer.read()
            waiting += packet_type == PUBLISH and len(peer.published) > waiting
        # A line more would come before the answer to any of these.
        for number in range(20):
            most = max(most, len(peer.published) - number)
            await peer.puback(peer.published[number])
            while len(peer.published) < min(20, number + 4):
                await peer.read()
        await peer.read_until_end()

    async with scripted_broker(script) as port:
        address = Address("127.0.0.1", port, "guestd/v1")
        async with reporting(address, [body(number, 1) for number in range(20)]) as sender:
            await all_is_settled(sender)
    assert most == 3
