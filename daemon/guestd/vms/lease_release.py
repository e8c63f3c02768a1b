"""Deletes the lease of a machine that runs nowhere: a person has made certain of that."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from guestd.store.connection import ROW_SECONDS, check_schema, connection_to, store_deadline
from gueststore.queries import query


@dataclass(frozen=True, slots=True)
class ShownLease:
    """A row of MachineLease, with the names of its machine's domain and of its host, and what is known of the two.

    `is_host_live`: the host has reported within 60 s. `is_assigned`: the machine is assigned to it. `state`: of the
    domain, as the host to which the machine is assigned last observed it; None if none has.
    """

    machine_id: UUID
    name: str
    host_id: UUID
    host_name: str
    taken_at: datetime
    domain_uuid: UUID
    is_host_live: bool
    is_assigned: bool
    state: str | None

    @property
    def runs_there(self) -> bool:
        """Whether the host reports that the machine runs there: its lease is not released."""
        return self.is_host_live and self.is_assigned and self.state not in (None, "shutoff", "missing")

    @property
    def digest(self) -> str:
        """Names exactly this lease: the same host may take it again later."""
        taken_at = self.taken_at.astimezone(UTC).isoformat()
        return hashlib.sha256(f"{self.machine_id} {self.host_id} {taken_at}".encode()).hexdigest()[:12]


async def release_lease(dsn: str, name: str, digest: str | None) -> tuple[ShownLease, bool] | None:
    """Read the lease of the machine of this internalName; returns it, and whether it is released. None: there is none.

    It is released, and an event written, if it is the one of this digest and the machine does not run there, and both
    stay so.
    """
    async with connection_to(dsn) as connection:
        await check_schema(connection)
        async with store_deadline(ROW_SECONDS):
            row = await (await connection.execute(query("vms/read_lease"), {"name": name})).fetchone()
            if row is None:
                return None
            lease = ShownLease(*row)
            if lease.digest != digest or lease.runs_there:
                return lease, False
            values = {
                "machine_id": lease.machine_id, "host_id": lease.host_id, "taken_at": lease.taken_at,
                "name": lease.name,
                "reason": f"a person released the lease of host {lease.host_name}, taken {lease.taken_at.isoformat()}",
            }  # fmt: skip
            released = await connection.execute(query("vms/release_lease"), values)
            return lease, released.rowcount == 1
