"""The broker as guestd would find it, by a client of its own: it leaves no session and takes guestd no message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace

from guestd.core.config import MqttSettings
from guestd.core.errors import ConfigError, SourceLost
from guestd.doctor.finding import Finding, fault, ok, warning
from guestd.mqtt.connection import BrokerConnection, connect
from guestd.mqtt.options import read_options

DROPS = "$SYS/broker/publish/messages/dropped"
# The broker keeps its last figure, and the status of guests, and sends both to whoever asks.
LISTEN_SECONDS = 3.0

_FIXES = {
    "mqtt.tls_ca_file": "name who signed the broker's certificate: mqtt.tls_ca_file; or correct mqtt.host",
    "mqtt.password_file": "correct mqtt.username and mqtt.password_file, or mosquitto_passwd at the broker",
    "mqtt.version": 'set mqtt.version to "3.1.1"',
}


async def examined(chosen: MqttSettings) -> AsyncIterator[Finding]:
    """Whether it lets us in, lets us hear, and has dropped anything."""
    if not chosen.host:
        return
    try:
        ours = read_options(chosen)
    except ConfigError:
        return  # the configuration's own finding
    # Under another name, for a second client of one id throws the first one out; without a session or a last word.
    ours = replace(ours, client_id=f"{ours.client_id}-doctor", session_seconds=0, will_topic="")
    try:
        async with connect(ours) as connection:
            yield ok("broker", f"{chosen.host} port {chosen.port} lets us in")
            async for finding in _heard(connection, chosen.prefix):
                yield finding
    except SourceLost as exc:
        fix = next((fix for words, fix in _FIXES.items() if words in str(exc)), "")
        yield fault(
            "broker", str(exc), fix or "start the broker (systemctl start mosquitto), or correct mqtt.host and port"
        )


async def _heard(connection: BrokerConnection, prefix: str) -> AsyncIterator[Finding]:
    wanted = [f"{prefix}/+/metrics", f"{prefix}/+/status", DROPS]
    answered: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
    connection.subscribe([(topic, 0) for topic in wanted], answered.set_result)
    dropped, guests = await _listened(connection)
    if not answered.done():
        yield fault("broker", "it does not answer a subscription", "look at the broker's log")
        return
    refusals = dict(zip(wanted, answered.result(), strict=True))
    yield _of_guests(wanted[0], refusals[wanted[0]], guests)
    yield _of_drops(dropped)


def _of_guests(metrics: str, refusal: str, guests: int) -> Finding:
    fix = f"in the broker's ACL, for that user: topic read {metrics}, and the same with status"
    if refusal:
        return fault("acl", f"the broker refuses us {metrics}: {refusal}", fix)
    if not guests:
        # mosquitto grants what its ACL forbids, and then delivers nothing.
        text = (
            f"no guest was heard below {metrics} in {LISTEN_SECONDS:g} s: there is none, or the ACL keeps them from us"
        )
        return warning("acl", text, fix)
    return ok("acl", f"guests are heard: {guests} in {LISTEN_SECONDS:g} s")


def _of_drops(dropped: float | None) -> Finding:
    if dropped is None:
        fix = f"in the broker's ACL: topic read {DROPS}; and sys_interval above 0"
        return warning("drops", "the broker does not say how many messages it drops", fix)
    if dropped:
        fix = "max_queued_messages 0 and a larger max_queued_bytes in mosquitto.conf; find the client that is away"
        return warning("drops", f"the broker has dropped {dropped:.0f} messages since it started", fix)
    return ok("drops", "the broker has dropped nothing")


async def _listened(connection: BrokerConnection) -> tuple[float | None, int]:
    """The broker's count of drops, None where it does not come; and how many guests said something."""
    dropped, guests = None, set()
    with suppress(TimeoutError, ValueError):
        async with asyncio.timeout(LISTEN_SECONDS):
            while dropped is None or not guests:
                for message in await connection.receive(100, None):
                    if message.topic == DROPS:
                        dropped = float(message.payload)
                    else:
                        guests.add(message.topic.rpartition("/")[0])
    return dropped, len(guests)
