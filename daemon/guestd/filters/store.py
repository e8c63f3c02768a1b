"""The filters' side of the store: every row that says what a machine may send and receive, read at one moment, and what
a host's libvirt has of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any
from uuid import UUID

import msgspec
import psycopg
from psycopg.types.json import Jsonb

from guestd.filters.cache import Memory
from guestd.filters.compiler import FilterRow, RuleRow
from guestd.filters.desired import MachineRow, Rows
from guestd.filters.services import Policy, Ports
from guestd.store.connection import check_schema, connection_to, sorted_errors
from gueststore.queries import query

# Notices only wake; this bounds how long a lost one can matter.
NOTICE_SECONDS = 30


@dataclass(frozen=True, slots=True)
class HostState:
    """A row of FilterHostState: what a host has of a filter. `is_known`: guestd has defined it there."""

    name: str
    uuid: UUID
    is_known: bool
    digest: str | None
    is_bound: bool
    problem: str | None


@dataclass(frozen=True, slots=True)
class Step:
    """An action in the audit; `machine` is a Machine's id, as text."""

    id: str
    machine: str | None
    name: str
    action: str
    why: str


class FilterStore:
    """A connection for one host, whose id it carries. Open with `filter_store`."""

    def __init__(self, connection: psycopg.AsyncConnection[Any], host_id: UUID) -> None:
        self._connection = connection
        self._host = {"host_id": host_id}

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Nobody else changes this host's filters meanwhile; StoreUnavailable when somebody does for too long."""
        await self._run("filters/lock_filters")
        try:
            yield
        finally:
            await self._run("filters/unlock_filters")

    async def rows(self, memory: Memory) -> Rows:
        """All filters and machines; what has not changed is not decoded again."""
        async with sorted_errors():
            return await _rows(self._connection, memory)

    async def states(self) -> list[HostState]:
        """What this host had of the filters."""
        async with sorted_errors():
            cursor = await self._connection.execute(query("filters/read_states"), self._host)
            return [HostState(*row) for row in await cursor.fetchall()]

    async def begin(self, steps: Iterable[Step], defined: Iterable[tuple[str, UUID]]) -> None:
        """Write down that actions begin, and that these filters are guestd's from now on."""
        async with sorted_errors(), self._connection.transaction():
            await self._run("filters/insert_events", actions=Jsonb([asdict(step) for step in steps]))
            await self._run("filters/upsert_definitions", filters=_named(defined))

    async def end(self, outcomes: Mapping[str, str]) -> None:
        """Write down what came of actions, by their ids."""
        rows = [{"id": step_id, "outcome": outcome} for step_id, outcome in outcomes.items()]
        await self._run("filters/update_events", outcomes=Jsonb(rows))

    async def settle(self, states: Sequence[HostState], gone: Collection[tuple[str, UUID]]) -> None:
        """Write down what has changed of this host's filters, and what follows from it for NWFilter."""
        rows = [
            {"name": each.name, "uuid": str(each.uuid), "digest": each.digest, "isBound": each.is_bound,
             "problem": each.problem}
            for each in states
        ]  # fmt: skip
        async with sorted_errors(), self._connection.transaction():
            await self._run("hosts/update_last_seen")
            if rows:
                await self._run("filters/upsert_states", states=Jsonb(rows))
            if gone:
                await self._run("filters/delete_states", filters=_named(gone))
            await self._run("filters/update_flushed")

    async def open_ports(self, ports: Iterable[tuple[UUID, Ports]]) -> None:
        """These ports of machines are open now."""
        rows = [{"machine": str(machine_id)} | asdict(port) for machine_id, port in ports]
        if rows:
            await self._run("filters/update_ports", ports=Jsonb(rows))

    async def _run(self, name: str, **values: Any) -> None:
        async with sorted_errors():
            await self._connection.execute(query(name), self._host | values)


@asynccontextmanager
async def filter_store(dsn: str, *, name: str, uri: str, version: str) -> AsyncIterator[FilterStore]:
    """The filters' side of the store for one host, which is made when nobody has seen it before."""
    async with connection_to(dsn) as connection:
        await check_schema(connection)
        async with sorted_errors():
            await connection.execute("SET lock_timeout = '30s'")
            cursor = await connection.execute(
                query("hosts/upsert_host"), {"name": name, "uri": uri, "version": version}
            )
            (host_id,) = await cursor.fetchone() or (None,)
            assert host_id is not None
        yield FilterStore(connection, host_id)


