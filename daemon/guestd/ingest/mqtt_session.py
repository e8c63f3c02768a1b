"""The session at the broker: under which id guestd connects, and whether the broker still has what it queued.

A broker may name the session by the user, whatever id a client sends (mosquitto's `use_username_as_clientid`): nobody
else can take it then. guestd finds out by connecting without an id, for MQTT 5 has the broker answer with the one that
it assigns (docs/decisions/0065-one-session-for-each-user-of-the-broker.md).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import structlog

from guestd.mqtt.connection import BrokerConnection, BrokerRefused, connect
from guestd.mqtt.options import BrokerOptions
from guestd.mqtt.session_file import KnownSession, SessionFile
from guestd.telemetry.registry import BrokerMetrics

log = structlog.get_logger()

# How exactly it is known since when guestd is away.
SEEN_EVERY_SECONDS = 60.0


class BrokerSession:
    """Connects to the session of guestd, and counts what the broker no longer has."""

    def __init__(
        self, options: BrokerOptions, file: SessionFile, metrics: BrokerMetrics, now: Callable[[], float] = time.time
    ) -> None:
        self._options = options
        self._file = file
        self._metrics = metrics
        self._now = now
        # Only MQTT 5 says which id a broker has assigned.
        self._can_ask = options.is_version_5 and bool(options.username)
        self._has_asked = False
        self._has_begun = False

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[BrokerConnection]:
        """Connect with the session that the broker has for us. Raises SourceLost."""
        async with AsyncExitStack() as stack:
            yield await self._enter(stack)

    async def begin(self, connection: BrokerConnection, topic: str) -> str | None:
        """Count and log a session that the broker no longer has, and remember this one with its topic filter.

        Returns the topic filter that the session still has of an earlier configuration, if it has one.
        """
        before = self._file.session
        session = self._describe(connection, topic)
        former_topic = None
        if before is not None and before.broker == session.broker:
            if not connection.announced.has_session or before.name != session.name:
                self._count_missing(before)
            elif before.topic != topic:
                former_topic = before.topic
        elif self._file.is_replaced and not self._has_begun:
            self._metrics.sessions_lost.inc()
        self._has_begun = True
        await asyncio.to_thread(self._file.note_session, session)
        if self._file.has_former_id and session.client_id:
            log.warning(
                "client id can be guessed: any user of the broker who sends it takes the messages that are queued for "
                "guestd; set use_username_as_clientid at the broker as docs/how-to/mqtt.md describes",
                client_id=session.client_id,
            )
        return former_topic

    async def note_seen(self) -> None:
        """Remember that the session is in use."""
        if self._file.session is not None and self._now() - self._file.session.seen_at >= SEEN_EVERY_SECONDS:
            await asyncio.to_thread(self._file.note_seen, self._now())

    def _describe(self, connection: BrokerConnection, topic: str) -> KnownSession:
        announced, options = connection.announced, self._options
        keep_seconds = options.session_seconds if announced.session_seconds is None else announced.session_seconds
        return KnownSession(
            broker=options.address,
            client_id="" if announced.assigned_id else self._file.client_id,
            username=options.username,
            topic=topic,
            seen_at=self._now(),
            keep_seconds=keep_seconds if options.is_version_5 else None,
        )

    def _count_missing(self, before: KnownSession) -> None:
        away_seconds = self._now() - before.seen_at
        if before.keep_seconds is not None and away_seconds > before.keep_seconds:
            self._metrics.sessions_expired.inc()
            log.error(
                "session at the broker has expired, guestd was away for longer than the broker keeps it; the messages "
                "queued in it are lost: set a longer mqtt.session_seconds, and the same at the broker",
                away_seconds=round(away_seconds), keep_seconds=before.keep_seconds,
            )  # fmt: skip
            return
        self._metrics.sessions_lost.inc()
        log.error(
            "broker lost our session and the messages queued in it: another client took it, the broker lost its files, "
            "or mqtt.client_id or mqtt.username changed; see docs/runbook.md#brokersessionlost",
            host=self._options.host, away_seconds=round(away_seconds),
        )  # fmt: skip

    async def _enter(self, stack: AsyncExitStack) -> BrokerConnection:
        known = self._file.session
        asks_first = self._can_ask and (not self._has_asked or known is None or not known.client_id)
        connection = await self._enter_by_user(stack) if asks_first else None
        if connection is not None:
            return connection
        connection = await self._enter_by_id(stack)
        if connection.announced.has_session:
            return connection
        if self._can_ask and not asks_first:
            # The broker may name sessions by the user since it was restarted.
            await _give_up(connection, stack)
            connection = await self._enter_by_user(stack)
            if connection is not None:
                return connection
            connection = await self._enter_by_id(stack)
        if self._file.has_former_id:
            # Nothing is queued under it.
            await _give_up(connection, stack)
            await asyncio.to_thread(self._file.renew_client_id)
            connection = await self._enter_by_id(stack)
        return connection

    async def _enter_by_id(self, stack: AsyncExitStack) -> BrokerConnection:
        return await stack.enter_async_context(connect(replace(self._options, client_id=self._file.client_id)))

    async def _enter_by_user(self, stack: AsyncExitStack) -> BrokerConnection | None:
        """Connect without an id; None if the broker does not name the session by the user."""
        try:
            connection = await stack.enter_async_context(connect(replace(self._options, client_id="")))
        except BrokerRefused:
            # It may require an id, or one that is the user's name. For every other reason it refuses the next one too.
            self._has_asked = True
            return None
        self._has_asked = True
        if connection.announced.assigned_id == self._options.username:
            return connection
        await _give_up(connection, stack)
        return None


async def _give_up(connection: BrokerConnection, stack: AsyncExitStack) -> None:
    """End a connection together with its session, in which nothing is queued."""
    connection.forgets_session = True
    await stack.aclose()
