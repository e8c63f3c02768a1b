"""MQTT: guests publish to a broker, guestd subscribes to `<prefix>/<Machine.id>/metrics`.

Who speaks is decided by the topic, which the broker's ACL ties to a user. A message is acknowledged when it is on disk,
in the order of receipt, over the connection that it came by; so what guestd has not taken stays with the broker, and
comes again after a reconnect. When the spool is full guestd acknowledges nothing, and the broker stops at
`receive_maximum`.

One connection carries all machines, so nobody is waited for: what a machine sends beyond its budget or its share of the
spool is refused and counted (docs/decisions/0008-refuse-per-machine-on-mqtt.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from uuid import UUID

import structlog

from guestd.core.errors import SourceLost
from guestd.core.machines import MachineRegistry
from guestd.core.tasks import Backoff, run_with_retry
from guestd.ingest.mqtt_gate import Publications, Published
from guestd.mqtt.client import Message
from guestd.mqtt.connection import Connection, connected
from guestd.mqtt.options import Login

log = structlog.get_logger()

BROKER_DROPS = "$SYS/broker/publish/messages/dropped"
# A group commit's worth; while it is on its way to the disk the next ones are read.
BATCH_MESSAGES = 500
# What found no room is tried again so often.
HELD_SECONDS = 0.2
LAST_ACKNOWLEDGEMENT_SECONDS = 2.0
# Not to take from machines that the store will not know; not longer, for the broker's queue is bounded.
FIRST_ROSTER_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Counters:
    """What the source shows; telemetry gives the functions."""

    connected: Callable[[int], None]
    lost: Callable[[], None]  # connections
    sessions_lost: Callable[[], None]
    received: Callable[[int], None]
    acknowledged: Callable[[int], None]
    late: Callable[[int], None]  # acknowledgements that came after their connection
    retained: Callable[[], None]
    refused: Callable[[str], None]  # reason
    unacknowledged: Callable[[int], None]
    guests_online: Callable[[int], None]
    broker_dropped: Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Topics:
    """What is subscribed to, below one prefix; several daemons of one `shared_group` divide the metrics."""

    prefix: str
    shared_group: str

    @property
    def metrics(self) -> str:
        """The filter of what guests report."""
        share = f"$share/{self.shared_group}/" if self.shared_group else ""
        return f"{share}{self.prefix}/+/metrics"

    @property
    def status(self) -> str:
        """The filter of guests' last words: `online` or `offline`, retained."""
        return f"{self.prefix}/+/status"

    def own_status(self, client_id: str) -> str:
        """Where a daemon says whether it is there."""
        return f"{self.prefix}/host/{client_id}/status"

    def read(self, topic: str) -> tuple[str, str]:
        """(machine, kind) of a guest's topic; two empty texts for any other."""
        if not topic.startswith(self.prefix + "/"):
            return "", ""
        machine, _, kind = topic[len(self.prefix) + 1 :].partition("/")
        return machine, kind