async def read_rows(dsn: str, memory: Memory | None = None) -> Rows:
    """All filters and machines. StoreUnavailable when the store cannot be read, SchemaMismatch when it is another.

    Who reads again and again has a `memory`: what has not changed is then not decoded again.
    """
    async with connection_to(dsn) as connection:
        await check_schema(connection)
        async with sorted_errors():
            return await _rows(connection, Memory() if memory is None else memory)


async def read_states(dsn: str, *, name: str, uri: str) -> list[HostState]:
    """What a host had of the filters; nothing of a host that no guestd has seen."""
    async with connection_to(dsn) as connection, sorted_errors():
        cursor = await connection.execute(query("hosts/read_host"), {"name": name, "uri": uri})
        (host_id,) = await cursor.fetchone() or (None,)
        return await FilterStore(connection, host_id).states() if host_id else []


async def watch_filters(dsn: str, edited: asyncio.Event) -> None:
    """Set `edited` whenever what machines may send or receive changes, for as long as the connection lives."""
    async with connection_to(dsn) as connection, sorted_errors():
        await connection.execute("LISTEN guestd_filter")
        edited.set()
        while True:
            async for _ in connection.notifies(timeout=NOTICE_SECONDS, stop_after=1):
                edited.set()


async def _rows(connection: psycopg.AsyncConnection[Any], memory: Memory) -> Rows:
    async with connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        filters = await (await connection.execute(query("filters/read_filters"))).fetchall()
        keys = [(*row[:-1], *row[-1]) for row in filters]
        unknown = [row[0] for row, key in zip(filters, keys, strict=True) if not memory.knows(key)]
        cursor = await connection.execute(query("filters/read_rules"), {"filters": unknown})
        rules = dict(await cursor.fetchall())
        machines = await (await connection.execute(query("filters/read_machines"))).fetchall()
        services = await (await connection.execute(query("filters/read_global_services"))).fetchall()
    return Rows(
        filters=tuple(memory.row(key, partial(_filter, row, rules)) for row, key in zip(filters, keys, strict=True)),
        machines=tuple(_machine(row) for row in machines),
        services={key: Policy(uses, provides) for key, uses, provides in services},
    )


def _named(filters: Iterable[tuple[str, UUID]]) -> Jsonb:
    return Jsonb([{"name": name, "uuid": str(uuid)} for name, uuid in filters])


def _filter(row: Sequence[Any], rules: Mapping[UUID, str]) -> FilterRow:
    filter_id, name, internal_name, uuid, chain, priority, state_match, _version, targets = row
    return FilterRow(
        id=filter_id,
        name=name,
        internal_name=internal_name,
        uuid=uuid,
        chain=chain,
        priority=priority,
        state_match=state_match,
        rules=tuple(_rule(rule) for rule in msgspec.json.decode(rules.get(filter_id, "[]"))),
        targets=tuple(targets),
    )


def _rule(rule: Mapping[str, Any]) -> RuleRow:
    return RuleRow(
        id=UUID(rule["id"]),
        action=rule["action"],
        direction=rule["direction"],
        priority=rule["priority"],
        protocol=rule["protocol"],
        ip_version=rule["ipVersion"],
        src_mac_addr=rule["srcMacAddr"],
        src_ip_addr=rule["srcIpAddr"],
        src_ip_mask=rule["srcIpMask"],
        dst_ip_addr=rule["dstIpAddr"],
        dst_ip_mask=rule["dstIpMask"],
        src_port_start=rule["srcPortStart"],
        src_port_end=rule["srcPortEnd"],
        dst_port_start=rule["dstPortStart"],
        dst_port_end=rule["dstPortEnd"],
        state=rule["state"],
        comment=rule["comment"],
    )


def _machine(row: Sequence[Any]) -> MachineRow:
    machine_id, name, internal_name, allowed_ips, own, department, is_clean, services, theirs, ports = row
    return MachineRow(
        id=machine_id,
        name=name,
        internal_name=internal_name,
        allowed_ips=tuple(allowed_ips),
        own=tuple(own),
        department=tuple(department),
        is_clean=is_clean,
        services=_policies(services),
        department_services=_policies(theirs),
        ports=tuple(Ports(*port) for port in ports),
    )


def _policies(found: Mapping[str, Sequence[bool]] | None) -> dict[str, Policy]:
    return {key: Policy(*value) for key, value in (found or {}).items()}
