"""MQTT: guests publish to a broker, guestd subscribes to `<prefix>/<Machine.id>/metrics`.

The topic identifies the machine; the broker's ACL ties it to a user. A message is acknowledged when it is on disk, in
the order of receipt, over the connection that delivered it; so what guestd has not accepted stays with the broker, and
is delivered again after a reconnect. When the spool is full guestd acknowledges nothing, and the broker stops at
`receive_maximum`.

One connection carries all machines, so no machine is waited for: what it sends over its rate limit or its share of the
spool is refused and counted (docs/decisions/0008-refuse-per-machine-on-mqtt.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from uuid import UUID

import structlog

from guestd.core.broker import EARLY_SECONDS, SESSION_TAKEN_OVER, TakeoverWatch
from guestd.core.errors import SourceLost
from guestd.core.machines import MachineRegistry
from guestd.core.tasks import Backoff, run_with_retry, wait_for_event
from guestd.ingest.mqtt_gate import MachineMessage, MqttGate
from guestd.ingest.mqtt_session import SEEN_EVERY_SECONDS, BrokerSession
from guestd.mqtt.client import Message
from guestd.mqtt.connection import BrokerConnection, Subscribed
from guestd.mqtt.options import BrokerOptions
from guestd.mqtt.topics import BROKER_DROPS, Topics
from guestd.telemetry.registry import BrokerMetrics, GateMetrics

log = structlog.get_logger()

# About one group commit; while it is being written the next ones are read.
BATCH_MESSAGES = 500
# Bytes of messages that are read before yielding to the event loop.
BATCH_BYTES = 1024 * 1024
# Messages that did not fit in the spool are tried again this often.
RETRY_SECONDS = 0.2
LAST_ACKNOWLEDGEMENT_SECONDS = 2.0
# Time for the machine registry to load, so that no message is refused for it; short, for the broker's queue is bounded.
REGISTRY_SECONDS = 1.0


class MqttSource:
    """Reads all messages of one broker."""

    def __init__(
        self,
        options: BrokerOptions,
        topics: Topics,
        *,
        session: BrokerSession,
        gate: MqttGate,
        machine_registry: MachineRegistry,
        metrics: BrokerMetrics,
        gate_metrics: GateMetrics,
    ) -> None:
        self._options = options
        self._topics = topics
        self._gate = gate
        self._machine_registry = machine_registry
        self._metrics = metrics
        self._refused = gate_metrics.refused
        self._online: set[UUID] = set()
        self._session = session
        self._former_topic: str | None = None
        self._backoff = Backoff(cap_seconds=10)
        self._takeovers = TakeoverWatch(self._backoff)
        self.problem: str | None = "not connected yet"

    async def run(self) -> None:
        """Read messages until cancelled."""
        await wait_for_event(self._machine_registry.attempted, REGISTRY_SECONDS)
        await run_with_retry(self._run_connection, expected=SourceLost, backoff=self._backoff, on_failure=self._on_lost)

    def _on_lost(self, exc: Exception, seconds: float) -> None:
        self.problem = str(exc)
        self._metrics.lost.inc()
        log.warning(
            "broker unavailable, it queues the messages of guests, reconnecting",
            error=self.problem,
            retry_seconds=round(seconds, 1),
        )

    async def _run_connection(self) -> None:
        """One connection's life."""
        connection = None
        try:
            async with self._session.connect() as connection:
                try:
                    await self._begin(connection)
                    await self._receive(connection)
                finally:
                    self._metrics.connected.set(0)
                    self._metrics.unacknowledged.set(0)
        except SourceLost as exc:
            raise self._explain_end(connection, exc) from exc

    def _explain_end(self, connection: BrokerConnection | None, exc: SourceLost) -> SourceLost:
        """The error of a connection that ended, with what several of them show."""
        lived_seconds = None if connection is None else connection.lived_seconds
        is_taken_over = connection is not None and connection.end_code == SESSION_TAKEN_OVER
        # A broker of MQTT 5 gives the reason.
        is_closed = connection is not None and connection.is_closed_by_broker and not self._options.is_version_5
        if not self._takeovers.note_end(lived_seconds, is_taken_over=is_taken_over, is_closed=is_closed):
            return exc
        self._metrics.taken_over.inc()
        if is_taken_over:
            return exc
        return SourceLost(
            f"{exc}, each time within {EARLY_SECONDS:g} s: does another client have our id? "
            "(mqtt.client_id; mqtt.username, if the broker names sessions by it)"
        )

    async def _begin(self, connection: BrokerConnection) -> None:
        announced = connection.announced
        self._former_topic = await self._session.begin(connection, self._topics.metrics)
        if announced.session_seconds is not None and announced.session_seconds < self._options.session_seconds:
            log.warning(
                "broker keeps our session shorter than mqtt.session_seconds: later it drops what it has queued",
                session_seconds=announced.session_seconds,
            )
        self._online.clear()
        filters = [(self._topics.metrics, 1), (self._topics.status, 0), (BROKER_DROPS, 0)]
        connection.subscribe(filters, lambda refusals: self._on_subscribed(connection, refusals))

    def _on_subscribed(self, connection: BrokerConnection, answers: list[Subscribed]) -> None:
        metrics, (own, *others) = self._topics.metrics, answers
        if own.refusal:
            connection.fail(
                f"the broker refuses {metrics}: {own.refusal} (check mqtt.username, mqtt.prefix and its ACL)"
            )
            return
        for topic, answer in zip((self._topics.status, BROKER_DROPS), others, strict=True):
            if answer.refusal:
                log.info("broker refuses an optional topic, its metric stays empty", topic=topic, error=answer.refusal)
        if connection.publishes_status:
            connection.publish(self._options.will_topic, b"online")
        else:
            log.warning("broker keeps no retained messages, our status is not published")
        if self._former_topic is not None:
            connection.unsubscribe(self._former_topic)
        self.problem = None
        if not own.qos:
            self.problem = f"the broker grants QoS 0 only: it keeps nothing while guestd is away (max_qos), {metrics}"
            log.error("messages can be lost", error=self.problem)
        self._metrics.connected.set(1)
        log.info(
            "subscribed to the broker",
            host=self._options.host,
            topic=metrics,
            session_present=connection.announced.has_session,
        )

    async def _receive(self, connection: BrokerConnection) -> None:
        backlog: list[tuple[Message, MachineMessage | None]] = []
        while True:
            wait_seconds = RETRY_SECONDS if backlog else SEEN_EVERY_SECONDS
            messages = await connection.receive(BATCH_MESSAGES - len(backlog), BATCH_BYTES, wait_seconds)
            await self._session.note_seen()
            self._metrics.received.inc(_count_qos1(messages))
            backlog += [(message, self._read(message)) for message in messages]
            settled = await self._accept(connection, backlog)
            self._acknowledge(connection, backlog[:settled])
            del backlog[:settled]
            self._metrics.unacknowledged.set(connection.unacknowledged)
            # Messages of which nothing is stored do not wait for the spool: yield to the event loop.
            await asyncio.sleep(0 if len(backlog) < BATCH_MESSAGES else RETRY_SECONDS)

    async def _accept(
        self, connection: BrokerConnection, backlog: Sequence[tuple[Message, MachineMessage | None]]
    ) -> int:
        """Put messages on disk; returns how many, from the first, are settled."""
        accepted = self._gate.accept([each for _, each in backlog if each is not None])
        accepting = asyncio.get_running_loop().create_task(accepted, name="mqtt-accept")
        try:
            return _count_settled(backlog, await asyncio.shield(accepting))
        except asyncio.CancelledError:
            # What is being written reaches the disk: acknowledged, it is not delivered again.
            with suppress(TimeoutError, SourceLost):
                settled = await asyncio.wait_for(accepting, LAST_ACKNOWLEDGEMENT_SECONDS)
                self._acknowledge(connection, backlog[: _count_settled(backlog, settled)])
            raise

    def _acknowledge(
        self, connection: BrokerConnection, settled: Sequence[tuple[Message, MachineMessage | None]]
    ) -> None:
        try:
            connection.acknowledge(message for message, _ in settled)
        except SourceLost:
            self._metrics.late.inc(_count_qos1(message for message, _ in settled))
            raise
        self._metrics.acknowledged.inc(_count_qos1(message for message, _ in settled))

    def _read(self, message: Message) -> MachineMessage | None:
        """The message to put on disk; None for one that is handled or refused here."""
        if message.topic == BROKER_DROPS:
            with suppress(ValueError):
                self._metrics.dropped.set(float(message.payload))
            return None
        machine, kind = self._topics.parse(message.topic)
        machine_id = _machine_id(machine)
        if machine_id is None or kind not in ("metrics", "status"):
            self._refused.labels("topic").inc()
        elif not self._machine_registry.knows(machine_id):
            self._refused.labels("unknown_machine").inc()
        elif not self._machine_registry.collects(machine_id):
            self._refused.labels("not_collected").inc()
        elif kind == "status":
            self._note_status(machine_id, message.payload)
        elif message.is_retained:
            # A copy that the broker keeps for new subscribers; the live message was delivered, or its turn has passed.
            self._metrics.retained.inc()
        else:
            return MachineMessage(machine_id, message.payload)
        return None

    def _note_status(self, machine_id: UUID, payload: bytes) -> None:
        if payload == b"online":
            self._online.add(machine_id)
        else:
            self._online.discard(machine_id)
        self._metrics.guests_online.set(len(self._online))


def _count_qos1(messages: Iterable[Message]) -> int:
    """How many of the messages need an acknowledgement."""
    return sum(1 for message in messages if message.mid)


def _count_settled(backlog: Sequence[tuple[Message, MachineMessage | None]], accepted: int) -> int:
    """How many of the first messages are settled when the gate has accepted this many of those for the disk."""
    for place, (_, each) in enumerate(backlog):
        if each is not None:
            if not accepted:
                return place
            accepted -= 1
    return len(backlog)


@lru_cache(maxsize=20_000)
def _machine_id(text: str) -> UUID | None:
    """The machine of a topic; only in the store's spelling of ids, so that no machine has two topics."""
    try:
        machine_id = UUID(text)
    except ValueError:
        return None
    return machine_id if str(machine_id) == text else None
