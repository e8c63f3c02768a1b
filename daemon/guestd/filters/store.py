"""The store's tables of filters: read what machines may send and receive, write what a host's libvirt has of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Hashable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any
from uuid import UUID

import msgspec
import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from guestd.filters.cache import FilterCache
from guestd.filters.network_services import Policy, Ports
from guestd.filters.snapshot import FilterHostState, FilterRow, MachineRow, RuleRow, StoreSnapshot
from guestd.store.connection import WRITE_SECONDS, check_schema, connection_to, listen, store_deadline
from gueststore.queries import query

# Longer than a lock is waited for (below): the server's error names the lock.
DEADLINE_SECONDS = WRITE_SECONDS


@dataclass(frozen=True, slots=True)
class AuditStep:
    """An action as ReconcileEvent records it; `machine` is a Machine's id, as text."""

    id: str
    machine: str | None
    name: str
    action: str
    reason: str


class FilterStore:
    """A connection for one host, with the host's id. Open it with `open_filter_store`."""

    def __init__(self, connection: psycopg.AsyncConnection[Any], host_id: UUID) -> None:
        self._connection = connection
        self._host = {"host_id": host_id}

    @asynccontextmanager
    async def lock(self) -> AsyncIterator[None]:
        """Hold the lock on this host's filters; StoreUnavailable where another process holds it for too long."""
        await self._run("filters/lock_filters")
        try:
            yield
        finally:
            await self._run("filters/unlock_filters")

    async def read_snapshot(self, cache: FilterCache) -> StoreSnapshot:
        """All filters and machines; unchanged filters are not decoded again."""
        async with store_deadline(DEADLINE_SECONDS):
            return await _read_snapshot(self._connection, cache)

    async def read_states(self) -> list[FilterHostState]:
        """What this host had of the filters after the last run."""
        async with store_deadline(DEADLINE_SECONDS), self._connection.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(query("filters/read_states"), self._host)
            return [_build_state(row) for row in await cursor.fetchall()]

    async def begin_steps(self, steps: Iterable[AuditStep], defined: Iterable[tuple[str, UUID]]) -> None:
        """Record that steps begin, and that guestd owns these filters from now on."""
        async with store_deadline(DEADLINE_SECONDS), self._connection.transaction():
            await self._run("filters/insert_events", actions=Jsonb([asdict(step) for step in steps]))
            await self._run("filters/upsert_definitions", filters=_as_jsonb(defined))

    async def end_steps(self, outcomes: Mapping[str, str]) -> None:
        """Record the outcome of steps, by their ids."""
        rows = [{"id": step_id, "outcome": outcome} for step_id, outcome in outcomes.items()]
        await self._run("filters/update_events", outcomes=Jsonb(rows))

    async def write_states(self, states: Sequence[FilterHostState], gone: Collection[tuple[str, UUID]]) -> None:
        """Write changed states of this host's filters, delete those that are gone, and update NWFilter accordingly."""
        rows = [
            {"name": each.name, "uuid": str(each.uuid), "digest": each.digest, "isBound": each.is_bound,
             "problem": each.problem}
            for each in states
        ]  # fmt: skip
        # Not in the transaction: the VM reconciler of this host counts its reports in the same row.
        await self._run("hosts/update_last_seen")
        async with store_deadline(DEADLINE_SECONDS), self._connection.transaction():
            if rows:
                await self._run("filters/upsert_states", states=Jsonb(rows))
            if gone:
                await self._run("filters/delete_states", filters=_as_jsonb(gone))
            await self._run("filters/update_flushed")

    async def mark_ports_open(self, ports: Iterable[tuple[UUID, Ports]]) -> None:
        """Mark these ports of machines as open now."""
        rows = [{"machine": str(machine_id)} | asdict(port) for machine_id, port in ports]
        if rows:
            await self._run("filters/update_ports", ports=Jsonb(rows))

    async def _run(self, name: str, **values: Any) -> None:
        async with store_deadline(DEADLINE_SECONDS):
            await self._connection.execute(query(name), self._host | values)


@asynccontextmanager
async def open_filter_store(dsn: str, *, name: str, uri: str, version: str) -> AsyncIterator[FilterStore]:
    """Connect for one host, and register the host where it is new."""
    async with connection_to(dsn) as connection:
        await check_schema(connection)
        async with store_deadline(DEADLINE_SECONDS):
            await connection.execute("SET lock_timeout = '30s'")
            cursor = await connection.execute(
                query("hosts/upsert_host"), {"name": name, "uri": uri, "version": version}
            )
            (host_id,) = await cursor.fetchone() or (None,)
            assert host_id is not None
        yield FilterStore(connection, host_id)


async def read_store_snapshot(dsn: str, cache: FilterCache | None = None) -> StoreSnapshot:
    """All filters and machines. StoreUnavailable where the store cannot be read, SchemaMismatch where it is another.

    Repeated callers pass a `cache`: unchanged filters are then not decoded again.
    """
    async with connection_to(dsn) as connection:
        await check_schema(connection)
        async with store_deadline(DEADLINE_SECONDS):
            return await _read_snapshot(connection, FilterCache() if cache is None else cache)