class Mqtt:
    """All that comes of one broker."""

    def __init__(
        self, login: Login, topics: Topics, *, gate: Publications, machine_registry: MachineRegistry, counters: Counters
    ) -> None:
        self._login = login
        self._topics = topics
        self._gate = gate
        self._machine_registry = machine_registry
        self._counters = counters
        self._online: set[UUID] = set()
        self._had_session = False
        self.problem: str | None = "not connected yet"

    async def run(self) -> None:
        """Take what comes, for ever."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_ROSTER_SECONDS):
                await self._machine_registry.attempted.wait()
        await run_with_retry(
            self._connection, expected=SourceLost, backoff=Backoff(cap_seconds=10), on_failure=self._on_lost
        )

    def _on_lost(self, exc: Exception, seconds: float) -> None:
        self.problem = str(exc)
        self._counters.lost()
        log.warning("the broker is not available, it keeps what comes", error=self.problem, retry=round(seconds, 1))

    async def _connection(self) -> None:
        """One connection's life."""
        async with connected(self._login) as connection:
            try:
                self._begin(connection)
                await self._take(connection)
            finally:
                self._counters.connected(0)
                self._counters.unacknowledged(0)

    def _begin(self, connection: Connection) -> None:
        if self._had_session and not connection.has_session:
            self._counters.sessions_lost()
            log.error("the broker has forgotten our session: what it had queued for us is lost", host=self._login.host)
        self._had_session = True
        self._online.clear()
        filters = [(self._topics.metrics, 1), (self._topics.status, 0), (BROKER_DROPS, 0)]
        connection.subscribe(filters, lambda refusals: self._subscribed(connection, refusals))

    def _subscribed(self, connection: Connection, refusals: list[str]) -> None:
        metrics, (refused, *others) = self._topics.metrics, refusals
        if refused:
            connection.give_up(f"the broker refuses us {metrics}: {refused} (mqtt.username, mqtt.prefix, or its ACL)")
            return
        for topic, exc in zip((self._topics.status, BROKER_DROPS), others, strict=True):
            if exc:
                log.info("the broker refuses us a topic that we can do without", topic=topic, error=exc)
        connection.publish(self._topics.own_status(self._login.client_id), b"online")
        self.problem = None
        self._counters.connected(1)
        log.info("subscribed", host=self._login.host, topic=metrics, session_present=connection.has_session)

    async def _take(self, connection: Connection) -> None:
        held: list[tuple[Message, Published | None]] = []
        while True:
            messages = await connection.received(BATCH_MESSAGES - len(held), HELD_SECONDS if held else None)
            self._counters.received(_wanting(messages))
            held += [(message, self._read(message)) for message in messages]
            settled = await self._settled(connection, held)
            self._acknowledge(connection, held[:settled])
            del held[:settled]
            self._counters.unacknowledged(connection.unacknowledged)
            # Messages that become nothing do not wait for the spool: the loop has others to look after.
            await asyncio.sleep(0 if len(held) < BATCH_MESSAGES else HELD_SECONDS)

    async def _settled(self, connection: Connection, held: Sequence[tuple[Message, Published | None]]) -> int:
        """How many of the first need not be kept any longer, once they are on disk."""
        taking = self._gate.accept([each for _, each in held if each is not None])
        accepting = asyncio.get_running_loop().create_task(taking, name="mqtt-accept")
        try:
            return _place(held, await asyncio.shield(accepting))
        except asyncio.CancelledError:
            # What is on its way to the disk gets there: acknowledged, it does not come again.
            with suppress(TimeoutError, SourceLost):
                taken = await asyncio.wait_for(accepting, LAST_ACKNOWLEDGEMENT_SECONDS)
                self._acknowledge(connection, held[: _place(held, taken)])
            raise

    def _acknowledge(self, connection: Connection, settled: Sequence[tuple[Message, Published | None]]) -> None:
        try:
            connection.acknowledge(message for message, _ in settled)
        except SourceLost:
            self._counters.late(_wanting(message for message, _ in settled))
            raise
        self._counters.acknowledged(_wanting(message for message, _ in settled))

    def _read(self, message: Message) -> Published | None:
        """What is to be put on disk of a message; the rest is dealt with here."""
        if message.topic == BROKER_DROPS:
            with suppress(ValueError):
                self._counters.broker_dropped(float(message.payload))
            return None
        machine, kind = self._topics.read(message.topic)
        machine_id = _machine_id(machine)
        if machine_id is None or kind not in ("metrics", "status"):
            self._counters.refused("topic")
        elif not self._machine_registry.knows(machine_id):
            self._counters.refused("unknown_machine")
        elif not self._machine_registry.collects(machine_id):
            self._counters.refused("not_collected")
        elif kind == "status":
            self._note_status(machine_id, message.payload)
        elif message.is_retained:
            # It was said once to whoever comes later; the live one has come, or its turn has passed.
            self._counters.retained()
        else:
            return Published(machine_id, message.payload)
        return None

    def _note_status(self, machine_id: UUID, payload: bytes) -> None:
        if payload == b"online":
            self._online.add(machine_id)
        else:
            self._online.discard(machine_id)
        self._counters.guests_online(len(self._online))


def _wanting(messages: Iterable[Message]) -> int:
    """How many of the messages want an acknowledgement."""
    return sum(1 for message in messages if message.mid)


def _place(held: Sequence[tuple[Message, Published | None]], published: int) -> int:
    """Where in `held` the message is that stands behind so many published ones and what is between them."""
    for place, (_, each) in enumerate(held):
        if each is not None:
            if not published:
                return place
            published -= 1
    return len(held)


@lru_cache(maxsize=20_000)
def _machine_id(text: str) -> UUID | None:
    """The machine that a topic names; only as the store writes ids, so that no machine has two topics."""
    try:
        machine_id = UUID(text)
    except ValueError:
        return None
    return machine_id if str(machine_id) == text else None
