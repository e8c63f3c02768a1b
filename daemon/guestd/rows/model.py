"""The rows of one message, by table. Pure.

Each row is an instance of its table's class in `gueststore.contract`, and holds what is its own; those of processes,
which are most, are plain tuples in the order of that class. What the rows of a message have in common is in
`Rows.shared`, once: to move a sample in time is to replace one value.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass, field, replace
from datetime import datetime
from operator import attrgetter
from typing import Any, NamedTuple
from uuid import UUID

from guestd.wire.decode import Refusal
from gueststore import contract
from gueststore.contract import (
    ApplicationUsageHistory,
    IncomingApplication,
    IncomingService,
    PortUsage,
    Shared,
    SystemMetrics,
    Table,
)

Values = tuple[Any, ...]


class Group(NamedTuple):
    """Rows of one table and one message: the values that they share, in the table's order, and the rows' own."""

    shared: Values
    rows: list[Any]


def whole_rows(group: Group) -> Iterator[Values]:
    """Each row with what it shares, in the order of the table's columns."""
    shared = group.shared
    return ((*shared, *row) for row in group.rows)


class StoredKey(NamedTuple):
    """The key of a row of a series; `key` as text."""

    table: str
    machine_id: UUID
    timestamp: datetime
    key: str


@dataclass(slots=True)
class Rows:
    """The rows of one message."""

    shared: Shared
    system_metrics: SystemMetrics
    processes: list[Values]
    ports: list[PortUsage]
    application_history: list[ApplicationUsageHistory]
    applications: list[IncomingApplication]
    services: list[IncomingService]
    refusals: list[Refusal] = field(default_factory=list)
    adjustments: list[str] = field(default_factory=list)
    dialect: str = "D1"
    failed_parts: int = 0
    """How many parts of its machine the agent could not read."""

    @property
    def count(self) -> int:
        """Rows for all tables."""
        series = 1 + len(self.processes) + len(self.ports) + len(self.application_history)
        return series + len(self.applications) + len(self.services)

    def group(self, table: Table) -> Group:
        """The rows of a table, as COPY takes them."""
        rows = [self.system_metrics] if table is contract.SYSTEM_METRICS else getattr(self, _LISTS[table.name])
        return Group(_SHARED[table.name](self.shared), rows)

    def with_shared(self, **values: Any) -> Rows:
        """The same rows with other values of what they share."""
        return replace(self, shared=self.shared._replace(**values))

    def without_stored(self, stored: Set[StoredKey]) -> tuple[Rows, list[Refusal]]:
        """The rows whose key no stored row has, and the others as refusals."""
        left: dict[str, Any] = {}
        refusals: list[Refusal] = []
        for table in KEYED:
            left[_LISTS[table.name]] = kept = []
            for row in getattr(self, _LISTS[table.name]):
                key = str(table.key_of(row))
                if (table.name, self.shared.machine_id, self.shared.timestamp, key) in stored:
                    refusals.append(Refusal(table.name, key, "a row with this key is stored already"))
                else:
                    kept.append(row)
        return replace(self, **left), refusals


# The series of which a sample has several rows.
KEYED = (contract.PROCESS_SNAPSHOT, contract.PORT_USAGE, contract.APPLICATION_USAGE_HISTORY)
_LISTS = {
    contract.PROCESS_SNAPSHOT.name: "processes",
    contract.PORT_USAGE.name: "ports",
    contract.APPLICATION_USAGE_HISTORY.name: "application_history",
    contract.INCOMING_APPLICATION.name: "applications",
    contract.INCOMING_SERVICE.name: "services",
}
_SHARED = {table.name: attrgetter(*table.shared) for table in contract.TABLES}
