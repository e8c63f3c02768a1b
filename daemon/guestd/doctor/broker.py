"""Checks of the MQTT broker, by a client of its own: it leaves no session and receives no message in guestd's place."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from guestd.agent.outbox import LINE_LIMIT_BYTES
from guestd.core.broker import count_packet_bytes
from guestd.core.config import Settings
from guestd.core.errors import ConfigError, SourceLost
from guestd.doctor.finding import Finding, fault, ok, warning
from guestd.doctor.host import fetch_metrics
from guestd.mqtt.connection import ANSWER_SECONDS, Announced, BrokerConnection, BrokerRefused, Subscribed, connect
from guestd.mqtt.options import BrokerOptions, read_options
from guestd.mqtt.session_file import KnownSession, make_public_name, read_known_session
from guestd.mqtt.topics import BROKER_DROPS, Topics

# The broker retains its counters and the status of guests, and sends both to every new subscriber.
LISTEN_SECONDS = 3.0
LISTEN_BYTES = 1024 * 1024
_DROPPED = re.compile(r"^guestd_mqtt_broker_dropped_messages (\S+)$", re.MULTILINE)

_FIXES = {
    "mqtt.tls_ca_file": "set mqtt.tls_ca_file to the CA of the broker's certificate, or correct mqtt.host",
    "mqtt.password_file": "correct mqtt.username and mqtt.password_file, or run mosquitto_passwd at the broker",
    "mqtt.version": 'set mqtt.version to "3.1.1"',
}


async def check_broker(settings: Settings) -> AsyncIterator[Finding]:
    """Check that the broker accepts the connection and the subscriptions, what it dropped, and who may take sessions.

    A session that guestd has is not entered: whoever enters it ends guestd's connection.
    """
    chosen = settings.mqtt
    if not chosen.host:
        return
    try:
        ours = replace(read_options(chosen), will_topic="")
    except ConfigError:
        return  # reported by check_configuration
    metrics = await asyncio.to_thread(fetch_metrics, settings.telemetry)
    try:
        findings = _choose_check(ours, chosen.prefix, Path(settings.spool.directory), metrics)
        async for finding in findings:
            yield finding
    except SourceLost as exc:
        fix = next((fix for words, fix in _FIXES.items() if words in str(exc)), "")
        yield fault(
            "broker", str(exc), fix or "start the broker (systemctl start mosquitto), or correct mqtt.host and port"
        )


def _choose_check(ours: BrokerOptions, prefix: str, spool: Path, metrics: str) -> AsyncIterator[Finding]:
    """Choose the check that does not enter the session of guestd."""
    try:
        known = read_known_session(spool)
    except ConfigError as exc:
        return _report_unknown(ours, str(exc))
    if known is None or known.broker != ours.address:
        is_earlier_version = known is None and "guestd_mqtt_connected 1" in metrics
        return _report_unknown(ours, "start this version") if is_earlier_version else _check_inside(ours, prefix, None)
    if not known.client_id:
        return _check_from_outside(ours, known, metrics)
    if not ours.is_version_5:
        return _report_unknown(ours, 'set mqtt.version = "5"')
    return _check_inside(ours, prefix, known)


async def _check_from_outside(ours: BrokerOptions, known: KnownSession, metrics: str) -> AsyncIterator[Finding]:
    """Check a broker at which every connection of this user enters guestd's session."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            _, writer = await asyncio.open_connection(ours.host, ours.port, ssl=ours.tls)
        writer.close()
    except (OSError, UnicodeError, TimeoutError) as exc:
        raise SourceLost(f"{ours.address}: {exc or 'no answer'}") from exc
    yield ok("broker", f"{ours.address} is reached; guestd's own connection shows the rest, in /readyz and its log")
    seen = datetime.fromtimestamp(known.seen_at, UTC)
    yield ok("client id", f"the broker names sessions by the user, as guestd saw at {seen:%Y-%m-%d %H:%M} UTC")
    if (found := _DROPPED.search(metrics)) is not None:
        yield _check_drops(float(found[1]))


async def _report_unknown(ours: BrokerOptions, reason: str) -> AsyncIterator[Finding]:
    """Report that only a connection which may end guestd's could show more."""
    text = (
        f"not connected to {ours.address}: that may end guestd's connection, if the broker names sessions by the user"
    )
    yield warning("client id", text, f"let guestd find out how the broker names sessions: {reason}, and restart it")


async def _check_inside(ours: BrokerOptions, prefix: str, known: KnownSession | None) -> AsyncIterator[Finding]:
    """Check by a connection as guestd's user, under another client id. Raises SourceLost."""
    # The session is kept until it is certain that it is the doctor's: some brokers enter guestd's after all.
    ours = replace(ours, client_id=f"guestd-doctor-{secrets.token_hex(8)}")
    if ours.is_version_5 and ours.username and known is None:
        with suppress(BrokerRefused):
            async with connect(replace(ours, client_id="")) as connection:
                connection.forgets_session = not connection.announced.has_session
                if connection.announced.assigned_id == ours.username:
                    yield ok("client id", "the broker names sessions by the user: no guest can take guestd's")
                    async for finding in _check_connection(connection, ours, prefix):
                        yield finding
                    return
    try:
        async with connect(ours) as connection:
            connection.forgets_session = not connection.announced.has_session
            yield _report_free_ids(ours, known)
            if connection.announced.has_session or ours.is_version_5:
                async for finding in _check_connection(connection, ours, prefix):
                    yield finding
                return
        # MQTT 3.1.1 ends a session by the next connection only.
        async with connect(replace(ours, session_seconds=0)) as connection:
            async for finding in _check_connection(connection, ours, prefix):
                yield finding
    except BrokerRefused as exc:
        if known is None:
            raise
        yield ok("client id", f"the broker refuses this user another client id than guestd's: {exc}")


def _report_free_ids(ours: BrokerOptions, known: KnownSession | None) -> Finding:
    text = "the broker lets a user choose its client id: one that sends guestd's takes the messages queued for it"
    if known is not None and known.client_id == make_public_name():
        text += ", and guestd's can be guessed"
    fix = "set use_username_as_clientid true for each listener in mosquitto.conf; docs/how-to/mqtt.md has the steps"
    if not ours.username:
        fix = "give guestd and each guest a user (mqtt.username), and " + fix
    return warning("client id", text, fix)


async def _check_connection(connection: BrokerConnection, ours: BrokerOptions, prefix: str) -> AsyncIterator[Finding]:
    yield ok("broker", f"{ours.address} accepts the connection")
    for limit in _check_limits(connection.announced, prefix):
        yield limit
    if connection.announced.has_session:
        return  # of a guestd that is not known here
    async for finding in _check_topics(connection, prefix):
        yield finding


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
                for message in await connection.receive(100, LISTEN_BYTES, None):
                    if message.topic == BROKER_DROPS:
                        dropped = float(message.payload)
                    else:
                        guests.add(message.topic.rpartition("/")[0])
    return dropped, len(guests)
