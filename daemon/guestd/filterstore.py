"""The filters' side of the store: every row that says what a machine may send and receive, read at one moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from uuid import UUID

import msgspec
from psycopg import IsolationLevel

from guestd.filters.memory import Memory
from guestd.filters.rows import FilterRow, RuleRow
from guestd.filters.services import Policy, Ports
from guestd.filters.wanted import MachineRow, Rows
from guestd.link import check_schema, connection_to, sorted_errors
from gueststore.queries import query


async def read_rows(dsn: str, memory: Memory | None = None) -> Rows:
    """All filters and machines. StoreUnavailable when the store cannot be read, SchemaMismatch when it is another.

    Who reads again and again has a `memory`: what has not changed is then not decoded again.
    """
    memory = Memory() if memory is None else memory
    async with connection_to(dsn) as connection:
        await check_schema(connection)
        await connection.set_isolation_level(IsolationLevel.REPEATABLE_READ)
        async with sorted_errors(), connection.transaction():
            filters = await (await connection.execute(query("read_filters"))).fetchall()
            machines = await (await connection.execute(query("read_filtered_machines"))).fetchall()
            services = await (await connection.execute(query("read_global_services"))).fetchall()
    return Rows(
        filters=tuple(memory.row((*row[:-1], *row[-1]), partial(_filter, row)) for row in filters),
        machines=tuple(_machine(row) for row in machines),
        services={key: Policy(uses, provides) for key, uses, provides in services},
    )


def _filter(row: Sequence[Any]) -> FilterRow:
    filter_id, name, internal_name, uuid, chain, priority, state_match, rules, targets = row
    return FilterRow(
        id=filter_id,
        name=name,
        internal_name=internal_name,
        uuid=uuid,
        chain=chain,
        priority=priority,
        state_match=state_match,
        rules=tuple(_rule(rule) for rule in msgspec.json.decode(rules)),
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
