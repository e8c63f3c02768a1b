"""The VM reconciler's rows in the store: the host, its machines, and the audit of what was written and done.

One connection for as long as a guestd manages a host; it holds an advisory lock that excludes a second guestd.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import dict_row

from guestd.core.errors import RowsRejected, StoreUnavailable
from guestd.hypervisor.domains import Domain, Graphics
from guestd.store.connection import (
    ROW_SECONDS,
    LockHeld,
    check_schema,
    connection_to,
    listen,
    set_timeouts,
    store_deadline,
)
from guestd.vms.identity import HostIdentity, StoredHost, find_conflict, is_renamed
from guestd.vms.model import (
    SETTLED_STATUSES,
    Attempts,
    BegunChange,
    Claim,
    DomainFacts,
    DropLease,
    Hold,
    KeepFacts,
    KeepGraphics,
    Lease,
    PowerAction,
    Release,
    SetStatus,
    TakeLease,
    VmReport,
    VmRow,
    Write,
)
from guestd.vms.plan import HEALTHY_SECONDS
from gueststore.queries import query

# A host may write only machines that are assigned to it, so claims come first.
WRITE_ORDER = (
    "vms/update_holder", "vms/take_lease", "vms/delete_lease", "vms/update_status", "vms/upsert_graphics",
    "vms/upsert_domain", "vms/end_holds", "vms/insert_hold",
)  # fmt: skip
# Locked rows of Machine are skipped without a wait; other rows of one machine may keep the others' as long.
LOCK_SECONDS = 1.0
# What concerns one machine only: somebody has locked its rows, or they break a constraint of the platform.
_ONE_MACHINES = (LockHeld, RowsRejected)


class HostLocked(StoreUnavailable):
    """Another guestd manages the machines of this host. Retried, because that one may stop."""


class HostRefused(StoreUnavailable):
    """Another host has registered under this name. Retried, because a person may say that it is this one."""


class VmStore:
    """The rows of one host, on one connection. Open with `open_vm_store`."""

    def __init__(self, connection: psycopg.AsyncConnection[Any], host_id: UUID) -> None:
        self._connection = connection
        self.host_id = host_id
        # Actions finish during a reconcile run and must not write into its transaction.
        self._lock = asyncio.Lock()

    async def identify(self, ours: HostIdentity) -> bool:
        """Register which host this is; returns whether libvirt has made up another UUID for it.

        Raises HostRefused if the row is another host's.
        """
        async with self._lock, store_deadline(ROW_SECONDS), self._connection.transaction():
            stored = await _read_stored_host(self._connection, self.host_id, ours)
            values = {"host_id": self.host_id, "identity": str(ours), "boot": ours.boot}
            await self._connection.execute(query("hosts/update_identity"), values)
        return is_renamed(stored, ours)

    async def read_machines(self, domains: Sequence[Domain]) -> tuple[list[VmRow], tuple[str, ...]]:
        """Read the machines of this host and of these domains, and the other hosts that do not report."""
        async with self._lock, store_deadline(ROW_SECONDS):
            return await _read_machines(self._connection, self.host_id, domains)

    async def write(self, writes: Sequence[Write]) -> tuple[list[Write], list[VmReport]]:
        """Write all in one transaction; returns those that changed a row. A row that changed meanwhile is skipped.

        If the store does not take all, each machine has a transaction of its own; those that fail are reported.
        """
        with suppress(*_ONE_MACHINES):
            return await self._write_together(writes), []
        written, failed = [], []
        for machine_id, name in {write.machine_id: write.name for write in writes}.items():
            try:
                written += await self._write_together([write for write in writes if write.machine_id == machine_id])
            except _ONE_MACHINES as exc:
                failed.append(VmReport("unwritten", name, f"the store does not take its rows: {exc}"))
        return written, failed

    async def _write_together(self, writes: Sequence[Write]) -> list[Write]:
        statements = [(write, *_build_statement(write)) for write in writes]
        statements.sort(key=lambda statement: WRITE_ORDER.index(statement[1]))
        async with (
            self._lock,
            store_deadline(ROW_SECONDS),
            self._connection.transaction(),
            self._connection.pipeline(),
        ):
            cursors = [
                await self._connection.execute(
                    query(name), {"machine_id": write.machine_id, "host_id": self.host_id, "name": write.name} | values
                )
                for write, name, values in statements
            ]
        return [write for (write, _, _), cursor in zip(statements, cursors, strict=True) if cursor.rowcount]

    async def read_attempts(self, now: float) -> dict[UUID, Attempts]:
        """Read the last attempts of an earlier guestd that libvirt accepted. `now` is monotonic."""
        values = {"host_id": self.host_id, "healthy_seconds": HEALTHY_SECONDS}
        async with self._lock, store_deadline(ROW_SECONDS):
            cursor = await self._connection.execute(query("vms/read_attempts"), values)
            return {
                machine_id: Attempts(desired, since, action.capitalize(), attempt, 0, now - seconds_ago)
                for machine_id, desired, since, action, attempt, seconds_ago in await cursor.fetchall()
            }

    async def read_begun(self) -> dict[UUID, BegunChange]:
        """Read which changes of the desired state have begun."""
        async with self._lock, store_deadline(ROW_SECONDS):
            return await _read_begun(self._connection, self.host_id)

    async def begin_action(
        self, action: PowerAction, attempt: int, host_boot: str, *, known: int
    ) -> tuple[UUID, int] | None:
        """Insert the audit row of an action, and take the lease of a machine that is to start.

        Returns the row's id, and how often this host has reported now: an action counts as a report. `known` reports
        are in the store if it did not go back. None if the action must not run: that, the host, the domain, the
        desired state, another program's work, another host's lease or a lock forbid it. `attempt` numbers consecutive
        attempts of the same action, from 1.
        """
        values = {
            "host_id": self.host_id, "machine_id": action.machine_id, "name": action.name, "desired": action.desired,
            "action": type(action).__name__.lower(), "reason": action.why, "attempt": attempt,
            "desired_since": action.desired_since, "statuses": sorted(SETTLED_STATUSES), "host_boot": host_boot,
            "domain_uuid": action.domain_uuid, "known": known,
        }  # fmt: skip
        with suppress(*_ONE_MACHINES):
            async with self._lock, store_deadline(ROW_SECONDS):
                cursor = await self._connection.execute(query("vms/insert_event"), values)
                row = await cursor.fetchone()
            return None if row is None else (row[0], row[1])
        return None

    async def end_action(self, event_id: UUID, outcome: str) -> None:
        """Store the outcome of an action."""
        async with self._lock, store_deadline(ROW_SECONDS):
            await self._connection.execute(query("vms/update_event"), {"event_id": event_id, "outcome": outcome})

    async def delete_lease(self, machine_id: UUID) -> None:
        """Give the lease of a machine back that was not started."""
        values = {"machine_id": machine_id, "host_id": self.host_id}
        with suppress(LockHeld):  # somebody is deleting it
            async with self._lock, store_deadline(ROW_SECONDS):
                await self._connection.execute(query("vms/delete_lease"), values)

    async def read_reports(self) -> int:
        """Read how often this host has reported. StoreUnavailable if the host has no row."""
        async with self._lock, store_deadline(ROW_SECONDS):
            cursor = await self._connection.execute(query("hosts/read_reports"), {"host_id": self.host_id})
            row = await cursor.fetchone()
        if row is None:
            raise StoreUnavailable(f"the row of Host {self.host_id} was deleted: the host registers again")
        return int(row[0])

    async def touch_host(self, known: int) -> int:
        """Store that libvirt on this host has just answered; returns how often it has now.

        StoreUnavailable if the host has no row, or the store has fewer than the `known` reports: it went back.
        """
        async with self._lock, store_deadline(ROW_SECONDS):
            return await self._touch_host(expected=known, known=known)

    async def hold_restored(
        self, domains: Sequence[Domain], *, expected: int, known: int, is_new: bool, why: str
    ) -> tuple[int, int]:
        """Hold the desired states of all machines that this host has or may have; returns how many, and the reports.

        `expected` reports are in the store, and guestd knows of `known`. `is_new`: the row of the host is another one
        than that to which it has reported; it may have all its domains, and no other machine.
        """
        async with self._lock, store_deadline(ROW_SECONDS), self._connection.transaction():
            values = _build_selection(self.host_id, domains) | {"is_new": is_new, "reason": why}
            cursor = await self._connection.execute(query("vms/insert_restored_holds"), values)
            return cursor.rowcount, await self._touch_host(expected=expected, known=known)

    async def _touch_host(self, *, expected: int, known: int) -> int:
        values = {"host_id": self.host_id, "expected": expected, "known": known}
        cursor = await self._connection.execute(query("hosts/update_reports"), values)
        row = await cursor.fetchone()
        if row is None:
            raise StoreUnavailable(
                f"the row of Host {self.host_id} was deleted, or the store was restored: the host registers again"
            )
        return int(row[0])


@asynccontextmanager
async def open_vm_store(dsn: str, *, name: str, uri: str, version: str) -> AsyncIterator[VmStore]:
    """Open the store of a host; raises HostLocked if another guestd manages it."""
    async with connection_to(dsn) as connection:
        await check_schema(connection)
        async with store_deadline(ROW_SECONDS):
            cursor = await connection.execute(
                query("hosts/upsert_host"), {"name": name, "uri": uri, "version": version}
            )
            (host_id,) = await cursor.fetchone() or (None,)
            assert host_id is not None
            cursor = await connection.execute(query("vms/lock_host"), {"host_id": host_id})
            if await cursor.fetchone() != (True,):
                raise HostLocked(
                    f"another guestd manages the machines of host {name} ({uri}): stop one of the two, or if these are"
                    " two hosts, give one of them another libvirt.host_name"
                )
        await set_timeouts(connection, lock_seconds=LOCK_SECONDS)
        yield VmStore(connection, host_id)


async def read_host_machines(
    dsn: str, *, name: str, uri: str, identity: HostIdentity, domains: Sequence[Domain]
) -> tuple[UUID | None, list[VmRow], tuple[str, ...], dict[UUID, BegunChange]]:
    """Read a host's ID (None before the first guestd), its machines, the hosts that do not report, and what has begun.

    Raises HostRefused if another host has registered under this name.
    """
    async with connection_to(dsn) as connection:
        await check_schema(connection)
        async with store_deadline(ROW_SECONDS):
            cursor = await connection.execute(query("hosts/read_host"), {"name": name, "uri": uri})
            (host_id,) = await cursor.fetchone() or (None,)
            if host_id is not None:
                await _read_stored_host(connection, host_id, identity)
            begun = {} if host_id is None else await _read_begun(connection, host_id)
            return host_id, *await _read_machines(connection, host_id, domains), begun


async def confirm_changes(dsn: str, changes: Sequence[PowerAction]) -> set[UUID]:
    """Confirm changes of the desired state that are held; returns the machines whose has not changed meanwhile."""
    values = {
        "ids": [change.machine_id for change in changes],
        "since": [change.desired_since for change in changes],
    }
    async with connection_to(dsn) as connection:
        await check_schema(connection)
        async with store_deadline(ROW_SECONDS):
            cursor = await connection.execute(query("vms/update_confirmed"), values)
            return {machine_id for (machine_id,) in await cursor.fetchall()}


async def listen_for_desired_state(dsn: str, changed: asyncio.Event) -> None:
    """Set `changed` whenever the desired state of a machine changes, until the connection is lost."""

    async def wake(_: psycopg.AsyncConnection[Any]) -> None:
        changed.set()

    await listen(dsn, "guestd_wish", wake)


async def _read_stored_host(connection: psycopg.AsyncConnection[Any], host_id: UUID, ours: HostIdentity) -> StoredHost:
    """Read which host has registered; raises HostRefused if that is another one."""
    cursor = await connection.execute(query("hosts/read_identity"), {"host_id": host_id, "boot": ours.boot})
    row = await cursor.fetchone()
    if row is None:
        raise StoreUnavailable(f"the row of Host {host_id} was deleted: the host registers again")
    name, uri, identity, boot, has_earlier_leases = row
    stored = StoredHost(identity, boot, has_earlier_leases)
    conflict = find_conflict(stored, ours)
    if conflict is not None:
        raise HostRefused(
            f"host {name} ({uri}) may be another machine than this one: {conflict}, and this host's is {ours}. If two"
            " hosts use this name, give this one another libvirt.host_name; if this is that host, confirm it as"
            f" docs/vms.md says: its row of Host has the id {host_id}"
        )
    return stored


async def _read_machines(
    connection: psycopg.AsyncConnection[Any], host_id: UUID | None, domains: Sequence[Domain]
) -> tuple[list[VmRow], tuple[str, ...]]:
    values = _build_selection(host_id, domains)
    async with connection.cursor(binary=True, row_factory=dict_row) as cursor:
        await cursor.execute(query("vms/read_machines"), values)
        machines = [_build_row(row) for row in await cursor.fetchall()]
        await cursor.execute(query("vms/read_silent_hosts"), {"host_id": host_id})
        return machines, tuple(row["name"] for row in await cursor.fetchall())


async def _read_begun(connection: psycopg.AsyncConnection[Any], host_id: UUID) -> dict[UUID, BegunChange]:
    cursor = await connection.execute(query("vms/read_begun"), {"host_id": host_id})
    # Long ago: what an earlier guestd began does not count with what begins now.
    return {machine_id: BegunChange(since, float("-inf")) for machine_id, since in await cursor.fetchall()}


def _build_selection(host_id: UUID | None, domains: Sequence[Domain]) -> dict[str, Any]:
    return {
        "host_id": host_id,
        "names": [domain.name for domain in domains],
        "uuids": [domain.uuid for domain in domains],
    }


def _build_row(row: Mapping[str, Any]) -> VmRow:
    graphics = facts = lease = None
    if row["hasGraphics"]:
        graphics = Graphics(row["graphicProtocol"], row["graphicPort"], row["graphicHost"])
    if row["hasFacts"]:
        facts = DomainFacts(
            domain_uuid=row["domainUuid"],
            state=row["state"],
            reason=row["reason"],
            vcpus=row["vcpus"],
            memory_kib=row["memoryKB"],
            channel=row["channel"],
            problem=row["problem"],
            reached_since=row["reachedSince"],
        )
    if row["leaseHostId"] is not None:
        lease = Lease(row["leaseHostId"], row["leaseHostName"], row["leaseHostBoot"], row["leaseDomainUuid"])
    return VmRow(
        id=row["id"],
        name=row["internalName"],
        status=row["status"],
        desired=row["desiredStatus"],
        host_id=row["hostId"],
        is_holder_live=row["isHolderLive"],
        cpu_cores=row["cpuCores"],
        ram_gb=row["ramGB"],
        graphics=graphics,
        facts=facts,
        desired_since=row["desiredSince"],
        confirmed_since=row["confirmedSince"],
        lease=lease,
        is_held=row["isHeld"],
        is_restored=row["isRestored"],
    )


def _build_statement(write: Write) -> tuple[str, dict[str, Any]]:  # noqa: PLR0911 -- one for each kind
    """Build the query name and the specific parameters of a write."""
    match write:
        case Claim():
            return "vms/update_holder", {"holder": write.holder, "reason": write.why}
        case TakeLease():
            return "vms/take_lease", {
                "holder": write.holder, "host_boot": write.host_boot, "domain_uuid": write.domain_uuid,
            }  # fmt: skip
        case DropLease():
            return "vms/delete_lease", {}
        case SetStatus():
            return "vms/update_status", {"before": write.before, "after": write.after, "reason": write.why}
        case Release():
            return "vms/end_holds", {"desired_since": write.desired_since}
        case Hold():
            return "vms/insert_hold", {"desired_since": write.desired_since, "reason": write.why}
        case KeepGraphics(graphics=graphics):
            values = {"protocol": graphics.protocol, "port": graphics.port, "graphic_host": graphics.host}
            return "vms/upsert_graphics", values
        case KeepFacts(facts=facts):
            return "vms/upsert_domain", {
                "domain_uuid": facts.domain_uuid, "state": facts.state, "reason": facts.reason, "vcpus": facts.vcpus,
                "memory_kib": facts.memory_kib, "channel": facts.channel, "problem": facts.problem,
                "reached_since": facts.reached_since,
            }  # fmt: skip