async def read_states(dsn: str, *, name: str, uri: str) -> list[FilterHostState]:
    """What a host had of the filters after its last run; empty for a host that is not registered."""
    async with connection_to(dsn) as connection, store_deadline(DEADLINE_SECONDS):
        cursor = await connection.execute(query("hosts/read_host"), {"name": name, "uri": uri})
        (host_id,) = await cursor.fetchone() or (None,)
        return await FilterStore(connection, host_id).read_states() if host_id else []


async def read_problems(dsn: str, names: Collection[str]) -> list[tuple[str, str, str]]:
    """Host, filter and problem of each of these filters that a host could not apply in its last run."""
    async with connection_to(dsn) as connection, store_deadline(DEADLINE_SECONDS):
        cursor = await connection.execute(query("filters/read_problems"), {"names": list(names)})
        return [(host, name, problem) for host, name, problem in await cursor.fetchall()]


async def watch_filters(dsn: str, edited: asyncio.Event) -> None:
    """Set `edited` when rows about filters change, until the connection is lost (StoreUnavailable)."""

    async def wake(_: psycopg.AsyncConnection[Any]) -> None:
        edited.set()

    # Without a refresh: full runs have a timer of their own.
    await listen(dsn, "guestd_filter", wake, refresh_seconds=None)


async def _read_snapshot(connection: psycopg.AsyncConnection[Any], cache: FilterCache) -> StoreSnapshot:
    async with connection.transaction(), connection.cursor(row_factory=dict_row) as cursor:
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        await cursor.execute(query("filters/read_filters"))
        filters = {_make_key(row): row for row in await cursor.fetchall()}
        unknown = [row["id"] for key, row in filters.items() if not cache.has_row(key)]
        await cursor.execute(query("filters/read_rules"), {"filters": unknown})
        rules = {row["nwFilterId"]: row["rules"] for row in await cursor.fetchall()}
        await cursor.execute(query("filters/read_machines"))
        machines = await cursor.fetchall()
        await cursor.execute(query("filters/read_global_services"))
        services = await cursor.fetchall()
    return StoreSnapshot(
        filters=tuple(cache.get_row(key, partial(_build_filter, row, rules)) for key, row in filters.items()),
        machines=tuple(map(_build_machine, machines)),
        services={row["serviceId"]: Policy(row["useEnabled"], row["provideEnabled"]) for row in services},
    )


def _make_key(row: Mapping[str, Any]) -> tuple[Hashable, ...]:
    """The values of a filter's row, with which a cache finds it."""
    return tuple(tuple(value) if isinstance(value, list) else value for value in row.values())


def _build_state(row: Mapping[str, Any]) -> FilterHostState:
    return FilterHostState(
        name=row["name"],
        uuid=row["uuid"],
        is_known=row["isDefined"],
        digest=row["digest"],
        is_bound=row["isBound"],
        problem=row["problem"],
    )


def _as_jsonb(filters: Iterable[tuple[str, UUID]]) -> Jsonb:
    return Jsonb([{"name": name, "uuid": str(uuid)} for name, uuid in filters])


def _build_filter(row: Mapping[str, Any], rules: Mapping[UUID, str]) -> FilterRow:
    return FilterRow(
        id=row["id"],
        name=row["name"],
        internal_name=row["internalName"],
        uuid=row["uuid"],
        chain=row["chain"],
        priority=row["priority"],
        state_match=row["stateMatch"],
        rules=tuple(_decode_rule(rule) for rule in msgspec.json.decode(rules.get(row["id"], "[]"))),
        targets=tuple(row["targets"]),
    )


def _decode_rule(rule: Mapping[str, Any]) -> RuleRow:
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
        state=_decode_state(rule["state"]),
        comment=rule["comment"],
    )


def _decode_state(text: str | None) -> object:
    """The value of FWRule.state; its own text if it cannot be decoded (depth, digits), which the compiler refuses."""
    try:
        return None if text is None else msgspec.json.decode(text)
    except (RecursionError, msgspec.DecodeError):
        return text


def _build_machine(row: Mapping[str, Any]) -> MachineRow:
    return MachineRow(
        id=row["id"],
        name=row["name"],
        internal_name=row["internalName"],
        # An array may contain NULL, and arrays: neither is an address, and the compiler reports their text.
        allowed_ips=tuple("NULL" if each is None else str(each) for each in row["allowedIps"]),
        own=tuple(row["own"]),
        department=tuple(row["department"]),
        has_clean_traffic=row["isClean"],
        services=_decode_policies(row["services"]),
        department_services=_decode_policies(row["departmentServices"]),
        ports=tuple(Ports(*port) for port in row["ports"]),
    )


def _decode_policies(found: Mapping[str, Sequence[bool]] | None) -> dict[str, Policy]:
    return {key: Policy(*value) for key, value in (found or {}).items()}
