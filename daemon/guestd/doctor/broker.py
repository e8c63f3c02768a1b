"""Checks of the MQTT broker, by a client of its own: it leaves no session and receives no message in guestd's place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace
from uuid import UUID

from guestd.agent.outbox import LINE_LIMIT_BYTES
from guestd.core.address import format_host_port
from guestd.core.broker import count_packet_bytes
from guestd.core.config import MqttSettings
from guestd.core.errors import ConfigError, SourceLost
from guestd.doctor.finding import Finding, fault, ok, warning
from guestd.mqtt.connection import Announced, BrokerConnection, Subscribed, connect
from guestd.mqtt.options import read_options
from guestd.mqtt.topics import BROKER_DROPS, Topics

# The broker retains its counters and the status of guests, and sends both to every new subscriber.
LISTEN_SECONDS = 3.0

_FIXES = {
    "mqtt.tls_ca_file": "set mqtt.tls_ca_file to the CA of the broker's certificate, or correct mqtt.host",
    "mqtt.password_file": "correct mqtt.username and mqtt.password_file, or run mosquitto_passwd at the broker",
    "mqtt.version": 'set mqtt.version to "3.1.1"',
}


async def check_broker(settings: MqttSettings) -> AsyncIterator[Finding]:
    """Check that the broker accepts the connection and the subscriptions, and whether it has dropped messages."""
    if not settings.host:
        return
    try:
        ours = read_options(settings)
    except ConfigError:
        return  # reported by check_configuration
    # With a client ID of its own, because a second client with guestd's would disconnect it; no session, no will.
    ours = replace(ours, client_id=f"{ours.client_id}-doctor", session_seconds=0, will_topic="")
    try:
        async with connect(ours) as connection:
            yield ok("broker", f"{format_host_port(settings.host, settings.port)} accepts the connection")
            for limit in _check_limits(connection.announced, settings.prefix):
                yield limit
            async for finding in _check_topics(connection, settings.prefix):
                yield finding
    except SourceLost as exc:
        fix = next((fix for words, fix in _FIXES.items() if words in str(exc)), "")
        yield fault(
            "broker", str(exc), fix or "start the broker (systemctl start mosquitto), or correct mqtt.host and port"
        )


async def _check_topics(connection: BrokerConnection, prefix: str) -> AsyncIterator[Finding]:
    # Outside of a shared group: a message that the doctor receives is still delivered to a daemon.
    ours = Topics(prefix, shared_group="")
    topics = [ours.metrics, ours.status, BROKER_DROPS]
    answered: asyncio.Future[list[Subscribed]] = asyncio.get_running_loop().create_future()
    connection.subscribe([(topic, 0) for topic in topics], answered.set_result)
    dropped, guests = await _listen(connection)
    if not answered.done():
        yield fault("broker", "no answer to a subscription", "read the broker's log: journalctl -u mosquitto")
        return
    answers = dict(zip(topics, answered.result(), strict=True))
    yield _check_guests(ours.metrics, answers[ours.metrics].refusal, guests)
    yield _check_drops(dropped)


def _check_limits(announced: Announced, prefix: str) -> Iterator[Finding]:
    if not announced.has_qos1:
        text = "the broker accepts QoS 0 only: it keeps nothing while guestd is away, and agents send it nothing"
        yield fault("broker", text, "set max_qos to 1 or 2 in mosquitto.conf")
    line_bytes = count_packet_bytes(f"{prefix}/{UUID(int=0)}/metrics", LINE_LIMIT_BYTES)
    if announced.packet_bytes < line_bytes:
        text = (
            f"the broker refuses packets over {announced.packet_bytes} bytes: "
            "agents leave out the ends of the lists of longer lines"
        )
        fix = (
            f"set max_packet_size in mosquitto.conf to {line_bytes} or more: an agent's longest line has so many bytes"
        )
        yield warning("broker", text, fix)


def _check_guests(metrics: str, refusal: str, guests: int) -> Finding:
    fix = f"in the broker's ACL, for that user: topic read {metrics}, and the same with status"
    if refusal:
        return fault("acl", f"the broker rejects a subscription to {metrics}: {refusal}", fix)
    if not guests:
        # mosquitto accepts subscriptions that its ACL forbids, and then delivers nothing.
        text = (
            f"no message on {metrics} in {LISTEN_SECONDS:g} s: no guest publishes, or the broker's ACL forbids reading"
        )
        return warning("acl", text, fix)
    return ok("acl", f"messages of {guests} guests received in {LISTEN_SECONDS:g} s")


def _check_drops(dropped: float | None) -> Finding:
    if dropped is None:
        fix = f"in the broker's ACL: topic read {BROKER_DROPS}; and sys_interval above 0"
        return warning("drops", "the broker does not publish how many messages it drops", fix)
    if dropped:
        fix = (
            "set max_queued_messages 0 and a larger max_queued_bytes in mosquitto.conf; find the client that is offline"
        )
        return warning("drops", f"the broker has dropped {dropped:.0f} messages since it started", fix)
    return ok("drops", "the broker has dropped no message")


async def _listen(connection: BrokerConnection) -> tuple[float | None, int]:
    """Listen for the broker's count of dropped messages (None if it does not arrive) and count the guests heard."""
    dropped, guests = None, set()
    with suppress(TimeoutError, ValueError):
        async with asyncio.timeout(LISTEN_SECONDS):
            while dropped is None or not guests:
                for message in await connection.receive(100, None):
                    if message.topic == BROKER_DROPS:
                        dropped = float(message.payload)
                    else:
                        guests.add(message.topic.rpartition("/")[0])
    return dropped, len(guests)
